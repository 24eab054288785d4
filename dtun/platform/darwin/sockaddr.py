"""Darwin's socket addresses as bytes (sys/socket.h, netinet/in.h, netinet6/in6.h, net/if_dl.h).

    sockaddr_in    | length 16 | family 2  | port u16 | address 4 | zero 8 |
    sockaddr_in6   | length 28 | family 30 | port u16 | flow u32 | address 16 | scope u32 |
    sockaddr_dl    | length 20 | family 18 | index u16 | type | name length | address length | selector length |
                   | name and address 12 |

The port is big-endian; the rest is in the host's byte order, which is little-endian on every Mac since 2006.
"""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from struct import Struct

from dtun.network.state import Address, Network
from dtun.platform.darwin.constants import AF_INET, AF_INET6, AF_LINK

SOCKADDR_IN = Struct("<BBH4s8x")
SOCKADDR_IN6 = Struct("<BBHI16sI")
SOCKADDR_DL = Struct("<BBHBBBB12s")


@dataclass(frozen=True, slots=True)
class LinkAddress:
    """An interface by its index; `name` is empty where the kernel leaves it out."""

    index: int
    name: str = ""


Parsed = IPv4Address | IPv6Address | LinkAddress


def inet(address: Address, scope: int = 0) -> bytes:
    """A sockaddr_in or sockaddr_in6.

    `scope` is the interface's index of a link-local address. The kernel wants it inside the address (KAME form,
    fe80:INDEX::...), as route(8) sends it.
    """
    if address.version == 4:
        return SOCKADDR_IN.pack(SOCKADDR_IN.size, AF_INET, 0, address.packed)
    packed = address.packed
    if scope and address.is_link_local:
        packed = packed[:2] + scope.to_bytes(2, "big") + packed[4:]
    return SOCKADDR_IN6.pack(SOCKADDR_IN6.size, AF_INET6, 0, 0, packed, 0)


def mask(network: Network) -> bytes:
    """The network's mask in full length: the kernel stops parsing a request at a trimmed one."""
    return inet(network.netmask)


def host_mask(version: int) -> bytes:
    """The mask of a single address."""
    return inet(ip_address(b"\xff" * (4 if version == 4 else 16)))


def link(index: int) -> bytes:
    """The interface with this index."""
    return SOCKADDR_DL.pack(SOCKADDR_DL.size, AF_LINK, index, 0, 0, 0, 0, b"")


def padded(length: int) -> int:
    """Bytes that a socket address takes in a routing message. One of length 0 takes four."""
    return (length + 3) & ~3 if length else 4


def parse(data: memoryview) -> Parsed | None:
    """Parse an address of a routing message; None if its family is unknown or it is too short."""
    if len(data) < 2:
        return None
    match data[1]:
        case 2:
            return ip_address(_filled(data, 4, 4))
        case 30:
            return _unscoped(_filled(data, 8, 16))
        case 18 if len(data) >= 8:
            name = bytes(data[8 : 8 + data[5]]).decode("ascii", "replace")
            return LinkAddress(int.from_bytes(data[2:4], "little"), name)
    return None


def prefix_length(data: memoryview, version: int) -> int | None:
    """The prefix length of a mask in a reply; None if its ones are not contiguous.

    The kernel trims such a mask after its last byte that is not 0, and its family byte may have any value.
    """
    start, size = (4, 4) if version == 4 else (8, 16)
    bits = int.from_bytes(_filled(data, start, size), "big")
    length = bits.bit_count()
    width = size * 8
    return length if bits == ((1 << length) - 1) << (width - length) else None


def _filled(data: memoryview, start: int, size: int) -> bytes:
    return bytes(data[start : start + size]).ljust(size, b"\0")


def _unscoped(packed: bytes) -> IPv6Address:
    """Remove the interface's index that the kernel keeps inside a link-local address."""
    if packed[0] == 0xFE and packed[1] & 0xC0 == 0x80:
        packed = packed[:2] + b"\0\0" + packed[4:]
    return IPv6Address(packed)
