"""TUN devices (Documentation/networking/tuntap.rst in the kernel's source)."""

import errno
import fcntl
import logging
import os
import struct
from collections.abc import Callable
from functools import cache

from dtun.errors import PermissionDeniedError, UnavailableError

log = logging.getLogger("dtun.platform")

DEVICE = "/dev/net/tun"

# From linux/if_tun.h. IFF_TUN_EXCL refuses the name of an existing device, to which TUNSETIFF would otherwise attach.
TUNSETIFF = 0x400454CA
IFF_TUN = 0x0001
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
IFF_TUN_EXCL = 0x8000

# Offloads: unfinished checksums, and super-packets of TCP and (Linux 6.2) of UDP.
TUNGETIFF = 0x800454D2
TUNSETOFFLOAD = 0x400454D0
TUN_F_CSUM = 0x01
TUN_F_TSO4 = 0x02
TUN_F_TSO6 = 0x04
TUN_F_TSO_ECN = 0x08
TUN_F_USO4 = 0x20
TUN_F_USO6 = 0x40
OFFLOADS = {
    "segments": TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN,
    "udp-segments": TUN_F_CSUM | TUN_F_USO4 | TUN_F_USO6,
}
_NAMES = {"segments": "TCP", "udp-segments": "UDP (needs Linux 6.2)"}

# struct ifreq on 64-bit Linux, as far as TUNSETIFF reads it:
#   | name, NUL-terminated: 16 bytes | flags: 2 bytes | unused: 22 bytes |
IFREQ = struct.Struct("16sH22x")
NAME_MAX_BYTES = 15


class LinuxTun:
    """An open TUN device with IFF_VNET_HDR: see `dtun.platform.interface.Tun`."""

    vnet_header = True
    family_header = False

    def __init__(self, name: str, descriptor: int, closed: Callable[["LinuxTun"], None]) -> None:
        self.name = name
        self.offloads: frozenset[str] = frozenset()
        self.enabled_offloads: frozenset[str] = frozenset()
        self._descriptor = descriptor
        self._closed = closed

    def fileno(self) -> int:
        """The non-blocking descriptor; -1 once closed."""
        return self._descriptor

    def enable_offloads(self, offloads: frozenset[str]) -> None:
        """See `Tun.enable_offloads`."""
        self.enabled_offloads = offloads & self.offloads
        if not self.offloads:
            return
        flags = 0
        for offload in self.enabled_offloads:
            flags |= OFFLOADS[offload]
        fcntl.ioctl(self._descriptor, TUNSETOFFLOAD, flags)

    def find_offloads(self) -> None:
        """Ask the kernel which offloads it supports. None is enabled afterwards."""
        for offload, flags in OFFLOADS.items():
            try:
                fcntl.ioctl(self._descriptor, TUNSETOFFLOAD, flags)
            except OSError:
                continue
            self.offloads |= {offload}
        if self.offloads:
            fcntl.ioctl(self._descriptor, TUNSETOFFLOAD, 0)
        for offload in sorted(OFFLOADS.keys() - self.offloads):
            _log_missing(offload)

    def close(self) -> None:
        """Remove the device with its addresses and routes. May be called twice."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
            self._closed(self)


def open_tun(name: str, closed: Callable[[LinuxTun], None]) -> LinuxTun:
    """Create the TUN device `name`; `closed` is called after it was closed.

    Raises:
        UnavailableError: there is no TUN driver, or the name is in use or invalid.
        PermissionDeniedError: CAP_NET_ADMIN or the permission to open the driver's file is missing.
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
    flags = IFF_TUN | IFF_NO_PI | IFF_TUN_EXCL | IFF_VNET_HDR
    try:
        fcntl.ioctl(descriptor, TUNSETIFF, IFREQ.pack(name.encode(), flags))
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EPERM, errno.EACCES):
            raise PermissionDeniedError(
                f"cannot create the TUN device {name}: CAP_NET_ADMIN is missing; "
                "run dtun as root or give it that capability"
            ) from None
        if error.errno in (errno.EBUSY, errno.EEXIST, errno.EINVAL):
            raise UnavailableError(
                f"cannot create the TUN device {name}: a device of that name exists; "
                "stop the program that created it, or choose another name"
            ) from None
        raise UnavailableError(f"cannot create the TUN device {name}: {_reason(error)}") from None
    tun = LinuxTun(name, descriptor, closed)
    tun.find_offloads()
    return tun


def adopt_tun(name: str, descriptor: int, closed: Callable[[LinuxTun], None]) -> LinuxTun:
    """Open the TUN device `name`, which a predecessor created, by its descriptor.

    Raises:
        UnavailableError: the descriptor is not that device, or the device has other flags than this process needs.
    """
    try:
        found, flags = IFREQ.unpack(fcntl.ioctl(descriptor, TUNGETIFF, bytes(IFREQ.size)))
    except OSError as error:
        raise UnavailableError(
            f"the descriptor kept for {name} is not a TUN device: {_reason(error)}"
        ) from None
    if found.rstrip(b"\0") != name.encode():
        raise UnavailableError(
            f"the descriptor kept for {name} is the device {found.rstrip(bytes(1)).decode()}"
        )
    if not flags & IFF_VNET_HDR:
        raise UnavailableError(f"the device {name} was created with other offloads")
    os.set_blocking(descriptor, False)
    tun = LinuxTun(name, descriptor, closed)
    tun.find_offloads()
    return tun


@cache
def _log_missing(offload: str) -> None:
    """Log it once, not for every device."""
    log.info("this kernel does not support super-packets of %s; packets are sent one by one", _NAMES[offload])


def _is_device_name(name: str) -> bool:
    """Stricter than the kernel, which replaces '%d' by a number and accepts unusual bytes."""
    return (
        0 < len(name) <= NAME_MAX_BYTES
        and name.isascii()
        and name not in (".", "..")
        and all(character.isalnum() or character in "-_." for character in name)
    )


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
