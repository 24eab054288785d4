"""The arguments of the interface ioctls as bytes (net/if.h, netinet6/in6_var.h, sys/kern_control.h).

    ctl_info (100)        | id u32 0 | name 4 |
    ifreq (32)            | name 0 | flags u16, or MTU i32, or sockaddr_in 16 |
    ifaliasreq (64)       | name 0 | address 16 | destination 32 | mask 48 |
    in6_aliasreq (128)    | name 0 | address 16 | destination 44 | mask 72 | flags i32 100 |
                          | expires i64 104 | preferred until i64 112 | lifetime u32 120 | preferred u32 124 |
    in6_ifreq (288)       | name 0 | address 16 | unused 44 |

Names are NUL-terminated in 16 bytes; offsets in bytes.
"""

from struct import Struct

from dtun.network.state import PointToPoint
from dtun.platform.darwin import sockaddr
from dtun.platform.darwin.constants import IN6_IFF_NODAD, ND6_INFINITE_LIFETIME

CTL_INFO = Struct("<I96s")
IFREQ_FLAGS = Struct("<16sH14x")
IFREQ_MTU = Struct("<16si12x")
IFREQ_ADDRESS = Struct("<16s16s")
IFALIASREQ = Struct("<16s16s16s16s")
IN6_ALIASREQ = Struct("<16s28s28s28siqqII")
IN6_IFREQ = Struct("<16s28s244x")


def control(name: str) -> bytes:
    """Which kernel control is called this? The answer is in the same place."""
    return CTL_INFO.pack(0, name.encode())


def flags(device: str, value: int = 0) -> bytes:
    return IFREQ_FLAGS.pack(device.encode(), value)


def mtu(device: str, value: int = 0) -> bytes:
    return IFREQ_MTU.pack(device.encode(), value)


def add_address(pair: PointToPoint) -> bytes:
    """For SIOCAIFADDR or SIOCAIFADDR_IN6, by the version of the pair."""
    name = pair.device.encode()
    local, peer = sockaddr.inet(pair.local), sockaddr.inet(pair.peer)
    whole = sockaddr.host_mask(pair.local.version)
    if pair.local.version == 4:
        return IFALIASREQ.pack(name, local, peer, whole)
    # Nobody else on the link could have the address, so that there is nothing to detect (RFC 4862, section 5.4).
    for_ever = ND6_INFINITE_LIFETIME
    return IN6_ALIASREQ.pack(name, local, peer, whole, IN6_IFF_NODAD, 0, 0, for_ever, for_ever)


def remove_address(pair: PointToPoint) -> bytes:
    """For SIOCDIFADDR or SIOCDIFADDR_IN6."""
    layout = IFREQ_ADDRESS if pair.local.version == 4 else IN6_IFREQ
    return layout.pack(pair.device.encode(), sockaddr.inet(pair.local))
