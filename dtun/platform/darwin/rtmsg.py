"""Messages of routing sockets as bytes (net/route.h, net/if.h; route(4)).

    rt_msghdr (92)     | length u16 | version 5 | type u8 | interface u16 | pad u16 | flags i32 | addresses i32 |
                       | process i32 | sequence i32 | errno i32 | use i32 | which metrics u32 |
                       | locked metrics u32 | MTU u32 | other metrics 48 |
    if_msghdr (112)    | length u16 | version 5 | type u8 | addresses i32 | flags i32 | interface u16 | pad u16 |
                       | counters: 8, MTU u32, 84 |
    ifa_msghdr (20)    | length u16 | version 5 | type u8 | addresses i32 | flags i32 | interface u16 | pad u16 |
                       | metric i32 |

Behind each are socket addresses, those that the bits of "addresses" name, in the order of RTA_ORDER; each is padded to
a multiple of four bytes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from struct import Struct

from dtun.platform.darwin import sockaddr
from dtun.platform.darwin.constants import (
    RTA_ORDER,
    RTM_ADD,
    RTM_CHANGE,
    RTM_DELADDR,
    RTM_DELETE,
    RTM_GET,
    RTM_IFINFO,
    RTM_NEWADDR,
    RTM_VERSION,
)

START = Struct("<HBB")
RT_MSGHDR = Struct("<HBBHHiiiiiiIII48x")
IF_MSGHDR = Struct("<HBBiiH2x8xI84x")
IFA_MSGHDR = Struct("<HBBiiH2xi")

_ROUTE_TYPES = frozenset({RTM_ADD, RTM_DELETE, RTM_CHANGE, RTM_GET})


@dataclass(frozen=True, slots=True)
class Message:
    """A message of any of the three layouts. What a layout does not have is 0; `mtu` in bytes."""

    kind: int
    index: int
    flags: int
    addresses: Mapping[int, memoryview]
    process: int = 0
    sequence: int = 0
    errno: int = 0
    mtu: int = 0

    def address(self, which: int) -> sockaddr.Parsed | None:
        """The address of this RTA_ kind, if it is there and understood. Masks are not addresses."""
        data = self.addresses.get(which)
        return None if data is None else sockaddr.parse(data)


def request(kind: int, flags: int, addresses: Mapping[int, bytes], sequence: int) -> bytes:
    """A request about a route: RTM_ADD, RTM_DELETE, RTM_CHANGE or RTM_GET."""
    present = [bit for bit in RTA_ORDER if bit in addresses]
    body = b"".join(_padded(addresses[bit]) for bit in present)
    length = RT_MSGHDR.size + len(body)
    return (
        RT_MSGHDR.pack(length, RTM_VERSION, kind, 0, 0, flags, sum(present), 0, sequence, 0, 0, 0, 0, 0)
        + body
    )


def messages(data: bytes) -> Iterator[Message]:
    """The messages of one read or dump that are of a kind known here; nothing after one that is damaged."""
    view = memoryview(data)
    while len(view) >= START.size:
        length, version, kind = START.unpack_from(view)
        if not START.size <= length <= len(view):
            return
        if version == RTM_VERSION and (message := _parse(kind, view[:length])) is not None:
            yield message
        view = view[length:]


def _parse(kind: int, view: memoryview) -> Message | None:
    if kind in _ROUTE_TYPES and len(view) >= RT_MSGHDR.size:
        _, _, _, index, _, flags, bits, process, sequence, errno, _, _, _, mtu = RT_MSGHDR.unpack_from(view)
        addresses = _addresses(view[RT_MSGHDR.size :], bits)
        return Message(kind, index, flags, addresses, process, sequence, errno, mtu)
    if kind == RTM_IFINFO and len(view) >= IF_MSGHDR.size:
        _, _, _, bits, flags, index, mtu = IF_MSGHDR.unpack_from(view)
        return Message(kind, index, flags, _addresses(view[IF_MSGHDR.size :], bits), mtu=mtu)
    if kind in (RTM_NEWADDR, RTM_DELADDR) and len(view) >= IFA_MSGHDR.size:
        _, _, _, bits, flags, index, _ = IFA_MSGHDR.unpack_from(view)
        return Message(kind, index, flags, _addresses(view[IFA_MSGHDR.size :], bits))
    return None


def _addresses(view: memoryview, bits: int) -> dict[int, memoryview]:
    found = {}
    for bit in RTA_ORDER:
        if not bits & bit or not view:
            continue
        length = view[0]
        found[bit] = view[:length]
        view = view[sockaddr.padded(length) :]
    return found


def _padded(address: bytes) -> bytes:
    return address.ljust(sockaddr.padded(len(address)), b"\0")
