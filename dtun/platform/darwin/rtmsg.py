"""Messages of routing sockets as bytes (net/route.h, net/if.h; route(4)). Pure.

    rt_msghdr (92)     | length u16 | version 5 | type u8 | interface u16 | pad u16 | flags i32 | addresses i32 |
                       | process i32 | sequence i32 | errno i32 | use i32 | which metrics u32 |
                       | locked metrics u32 | MTU u32 | other metrics 48 |
    if_msghdr (112)    | length u16 | version 5 | type u8 | addresses i32 | flags i32 | interface u16 | pad u16 |
                       | counters: 8, MTU u32, 84 |
    ifa_msghdr (20)    | length u16 | version 5 | type u8 | addresses i32 | flags i32 | interface u16 | pad u16 |
                       | metric i32 |

Socket addresses follow, those that the bits of "addresses" name, in the order of RTA_ORDER, each padded to a multiple
of four bytes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from struct import Struct

from dtun.network.state import Route
from dtun.platform.darwin import sockaddr
from dtun.platform.darwin.constants import (
    RTA_DST,
    RTA_GATEWAY,
    RTA_NETMASK,
    RTA_ORDER,
    RTF_GATEWAY,
    RTF_HOST,
    RTF_OURS,
    RTF_REJECT,
    RTF_STATIC,
    RTF_UP,
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

_LOOPBACK = {4: ip_address("127.0.0.1"), 6: ip_address("::1")}
_ROUTE_TYPES = frozenset({RTM_ADD, RTM_DELETE, RTM_CHANGE, RTM_GET})


@dataclass(frozen=True, slots=True)
class RoutingMessage:
    """A message of any of the three layouts; fields that a layout does not have are 0. `mtu` in bytes."""

    kind: int
    index: int
    flags: int
    addresses: Mapping[int, memoryview]
    process: int = 0
    sequence: int = 0
    errno: int = 0
    mtu: int = 0

    def address(self, which: int) -> sockaddr.Parsed | None:
        """The address of this RTA_ kind; None if it is missing or unknown. Not for masks."""
        data = self.addresses.get(which)
        return None if data is None else sockaddr.parse(data)


def request(kind: int, flags: int, addresses: Mapping[int, bytes], sequence: int) -> bytes:
    """An RTM_ADD, RTM_DELETE, RTM_CHANGE or RTM_GET message."""
    present = [bit for bit in RTA_ORDER if bit in addresses]
    body = b"".join(_padded(addresses[bit]) for bit in present)
    length = RT_MSGHDR.size + len(body)
    return (
        RT_MSGHDR.pack(length, RTM_VERSION, kind, 0, 0, flags, sum(present), 0, sequence, 0, 0, 0, 0, 0)
        + body
    )


def route_request(kind: int, route: Route, index: int, sequence: int) -> bytes:
    """The request that adds, changes or removes a route of ours. `index` is that of its device, 0 if it has none."""
    destination = route.destination
    flags = RTF_UP | RTF_STATIC | RTF_OURS
    if route.kind == "unreachable":
        flags |= RTF_REJECT | RTF_GATEWAY
        gateway = sockaddr.inet(_LOOPBACK[destination.version])
    elif route.gateway is not None:
        flags |= RTF_GATEWAY
        gateway = sockaddr.inet(route.gateway, index)
    else:
        gateway = sockaddr.link(index)
    addresses = {RTA_DST: sockaddr.inet(destination.network_address), RTA_GATEWAY: gateway}
    if destination.prefixlen == destination.max_prefixlen:
        flags |= RTF_HOST
    else:
        addresses[RTA_NETMASK] = sockaddr.mask(destination)
    return request(kind, flags, addresses, sequence)


def messages(data: bytes) -> Iterator[RoutingMessage]:
    """Parse one read or dump. Unknown types are skipped; parsing ends at a damaged message."""
    view = memoryview(data)
    while len(view) >= START.size:
        length, version, kind = START.unpack_from(view)
        if not START.size <= length <= len(view):
            return
        if version == RTM_VERSION and (message := _parse(kind, view[:length])) is not None:
            yield message
        view = view[length:]


def _parse(kind: int, view: memoryview) -> RoutingMessage | None:
    if kind in _ROUTE_TYPES and len(view) >= RT_MSGHDR.size:
        _, _, _, index, _, flags, bits, process, sequence, errno, _, _, _, mtu = RT_MSGHDR.unpack_from(view)
        addresses = _addresses(view[RT_MSGHDR.size :], bits)
        return RoutingMessage(kind, index, flags, addresses, process, sequence, errno, mtu)
    if kind == RTM_IFINFO and len(view) >= IF_MSGHDR.size:
        _, _, _, bits, flags, index, mtu = IF_MSGHDR.unpack_from(view)
        return RoutingMessage(kind, index, flags, _addresses(view[IF_MSGHDR.size :], bits), mtu=mtu)
    if kind in (RTM_NEWADDR, RTM_DELADDR) and len(view) >= IFA_MSGHDR.size:
        _, _, _, bits, flags, index, _ = IFA_MSGHDR.unpack_from(view)
        return RoutingMessage(kind, index, flags, _addresses(view[IFA_MSGHDR.size :], bits))
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
