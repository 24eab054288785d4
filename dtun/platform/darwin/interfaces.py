"""MTU, state and addresses of a device, by ioctl(2). Methods raise OSError with the kernel's errno."""

from dtun.network.state import NetDevice, PointToPoint
from dtun.platform.darwin import ifreq, syscalls
from dtun.platform.darwin.constants import (
    FAMILIES,
    IFF_UP,
    SIOCAIFADDR,
    SIOCAIFADDR_IN6,
    SIOCDIFADDR,
    SIOCDIFADDR_IN6,
    SIOCGIFFLAGS,
    SIOCSIFFLAGS,
    SIOCSIFMTU,
    SOCK_DGRAM,
)

LOOPBACK = "lo0"

_ADD = {4: SIOCAIFADDR, 6: SIOCAIFADDR_IN6}
_REMOVE = {4: SIOCDIFADDR, 6: SIOCDIFADDR_IN6}


class Interfaces:
    """The sockets that the ioctls of the two IP versions are made on."""

    def __init__(self) -> None:
        self._sockets = {
            version: syscalls.open_socket(family, SOCK_DGRAM) for version, family in FAMILIES.items()
        }

    def close(self) -> None:
        for sock in self._sockets.values():
            sock.close()

    def check_permission(self) -> None:
        """Fails with EPERM without root. Asks for a change that changes nothing."""
        answer = syscalls.ioctl(self._sockets[4], SIOCGIFFLAGS, ifreq.flags(LOOPBACK))
        _, flags = ifreq.IFREQ_FLAGS.unpack(answer)
        syscalls.ioctl(self._sockets[4], SIOCSIFFLAGS, ifreq.flags(LOOPBACK, flags))

    def set_up(self, link: NetDevice) -> None:
        """With its MTU, and up."""
        syscalls.ioctl(self._sockets[4], SIOCSIFMTU, ifreq.mtu(link.name, link.mtu))
        self._set_flags(link.name, IFF_UP, up=True)

    def set_down(self, link: NetDevice) -> None:
        self._set_flags(link.name, IFF_UP, up=False)

    def add_address(self, pair: PointToPoint) -> None:
        """Or give an address of the device another peer. The kernel makes the host route to the peer."""
        version = pair.local.version
        syscalls.ioctl(self._sockets[version], _ADD[version], ifreq.add_address(pair))

    def remove_address(self, pair: PointToPoint) -> None:
        version = pair.local.version
        syscalls.ioctl(self._sockets[version], _REMOVE[version], ifreq.remove_address(pair))

    def _set_flags(self, device: str, flag: int, *, up: bool) -> None:
        answer = syscalls.ioctl(self._sockets[4], SIOCGIFFLAGS, ifreq.flags(device))
        _, before = ifreq.IFREQ_FLAGS.unpack(answer)
        after = before | flag if up else before & ~flag
        if after != before:
            syscalls.ioctl(self._sockets[4], SIOCSIFFLAGS, ifreq.flags(device, after))
