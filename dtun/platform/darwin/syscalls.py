"""All calls to Darwin's kernel; tests replace what this module imports. They raise OSError with the kernel's errno."""

import ctypes
import errno
import fcntl
import os
import socket
import time
from collections.abc import Sequence

_DUMP_ATTEMPTS = 8


def open_socket(family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A non-blocking socket that child processes do not inherit."""
    opened = socket.socket(family, kind, protocol)
    opened.setblocking(False)
    return opened


def ioctl(sock: socket.socket, number: int, argument: bytes) -> bytes:
    """The argument as the kernel changed it."""
    return fcntl.ioctl(sock.fileno(), number, argument)


def sysctl(path: Sequence[int]) -> bytes:
    """Read a whole table. Retried, because it may grow after its size was read."""
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
    """Read a number, sysctlbyname(3), and set it to `value` unless that is None. Returns what it was before."""
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
    """clock_gettime(3), in seconds."""
    return time.clock_gettime(number)


def process_id() -> int:
    return os.getpid()


def _check(result: int) -> None:
    if result != 0:
        raise _error()


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
