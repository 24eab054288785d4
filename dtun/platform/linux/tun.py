"""TUN devices (Documentation/networking/tuntap.rst in the kernel's source)."""

import errno
import fcntl
import os
import struct
from collections.abc import Callable

from dtun.errors import PermissionDeniedError, UnavailableError

DEVICE = "/dev/net/tun"

# From linux/if_tun.h. IFF_TUN_EXCL refuses a name that exists, which would otherwise be joined or taken over.
TUNSETIFF = 0x400454CA
IFF_TUN = 0x0001
IFF_NO_PI = 0x1000
IFF_TUN_EXCL = 0x8000

# struct ifreq on 64-bit Linux, as far as TUNSETIFF reads it:
#   | name, NUL-terminated: 16 bytes | flags: 2 bytes | unused: 22 bytes |
IFREQ = struct.Struct("16sH22x")
NAME_MAX_BYTES = 15


class LinuxTun:
    """An open TUN device: one read or write of the descriptor is one IP packet with nothing in front."""

    def __init__(self, name: str, descriptor: int, closed: Callable[["LinuxTun"], None]) -> None:
        self.name = name
        self._descriptor = descriptor
        self._closed = closed

    def fileno(self) -> int:
        """The non-blocking descriptor; -1 once closed."""
        return self._descriptor

    def close(self) -> None:
        """Remove the device, with its addresses and routes. May be called twice."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
            self._closed(self)


def open_tun(name: str, closed: Callable[[LinuxTun], None]) -> LinuxTun:
    """Make the TUN device `name`; `closed` is told when it has been closed.

    Raises:
        UnavailableError: there is no TUN driver, or the name is taken or impossible.
        PermissionDeniedError: no CAP_NET_ADMIN, or no right to open the driver's file.
    """
    if not _is_device_name(name):
        raise UnavailableError(
            f"{name!r} cannot be the name of a device: "
            f"use 1 to {NAME_MAX_BYTES} letters, digits, '-', '_' and '.'"
        )
    try:
        descriptor = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError:
        raise PermissionDeniedError(
            f"cannot open {DEVICE}: permission denied; "
            "run dtun as root or let its user read and write that file"
        ) from None
    except OSError as error:
        raise UnavailableError(
            f"cannot open {DEVICE}: {_reason(error)}; load the driver with 'modprobe tun', "
            "or pass the device into the container"
        ) from None
    try:
        fcntl.ioctl(descriptor, TUNSETIFF, IFREQ.pack(name.encode(), IFF_TUN | IFF_NO_PI | IFF_TUN_EXCL))
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EPERM, errno.EACCES):
            raise PermissionDeniedError(
                f"may not make the TUN device {name}: CAP_NET_ADMIN is missing; "
                "run dtun as root or give it that capability"
            ) from None
        if error.errno in (errno.EBUSY, errno.EEXIST, errno.EINVAL):
            raise UnavailableError(
                f"cannot make the TUN device {name}: a device of that name exists; "
                "stop what made it, or choose another name"
            ) from None
        raise UnavailableError(f"cannot make the TUN device {name}: {_reason(error)}") from None
    return LinuxTun(name, descriptor, closed)


def _is_device_name(name: str) -> bool:
    """Stricter than the kernel, which would take '%d' for a template and lets odd bytes through."""
    return (
        0 < len(name) <= NAME_MAX_BYTES
        and name.isascii()
        and name not in (".", "..")
        and all(character.isalnum() or character in "-_." for character in name)
    )


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
