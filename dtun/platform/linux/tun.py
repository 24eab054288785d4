"""TUN devices (Documentation/networking/tuntap.rst in the kernel's source)."""

import contextlib
import errno
import fcntl
import logging
import os
import socket
import struct
from collections.abc import Callable
from functools import cache

from dtun.errors import DtunError, PermissionDeniedError, UnavailableError
from dtun.platform.linux.netlink.wire import IFF_UP

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
SIOCGIFFLAGS = 0x8913  # linux/sockios.h


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
        self._lost: Callable[[], None] = _nothing
        self._renewed: Callable[[], None] = _nothing

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
        with contextlib.suppress(OSError):  # the device is gone, and `renew` will enable them
            fcntl.ioctl(self._descriptor, TUNSETOFFLOAD, flags)

    def works(self) -> bool:
        """See `Tun.works`."""
        try:
            name, _ = IFREQ.unpack(fcntl.ioctl(self._descriptor, TUNGETIFF, bytes(IFREQ.size)))
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
                _, flags = IFREQ.unpack(fcntl.ioctl(asker, SIOCGIFFLAGS, IFREQ.pack(self.name.encode(), 0)))
        except OSError:
            return False
        return name.rstrip(b"\0") == self.name.encode() and bool(flags & IFF_UP)

    def watch(self, lost: Callable[[], None], renewed: Callable[[], None]) -> None:
        """See `Tun.watch`."""
        self._lost, self._renewed = lost, renewed

    def renew(self) -> None:
        """Make the device anew behind the same descriptor, after another program has removed, renamed or moved it.

        It is not up yet. May be called again after an error.

        Raises:
            UnavailableError: see `open_tun`.
            PermissionDeniedError: see `open_tun`.
        """
        self._lost()
        driver = _open_driver()
        try:
            # What has been renamed or moved goes with its last descriptor.
            os.dup2(driver, self._descriptor, inheritable=False)
        finally:
            os.close(driver)
        _create(self._descriptor, self.name)
        self.enable_offloads(self.enabled_offloads)
        self._renewed()

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
    descriptor = _open_driver()
    try:
        _create(descriptor, name)
    except DtunError:
        os.close(descriptor)
        raise
    tun = LinuxTun(name, descriptor, closed)
    tun.find_offloads()
    return tun


def _open_driver() -> int:
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
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


def _create(descriptor: int, name: str) -> None:
    """Create the device, which then belongs to this descriptor of the driver."""
    flags = IFF_TUN | IFF_NO_PI | IFF_TUN_EXCL | IFF_VNET_HDR
    try:
        fcntl.ioctl(descriptor, TUNSETIFF, IFREQ.pack(name.encode(), flags))
    except OSError as error:
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


def adopt_tun(name: str, descriptor: int, closed: Callable[[LinuxTun], None]) -> LinuxTun:
    """Open the TUN device `name`, which a predecessor created, by its descriptor.

    Raises:
        UnavailableError: the descriptor is not that device, because another program has removed or renamed it, or the
            device has other flags than this process needs.
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


def _nothing() -> None:
    """Nobody watches the device."""


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
