"""Which of the applied things are missing from the kernel.

Routes are compared as tuples of numbers and bytes, so that thousands take a few milliseconds.
"""

import asyncio
from collections.abc import Iterable
from itertools import islice
from typing import Any

from dtun.network.difference import DEFAULT_METRIC, Thing
from dtun.network.state import NetDevice, PointToPoint, Route, Rule
from dtun.platform.linux.netlink.dump import collect
from dtun.platform.linux.netlink.route_batches import ROUTE_TYPES
from dtun.platform.linux.netlink.sockets import device_index
from dtun.platform.linux.netlink.wire import (
    FAMILIES,
    FIB_RULE_HDR,
    FIB_RULE_INVERT,
    FR_ACT_TO_TBL,
    FRA_FWMARK,
    FRA_FWMASK,
    FRA_PRIORITY,
    FRA_PROTOCOL,
    FRA_SUPPRESS_PREFIXLEN,
    FRA_TABLE,
    IFA_ADDRESS,
    IFA_LOCAL,
    IFADDRMSG,
    IFF_UP,
    IFINFOMSG,
    IFLA_MTU,
    ROUTE_PROTOCOL,
    RTA_DST,
    RTA_GATEWAY,
    RTA_MULTIPATH,
    RTA_OIF,
    RTA_PREFSRC,
    RTA_PRIORITY,
    RTA_TABLE,
    RTA_VIA,
    RTM_F_CLONED,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETROUTE,
    RTM_GETRULE,
    RTMSG,
    RTN_UNICAST,
    VERSIONS,
    attributes,
    number,
)

RouteKey = tuple[int, int, bytes, int, int, int | None, bytes | None, bytes | None]
RuleKey = tuple[int, int, int, int | None, int | None]

_NO_SUPPRESSION = 0xFFFFFFFF
_WHOLE_MARK = 0xFFFFFFFF
_KERNEL_TABLES = (253, 254, 255)

# Names of devices, flow, tunnel id, l3mdev, users, IP protocol, ports: linux/fib_rules.h.
_SELECTORS = {3, 17, 11, 12, 19, 20, 22, 23, 24}
# Routes that are compared before other tasks run.
_AT_ONCE = 1000


async def missing(things: Iterable[Thing]) -> set[Any]:
    """Return those devices, addresses, routes and rules of `things` that the kernel does not have, or not as dtun's.

    Raises:
        NetlinkError: the kernel cannot be read.
    """
    by_kind: dict[type, list[Any]] = {}
    for thing in things:
        by_kind.setdefault(type(thing), []).append(thing)
    absent: set[Any] = set()
    if links := by_kind.get(NetDevice):
        absent |= await _missing_links(links)
    if pairs := by_kind.get(PointToPoint):
        absent |= await _missing_pairs(pairs)
    for version in VERSIONS.values():
        if routes := [route for route in by_kind.get(Route, ()) if route.destination.version == version]:
            absent |= await _missing_routes(version, routes)
        if rules := [rule for rule in by_kind.get(Rule, ()) if rule.version == version]:
            present = await _rules(version)
            absent |= {rule for rule in rules if rule_key(rule) not in present}
    return absent


async def _missing_links(links: Iterable[NetDevice]) -> set[NetDevice]:
    def decode(part: memoryview) -> tuple[int, int | None] | None:
        _, _, _, index, flags, _ = IFINFOMSG.unpack_from(part)
        return (index, number(attributes(part, IFINFOMSG.size).get(IFLA_MTU))) if flags & IFF_UP else None

    up = set(await collect(RTM_GETLINK, IFINFOMSG.pack(0, 0, 0, 0, 0, 0), decode))
    return {link for link in links if (device_index(link.name), link.mtu) not in up}


async def _missing_pairs(pairs: Iterable[PointToPoint]) -> set[PointToPoint]:
    def decode(part: memoryview) -> tuple[int, bytes, bytes] | None:
        index = IFADDRMSG.unpack_from(part)[4]
        found = attributes(part, IFADDRMSG.size)
        local, peer = found.get(IFA_LOCAL), found.get(IFA_ADDRESS)
        return None if local is None or peer is None else (index, bytes(local), bytes(peer))

    present = set(await collect(RTM_GETADDR, IFADDRMSG.pack(0, 0, 0, 0, 0), decode))
    return {
        pair
        for pair in pairs
        if (device_index(pair.device), pair.local.packed, pair.peer.packed) not in present
    }


async def _missing_routes(version: int, routes: Iterable[Route]) -> set[Route]:
    present = await _routes(version)
    indexes: dict[str, int | None] = {"": 0}
    absent: set[Route] = set()
    rest = iter(routes)
    while some := list(islice(rest, _AT_ONCE)):
        for route in some:
            if route.device not in indexes:
                indexes[route.device] = device_index(route.device)
            if route_key(route, indexes[route.device]) not in present:
                absent.add(route)
        await asyncio.sleep(0)
    return absent


async def _routes(version: int) -> set[RouteKey]:
    body = RTMSG.pack(FAMILIES[version], 0, 0, 0, 0, ROUTE_PROTOCOL, 0, 0, 0)
    # A kernel without that family returns all its routes.
    return set(await collect(RTM_GETROUTE, body, lambda part: route_seen(part, version)))


def route_seen(part: memoryview, version: int) -> RouteKey | None:
    """Decode a struct rtmsg with its attributes to compare it with `route_key`; None if it is not dtun's."""
    family, length, _, _, table, protocol, _, kind, flags = RTMSG.unpack_from(part)
    if protocol != ROUTE_PROTOCOL or family != FAMILIES[version] or flags & RTM_F_CLONED:
        return None
    found = attributes(part, RTMSG.size)
    if RTA_MULTIPATH in found:
        return None
    gateway = found.get(RTA_GATEWAY)
    if gateway is None and (via := found.get(RTA_VIA)):
        gateway = via[2:]
    exact = number(found.get(RTA_TABLE))
    destination, source = found.get(RTA_DST), found.get(RTA_PREFSRC)
    return (
        kind,
        table if exact is None else exact,
        b"" if destination is None or not length else bytes(destination),
        length,
        number(found.get(RTA_PRIORITY)) or DEFAULT_METRIC[version],
        # IPv6 routes that send nothing are on the loopback device.
        number(found.get(RTA_OIF)) if kind == RTN_UNICAST else 0,
        None if gateway is None else bytes(gateway),
        None if source is None else bytes(source),
    )


def route_key(route: Route, index: int | None) -> RouteKey:
    """Return what `route_seen` returns for this route; `index` is the device's."""
    destination = route.destination
    version, length = destination.version, destination.prefixlen
    return (
        ROUTE_TYPES[route.kind],
        route.table,
        # The kernel omits the address of a default route.
        destination.network_address.packed if length else b"",
        length,
        route.metric or DEFAULT_METRIC[version],
        index,
        route.gateway.packed if route.gateway else None,
        route.source.packed if route.source else None,
    )


async def _rules(version: int) -> set[RuleKey]:
    family = int(FAMILIES[version])

    def decode(part: memoryview) -> RuleKey | None:
        seen, destination, source, tos, table, _, _, action, flags = FIB_RULE_HDR.unpack_from(part)
        found = attributes(part, FIB_RULE_HDR.size)
        protocol = found.get(FRA_PROTOCOL)
        if seen != family or action != FR_ACT_TO_TBL or destination or source or tos:
            return None
        if protocol is None or protocol[0] != ROUTE_PROTOCOL:
            return None
        mark = number(found.get(FRA_FWMARK))
        if (mark is not None) != bool(flags & FIB_RULE_INVERT):
            return None
        if mark is not None and number(found.get(FRA_FWMASK)) != _WHOLE_MARK:
            return None
        suppressed = number(found.get(FRA_SUPPRESS_PREFIXLEN))
        exact = number(found.get(FRA_TABLE))
        return (
            version,
            number(found.get(FRA_PRIORITY)) or 0,
            table if exact is None else exact,
            mark,
            None if suppressed == _NO_SUPPRESSION else suppressed,
        )

    return set(await collect(RTM_GETRULE, FIB_RULE_HDR.pack(family, 0, 0, 0, 0, 0, 0, 0, 0), decode))


async def rule_for(version: int, table: int, mark: int | None, length: int) -> int | None:
    """Return the priority of the first rule, of any program, that selects `table` for packets with `mark`.

    `length` is the prefix length of the matching route, which a rule may suppress.

    Raises:
        NetlinkError: the kernel cannot be read.
    """
    family = int(FAMILIES[version])

    def decode(part: memoryview) -> int | None:
        seen, _, _, _, short, _, _, action, flags = FIB_RULE_HDR.unpack_from(part)
        found = attributes(part, FIB_RULE_HDR.size)
        exact = number(found.get(FRA_TABLE))
        if seen != family or action != FR_ACT_TO_TBL or (short if exact is None else exact) != table:
            return None
        wanted, mask = number(found.get(FRA_FWMARK)) or 0, number(found.get(FRA_FWMASK)) or 0
        if mask and (((mark or 0) & mask) == wanted) == bool(flags & FIB_RULE_INVERT):
            return None
        suppressed = number(found.get(FRA_SUPPRESS_PREFIXLEN))
        if suppressed not in (None, _NO_SUPPRESSION) and length <= suppressed:
            return None
        return number(found.get(FRA_PRIORITY)) or 0

    body = FIB_RULE_HDR.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
    return min(await collect(RTM_GETRULE, body, decode), default=None)


async def plain_rules(version: int) -> list[tuple[int, int]]:
    """Return priority and table of other programs' rules that select a table for all packets, or all without a mark.

    Those of the kernel's own tables (local, main, default) are left out, and those for one input device.

    Raises:
        NetlinkError: the kernel cannot be read.
    """
    family = int(FAMILIES[version])

    def decode(part: memoryview) -> tuple[int, int] | None:
        seen, destination, source, tos, short, _, _, action, flags = FIB_RULE_HDR.unpack_from(part)
        found = attributes(part, FIB_RULE_HDR.size)
        protocol, exact = found.get(FRA_PROTOCOL), number(found.get(FRA_TABLE))
        table = short if exact is None else exact
        marked = number(found.get(FRA_FWMARK)) is not None and not flags & FIB_RULE_INVERT
        inverted = FRA_FWMARK not in found and flags & FIB_RULE_INVERT
        if seen != family or action != FR_ACT_TO_TBL or destination or source or tos or marked or inverted:
            return None
        if (protocol is not None and protocol[0] == ROUTE_PROTOCOL) or table in _KERNEL_TABLES:
            return None
        if _SELECTORS & found.keys() or number(found.get(FRA_SUPPRESS_PREFIXLEN)) not in (
            None,
            _NO_SUPPRESSION,
        ):
            return None
        return number(found.get(FRA_PRIORITY)) or 0, table

    return sorted(await collect(RTM_GETRULE, FIB_RULE_HDR.pack(family, 0, 0, 0, 0, 0, 0, 0, 0), decode))


def rule_key(rule: Rule) -> RuleKey:
    """Return what `_rules` returns for this rule."""
    return rule.version, rule.priority, rule.table, rule.unless_mark, rule.suppress_prefix_length
