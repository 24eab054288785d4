"""What the kernel has: links, addresses and routes as plain values, and the route to one address.

Every function raises NetlinkError when the kernel refuses.
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
    """A route of the kernel; `mtu` in bytes, if the route sets one. The route's `metric` is never None.

    `unicast` is False for the types that send nothing (unreachable, blackhole, prohibit, throw). `alive` is False while
    the link is down.
    """

    route: Route
    protocol: int
    unicast: bool = True
    mtu: int | None = None
    alive: bool = True


@dataclass(frozen=True, slots=True)
class FoundLink:
    """A device: `flags` are IFF_..., `kind` is the driver's name, empty for hardware; `mtu` in bytes."""

    index: int
    name: str
    flags: int
    kind: str
    mtu: int


@dataclass(frozen=True, slots=True)
class FoundAddress:
    """An address of the host: `network` is the peer's, if it has a peer; `flags` are IFA_F_..."""

    index: int
    local: Address
    network: Network
    flags: int


async def links() -> list[FoundLink]:
    """Return every device."""

    def decode(part: memoryview) -> FoundLink:
        _, _, _, index, flags, _ = IFINFOMSG.unpack_from(part)
        found = attributes(part, IFINFOMSG.size)
        kind = attributes(found.get(IFLA_LINKINFO, memoryview(b""))).get(IFLA_INFO_KIND)
        return FoundLink(
            index, text(found.get(IFLA_IFNAME)), flags, text(kind), number(found.get(IFLA_MTU)) or 0
        )

    return await collect(RTM_GETLINK, IFINFOMSG.pack(0, 0, 0, 0, 0, 0), decode)


async def addresses() -> list[FoundAddress]:
    """Return every address."""

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
    """Return the routes of all tables but "local", which is the kernel's own.

    `wanted` decides from prefix length, protocol and table whether a route is decoded, which saves time with a full
    routing table.
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
    """Return the entry that a packet to `address` matches, as in its table; None if there is no route."""
    return _look_up(address, RTM_F_FIB_MATCH, mark)


def route_to(address: Address, mark: int | None = None) -> FoundRoute | None:
    """Return the route of a packet to `address`, with its source; for IPv4 without the protocol."""
    return _look_up(address, 0, mark)


def get(address: Address, flags: int = 0, mark: int | None = None) -> FoundRoute:
    """Look up the route of a packet, with its table. `flags` are RTM_F_...

    Raises:
        NetlinkError: with the errno that a sender would get.
    """
    family = FAMILIES[address.version]
    if address.version == 4:
        # IPv6 always returns the table, and refuses this flag.
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
        # struct rtnexthop | length u16 | flags u8 | hops u8 | index i32 | attributes |: only the first is used.
        index = number(hops[4:8])
        hop = attributes(hops[: int.from_bytes(hops[:2], sys.byteorder)], 8)
    gateway = hop.get(RTA_GATEWAY)
    if gateway is None and (via := hop.get(RTA_VIA)):
        gateway = via[2:]
    source, metrics = found.get(RTA_PREFSRC), found.get(RTA_METRICS)
    address = bytes(found.get(RTA_DST, bytes(16 if version == 6 else 4)))
    exact = number(found.get(RTA_TABLE))
    route = Route(
        # Not ip_network(), which guesses the version.
        IPv4Network((address, length)) if version == 4 else IPv6Network((address, length)),
        # IPv6 routes that send nothing are on the loopback device.
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


def _look_up(address: Address, flags: int, mark: int | None) -> FoundRoute | None:
    try:
        return get(address, flags, mark)
    except NetlinkError as error:
        # No route, or one of type unreachable, blackhole or prohibit.
        if error.code in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL, errno.EACCES):
            return None
        raise


def _name(index: int | None, names: dict[int, str]) -> str:
    """Return the device's name; empty if a route has no device, or the device is gone."""
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
