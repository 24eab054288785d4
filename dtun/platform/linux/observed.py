"""What the kernel has: links, addresses and routes as plain values, and the route to one address.

Every function raises NetlinkError when the kernel refuses.
"""

import errno
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
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
    NEXTHOP_GRP,
    NHA_GATEWAY,
    NHA_GROUP,
    NHA_ID,
    NHA_OIF,
    NHMSG,
    RTA_DST,
    RTA_GATEWAY,
    RTA_MARK,
    RTA_METRICS,
    RTA_MULTIPATH,
    RTA_NH_ID,
    RTA_OIF,
    RTA_PREF,
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
    RTM_GETNEXTHOP,
    RTM_GETROUTE,
    RTMSG,
    RTN_THROW,
    RTN_UNICAST,
    RTN_UNREACHABLE,
    RTNH_F_DEAD,
    U32,
    VERSIONS,
    aligned,
    attribute,
    attributes,
    driver_of,
    number,
    text,
)

T = TypeVar("T")

_LOCAL_TABLE = 255
_HOP_SIZE = 8
_PREFERENCES = {b"\1": 1, b"\3": -1}  # ICMPV6_ROUTER_PREF_HIGH, ICMPV6_ROUTER_PREF_LOW: linux/icmpv6.h
_KINDS: dict[int, RouteKind] = {RTN_UNICAST: "unicast", RTN_UNREACHABLE: "unreachable", RTN_THROW: "throw"}


@dataclass(frozen=True, slots=True)
class FoundRoute:
    """A route of the kernel; `mtu` in bytes, if the route sets one. The route's `metric` is never None.

    `unicast` is False for the types that send nothing (unreachable, blackhole, prohibit, throw). `alive` is False while
    the kernel passes the route over: its device is down, or has no link and ignore_routes_with_linkdown is set. Of
    several hops, the first that is alive is in `route`. `preference` is the router's (RFC 4191): -1, 0 or 1. `nexthop`
    is the id of a nexthop object (ip-nexthop(8)), which has device and gateway.
    """

    route: Route
    protocol: int
    unicast: bool = True
    mtu: int | None = None
    alive: bool = True
    preference: int = 0
    nexthop: int | None = None


@dataclass(frozen=True, slots=True)
class NexthopObject:
    """A nexthop object: a hop, or a group of others by their ids. `alive`: as for a route."""

    device: str = ""
    gateway: Address | None = None
    alive: bool = True
    group: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class FoundLink:
    """A device: `flags` are IFF_..., `kind` is the driver's name (`driver_of`), empty for hardware; `mtu` in bytes."""

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
            index,
            text(found.get(IFLA_IFNAME)),
            flags,
            driver_of(text(kind), flags),
            number(found.get(IFLA_MTU)) or 0,
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
    found = await collect(RTM_GETROUTE, body, decode)
    if not any(_needs_nexthop(one) for one in found):
        return found
    objects = dict(
        await collect(RTM_GETNEXTHOP, NHMSG.pack(0, 0, 0, 0), lambda part: _nexthop_object(part, names))
    )
    return [with_nexthop(one, objects.get) for one in found]


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
    return with_nexthop(found_route(memoryview(query(RTM_GETROUTE, body)), {}), _query_nexthop)


def with_nexthop(found: FoundRoute, objects: Callable[[int], NexthopObject | None]) -> FoundRoute:
    """Return the route with the device and gateway of its nexthop object, of a group's first one that is alive."""
    if not _needs_nexthop(found) or found.nexthop is None:
        return found
    named = objects(found.nexthop)
    if named is None:
        return replace(found, alive=False)
    hops = [hop for hop in map(objects, named.group) if hop is not None] if named.group else [named]
    hop = next((hop for hop in hops if hop.alive), hops[0] if hops else NexthopObject(alive=False))
    return replace(
        found,
        route=replace(found.route, device=hop.device, gateway=hop.gateway),
        alive=hop.alive and bool(hop.device),
    )


def found_route(part: memoryview, names: dict[int, str]) -> FoundRoute:
    """Decode a struct rtmsg with its attributes; `names` remembers the devices' names, by index."""
    family, length, _, _, table, protocol, _, kind, flags = RTMSG.unpack_from(part)
    version = VERSIONS[family]
    found = attributes(part, RTMSG.size)
    hop, index = found, number(found.get(RTA_OIF))
    if hops := found.get(RTA_MULTIPATH):
        flags, index, hop = _first_alive(hops)
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
    # For a link that is down, the kernel adds RTNH_F_DEAD if it ignores such routes.
    alive = not flags & RTNH_F_DEAD
    preference = _PREFERENCES.get(bytes(found.get(RTA_PREF, b"")), 0)
    return FoundRoute(
        route, protocol, kind == RTN_UNICAST, mtu, alive, preference, number(found.get(RTA_NH_ID))
    )


def _first_alive(hops: memoryview) -> tuple[int, int | None, dict[int, memoryview]]:
    """The flags, the device's index and the attributes of the first hop that is alive, else of the first.

    struct rtnexthop | length u16 | flags u8 | hops u8 | index i32 | attributes |
    """
    found: list[tuple[int, int | None, dict[int, memoryview]]] = []
    while len(hops) >= _HOP_SIZE:
        length = int.from_bytes(hops[:2], sys.byteorder)
        if not _HOP_SIZE <= length <= len(hops):
            break
        found.append((hops[2], number(hops[4:8]), attributes(hops[:length], _HOP_SIZE)))
        hops = hops[aligned(length) :]
    dead: tuple[int, int | None, dict[int, memoryview]] = (RTNH_F_DEAD, None, {})
    return next((one for one in found if not one[0] & RTNH_F_DEAD), found[0] if found else dead)


def _needs_nexthop(found: FoundRoute) -> bool:
    """Whether the kernel has told only the id (net.ipv4.nexthop_compat_mode = 0)."""
    return found.nexthop is not None and found.unicast and not found.route.device


def _nexthop_object(part: memoryview, names: dict[int, str]) -> tuple[int, NexthopObject] | None:
    """Decode a struct nhmsg with its attributes: the id, and what it stands for."""
    _, _, _, flags = NHMSG.unpack_from(part)
    found = attributes(part, NHMSG.size)
    identifier = number(found.get(NHA_ID))
    if identifier is None:
        return None
    if group := found.get(NHA_GROUP):
        whole = group[: len(group) // NEXTHOP_GRP.size * NEXTHOP_GRP.size]
        return identifier, NexthopObject(group=tuple(entry[0] for entry in NEXTHOP_GRP.iter_unpack(whole)))
    device, gateway = _name(number(found.get(NHA_OIF)), names), found.get(NHA_GATEWAY)
    # When the link goes, the kernel removes the object and its routes.
    dead = bool(flags & RTNH_F_DEAD)
    return identifier, NexthopObject(device, ip_address(bytes(gateway)) if gateway else None, not dead)


def _query_nexthop(identifier: int) -> NexthopObject | None:
    body = NHMSG.pack(0, 0, 0, 0) + attribute(NHA_ID, U32.pack(identifier))
    try:
        found = _nexthop_object(memoryview(query(RTM_GETNEXTHOP, body)), {})
    except NetlinkError as error:
        if error.code == errno.ENOENT:  # removed meanwhile
            return None
        raise
    return None if found is None else found[1]


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
