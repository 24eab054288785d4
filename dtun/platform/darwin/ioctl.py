"""MTU, flags and addresses of interfaces, by ioctl(2) (net/if.h, netinet6/in6_var.h).

    ifreq (32)            | name 0 | flags u16, or MTU i32, or sockaddr_in 16 |
    ifaliasreq (64)       | name 0 | address 16 | destination 32 | mask 48 |
    in6_aliasreq (128)    | name 0 | address 16 | destination 44 | mask 72 | flags i32 100 |
                          | expires i64 104 | preferred until i64 112 | lifetime u32 120 | preferred u32 124 |
    in6_ifreq (288)       | name 0 | address 16 | unused 44 |

Names are NUL-terminated in 16 bytes; the numbers are offsets in bytes.
"""

from struct import Struct

from dtun.network.state import NetDevice, PointToPoint
from dtun.platform.darwin import sockaddr, syscalls
from dtun.platform.darwin.constants import (
    FAMILIES,
    IFF_UP,
    IN6_IFF_NODAD,
    ND6_INFINITE_LIFETIME,
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

IFREQ_FLAGS = Struct("<16sH14x")
IFREQ_MTU = Struct("<16si12x")
IFREQ_ADDRESS = Struct("<16s16s")
IFALIASREQ = Struct("<16s16s16s16s")
IN6_ALIASREQ = Struct("<16s28s28s28siqqII")
IN6_IFREQ = Struct("<16s28s244x")

_ADD = {4: SIOCAIFADDR, 6: SIOCAIFADDR_IN6}
_REMOVE = {4: SIOCDIFADDR, 6: SIOCDIFADDR_IN6}


class InterfaceIoctls:
    """The sockets for the ioctls of the two IP versions. Methods raise OSError with the kernel's errno."""

    def __init__(self) -> None:
        self._sockets = {
            version: syscalls.open_socket(family, SOCK_DGRAM) for version, family in FAMILIES.items()
        }

    def close(self) -> None:
        for sock in self._sockets.values():
            sock.close()

    def check_permission(self) -> None:
        """Set lo0's flags to what they are. Fails with EPERM without root."""
        syscalls.ioctl(self._sockets[4], SIOCSIFFLAGS, flags_request(LOOPBACK, self._flags(LOOPBACK)))

    def set_up(self, device: NetDevice) -> None:
        """Set its MTU, and bring it up."""
        syscalls.ioctl(self._sockets[4], SIOCSIFMTU, mtu_request(device.name, device.mtu))
        self._set_flag_up(device.name, up=True)

    def set_down(self, device: NetDevice) -> None:
        self._set_flag_up(device.name, up=False)

    def add_address(self, pair: PointToPoint) -> None:
        """Add a pair; of an IPv4 address, this may also change the peer. The kernel adds the host route to the peer."""
        version = pair.local.version
        syscalls.ioctl(self._sockets[version], _ADD[version], add_address_request(pair))

    def remove_address(self, pair: PointToPoint) -> None:
        version = pair.local.version
        syscalls.ioctl(self._sockets[version], _REMOVE[version], remove_address_request(pair))

    def _flags(self, device: str) -> int:
        _, flags = IFREQ_FLAGS.unpack(syscalls.ioctl(self._sockets[4], SIOCGIFFLAGS, flags_request(device)))
        return int(flags)

    def _set_flag_up(self, device: str, *, up: bool) -> None:
        before = self._flags(device)
        after = before | IFF_UP if up else before & ~IFF_UP
        if after != before:
            syscalls.ioctl(self._sockets[4], SIOCSIFFLAGS, flags_request(device, after))


def flags_request(device: str, value: int = 0) -> bytes:
    return IFREQ_FLAGS.pack(device.encode(), value)


def mtu_request(device: str, value: int = 0) -> bytes:
    return IFREQ_MTU.pack(device.encode(), value)


def add_address_request(pair: PointToPoint) -> bytes:
    """For SIOCAIFADDR or SIOCAIFADDR_IN6, by the IP version of the pair."""
    name = pair.device.encode()
    local, peer = sockaddr.inet(pair.local), sockaddr.inet(pair.peer)
    mask = sockaddr.host_mask(pair.local.version)
    if pair.local.version == 4:
        return IFALIASREQ.pack(name, local, peer, mask)
    # Without duplicate address detection (RFC 4862, section 5.4): the peer is the only other host on the link.
    forever = ND6_INFINITE_LIFETIME
    return IN6_ALIASREQ.pack(name, local, peer, mask, IN6_IFF_NODAD, 0, 0, forever, forever)


def remove_address_request(pair: PointToPoint) -> bytes:
    """For SIOCDIFADDR or SIOCDIFADDR_IN6, by the IP version of the pair."""
    layout = IFREQ_ADDRESS if pair.local.version == 4 else IN6_IFREQ
    return layout.pack(pair.device.encode(), sockaddr.inet(pair.local))
