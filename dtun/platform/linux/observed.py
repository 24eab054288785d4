"""What the kernel has: links, addresses and routes as plain values, and the way to one address.

Every function raises NetlinkError when the kernel says no.
"""

import errno
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import TypeVar

from pyroute2.netlink.exceptions import NetlinkError

from dtun.network.difference import DEFAULT_METRIC
from dtun.network.state import Address, Network, Route, RouteKind
from dtun.platform.linux.netlink.dump import collect, query
from dtun.platform.linux.netlink.wire import (
    FAMILIES,
    IFA_ADDRESS,
    IFA_FLAGS,
    IFA_LOCAL,
    IFADDRMSG,
    IFINFOMSG,
    IFLA_IFNAME,
    IFLA_INFO_KIND,
    IFLA_LINKINFO,
    IFLA_MTU,
    RTA_DST,
    RTA_GATEWAY,
    RTA_MARK,
    RTA_METRICS,
    RTA_MULTIPATH,
    RTA_OIF,
    RTA_PREFSRC,
    RTA_PRIORITY,
    RTA_TABLE,
    RTA_VIA,
    RTAX_MTU,
    RTM_F_CLONED,
    RTM_F_FIB_MATCH,
    RTM_F_LOOKUP_TABLE,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETROUTE,
    RTMSG,
    RTN_THROW,
    RTN_UNICAST,
    RTN_UNREACHABLE,
    RTNH_F_DEAD,
    RTNH_F_LINKDOWN,
    U32,
    VERSIONS,
    attribute,
    attributes,
    number,
    text,
)

T = TypeVar("T")

_LOCAL_TABLE = 255
_KINDS: dict[int, RouteKind] = {RTN_UNICAST: "unicast", RTN_UNREACHABLE: "unreachable", RTN_THROW: "throw"}


@dataclass(frozen=True, slots=True)
class FoundRoute:
    """A route as the kernel has it; `mtu` in bytes if it sets one. `metric` is never None here.

    `unicast` is False for every kind that sends nothing (unreachable, blackhole, prohibit, throw), `alive` is where
    the link under it works.
    """

    route: Route
    protocol: int
    unicast: bool = True
    mtu: int | None = None
    alive: bool = True


@dataclass(frozen=True, slots=True)
class FoundLink:
    """A device: `flags` are IFF_..., `kind` the driver's, empty for hardware; `mtu` in bytes."""

    index: int
    name: str
    flags: int
    kind: str
    mtu: int


@dataclass(frozen=True, slots=True)
class FoundAddress:
    """An address of the host's: `network` is the peer's, if it has one; `flags` are IFA_F_..."""

    index: int
    local: Address
    network: Network
    flags: int


async def links() -> list[FoundLink]:
    """Every device."""

    def decode(part: memoryview) -> FoundLink:
        _, _, _, index, flags, _ = IFINFOMSG.unpack_from(part)
        found = attributes(part, IFINFOMSG.size)
        kind = attributes(found.get(IFLA_LINKINFO, memoryview(b""))).get(IFLA_INFO_KIND)
        return FoundLink(
            index, text(found.get(IFLA_IFNAME)), flags, text(kind), number(found.get(IFLA_MTU)) or 0
        )

    return await collect(RTM_GETLINK, IFINFOMSG.pack(0, 0, 0, 0, 0, 0), decode)


async def addresses() -> list[FoundAddress]:
    """Every address."""

    def decode(part: memoryview) -> FoundAddress | None:
        _, length, flags, _, index = IFADDRMSG.unpack_from(part)
        found = attributes(part, IFADDRMSG.size)
        far = found.get(IFA_ADDRESS)
        near = found.get(IFA_LOCAL, far)
        if near is None or far is None:
            return None
        network = ip_network((bytes(far), length), strict=False)
        wide_flags = number(found.get(IFA_FLAGS))
        return FoundAddress(index, ip_address(bytes(near)), network, wide_flags or flags)

    return await collect(RTM_GETADDR, IFADDRMSG.pack(0, 0, 0, 0, 0), decode)


async def routes(version: int, wanted: Callable[[int, int, int], bool] | None = None) -> list[FoundRoute]:
    """The routes of all tables but the kernel's own ("local").

    `wanted` is asked with prefix length, protocol and table whether one is of interest, which spares a full table the
    decoding of most of it.
    """
    family = FAMILIES[version]
    names: dict[int, str] = {}

    def decode(part: memoryview) -> FoundRoute | None:
        header = RTMSG.unpack_from(part)
        if header[0] != family or header[8] & RTM_F_CLONED or header[4] == _LOCAL_TABLE:
            return None
        if wanted is not None and not wanted(header[1], header[5], header[4]):
            return None
        return found_route(part, names)

    body = RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
    return await collect(RTM_GETROUTE, body, decode)


def matching(address: Address, mark: int | None = None) -> FoundRoute | None:
    """The entry that a packet to `address` matches, as it stands in its table; None if there is no way."""
    return _route_to(address, RTM_F_FIB_MATCH, mark)


def way_to(address: Address, mark: int | None = None) -> FoundRoute | None:
    """The answer for a packet to `address`: has a source; IPv4 does not tell who installed the route."""
    return _route_to(address, 0, mark)


def get(address: Address, flags: int = 0, mark: int | None = None) -> FoundRoute:
    """The kernel's own decision, with the table that it took.

    Raises:
        NetlinkError: with the errno that a sender would see.
    """
    family = FAMILIES[address.version]
    if address.version == 4:
        # IPv6 tells the table unasked, and refuses the question.
        flags |= RTM_F_LOOKUP_TABLE
    body = RTMSG.pack(family, address.max_prefixlen, 0, 0, 0, 0, 0, 0, flags)
    body += attribute(RTA_DST, address.packed)
    if mark is not None:
        body += attribute(RTA_MARK, U32.pack(mark))
    return found_route(memoryview(query(RTM_GETROUTE, body)), {})


def found_route(part: memoryview, names: dict[int, str]) -> FoundRoute:
    """Decode a struct rtmsg with its attributes; `names` remembers the devices' names, by index."""
    family, length, _, _, table, protocol, _, kind, flags = RTMSG.unpack_from(part)
    version = VERSIONS[family]
    found = attributes(part, RTMSG.size)
    hop, index = found, number(found.get(RTA_OIF))
    if hops := found.get(RTA_MULTIPATH):
        # struct rtnexthop | length u16 | flags u8 | hops u8 | index i32 | attributes |: the first stands for all.
        index = number(hops[4:8])
        hop = attributes(hops[: int.from_bytes(hops[:2], sys.byteorder)], 8)
    gateway = hop.get(RTA_GATEWAY)
    if gateway is None and (via := hop.get(RTA_VIA)):
        gateway = via[2:]
    source, metrics = found.get(RTA_PREFSRC), found.get(RTA_METRICS)
    address = bytes(found.get(RTA_DST, bytes(16 if version == 6 else 4)))
    exact = number(found.get(RTA_TABLE))
    route = Route(
        # Not by ip_network(), which would try what the version is.
        IPv4Network((address, length)) if version == 4 else IPv6Network((address, length)),
        # An IPv6 route that sends nothing is on the loopback device.
        _name(index, names) if kind == RTN_UNICAST else "",
        ip_address(bytes(gateway)) if gateway else None,
        ip_address(bytes(source)) if source else None,
        number(found.get(RTA_PRIORITY)) or DEFAULT_METRIC[version],
        table if exact is None else exact,
        _KINDS.get(kind, "unreachable"),
    )
    mtu = number(attributes(metrics).get(RTAX_MTU)) if metrics else None
    alive = not flags & (RTNH_F_DEAD | RTNH_F_LINKDOWN)
    return FoundRoute(route, protocol, kind == RTN_UNICAST, mtu, alive)


def _route_to(address: Address, flags: int, mark: int | None) -> FoundRoute | None:
    try:
        return get(address, flags, mark)
    except NetlinkError as error:
        # No route, or one of type unreachable, blackhole or prohibit.
        if error.code in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL, errno.EACCES):
            return None
        raise


def _name(index: int | None, names: dict[int, str]) -> str:
    """The device's name; empty where there is none (an unreachable route), or none any more."""
    if index is None:
        return ""
    name = names.get(index)
    if name is None:
        try:
            name = socket.if_indextoname(index)
        except OSError:
            name = ""
        names[index] = name
    return name
