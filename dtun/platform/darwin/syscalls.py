"""Every call to Darwin's kernel goes through here: a thin edge, in whose place tests put a kernel of their own.

All of them raise OSError with the kernel's errno.
"""

import ctypes
import errno
import fcntl
import os
import socket
import time
from collections.abc import Sequence

_DUMP_ATTEMPTS = 8


def open_socket(family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A socket that does not block, and that no hook inherits."""
    opened = socket.socket(family, kind, protocol)
    opened.setblocking(False)
    return opened


def ioctl(sock: socket.socket, number: int, argument: bytes) -> bytes:
    """The argument as the kernel leaves it."""
    return fcntl.ioctl(sock.fileno(), number, argument)


def sysctl(path: Sequence[int]) -> bytes:
    """The whole of a table. It may grow between the question for its size and the one for itself."""
    library = ctypes.CDLL(None, use_errno=True)
    name = (ctypes.c_int * len(path))(*path)
    size = ctypes.c_size_t(0)
    for _ in range(_DUMP_ATTEMPTS):
        _check(library.sysctl(name, len(path), None, ctypes.byref(size), None, ctypes.c_size_t(0)))
        size.value += size.value // 2 + 4096
        buffer = ctypes.create_string_buffer(size.value)
        if library.sysctl(name, len(path), buffer, ctypes.byref(size), None, ctypes.c_size_t(0)) == 0:
            return buffer.raw[: size.value]
        if ctypes.get_errno() != errno.ENOMEM:
            break
    raise _error()


def sysctl_number(name: str, value: int | None = None) -> int:
    """A setting that is a number, as it was before `value` takes its place, sysctlbyname(3)."""
    library = ctypes.CDLL(None, use_errno=True)
    before, size = ctypes.c_int(0), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
    _check(
        library.sysctlbyname(
            name.encode(), ctypes.byref(before), ctypes.byref(size), None, ctypes.c_size_t(0)
        )
    )
    if value is not None:
        new = ctypes.c_int(value)
        _check(
            library.sysctlbyname(
                name.encode(), None, None, ctypes.byref(new), ctypes.c_size_t(ctypes.sizeof(new))
            )
        )
    return before.value


def index_of(device: str) -> int:
    return socket.if_nametoindex(device)


def name_of(index: int) -> str:
    return socket.if_indextoname(index)


def clock(number: int) -> float:
    """Seconds, clock_gettime(3)."""
    return time.clock_gettime(number)


def process_id() -> int:
    return os.getpid()


def _check(result: int) -> None:
    if result != 0:
        raise _error()


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
