"""The ordered changes that turn one network state into another. Pure."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Literal, TypeVar

from dtun.network.state import (
    MAIN_TABLE,
    AnswerDirectly,
    ClampMss,
    Dns,
    DropOtherTrafficToServer,
    DropOutsideTunnel,
    DropUnreachableIPv6,
    Filter,
    Masquerade,
    NetDevice,
    NetworkState,
    PointToPoint,
    Route,
    Rule,
    Sysctl,
)

Thing = Sysctl | NetDevice | Filter | PointToPoint | Route | Rule | Dns
"""Any part of a network state."""

Action = Literal["add", "replace", "remove"]
Order = tuple[object, ...]
T = TypeVar("T", Sysctl, NetDevice, Filter, PointToPoint, Route, Rule, Dns)

# The kernel's metric for a route without one. An IPv6 route of metric 0 gets it, too.
DEFAULT_METRIC = {4: 0, 6: 1024}

# Networks of a filter that are named in its description.
_NAMED = 5


@dataclass(frozen=True, slots=True)
class Change:
    """One step. `previous` is what a "replace" replaces; otherwise None."""

    action: Action
    what: Thing
    previous: Thing | None = None

    def __str__(self) -> str:
        """In the syntax of ip(8), such as "add route 10.0.0.0/16 dev dtun-demo"."""
        return f"{self.action} {describe(self.what)}"


def describe(thing: Thing) -> str:  # noqa: PLR0911 - one for each kind
    """One line in the syntax of ip(8), sysctl(8), nft(8) or resolvectl(1), without a verb."""
    match thing:
        case Sysctl(name, value):
            return f"sysctl {name}={value}"
        case NetDevice(name, mtu):
            return f"link {name} mtu {mtu}"
        case PointToPoint(device, local, peer):
            return f"address {local} peer {peer} dev {device}"
        case Route():
            return _describe_route(thing)
        case Rule():
            return _describe_rule(thing)
        case Dns(device, servers, domains):
            names = ["domain", *domains] if domains else []
            return " ".join(["dns", *map(str, servers), *names, "dev", device])
        case _:
            return f"filter {_describe_filter(thing)}"


def unique_key(thing: Thing) -> Hashable:
    """The key by which the kernel tells things of one kind apart: a new thing replaces one with the same key."""
    match thing:
        case Route():
            destination = thing.destination
            return destination, thing.metric or DEFAULT_METRIC[destination.version], thing.table
        case NetDevice(name) | Sysctl(name):
            return name
        case PointToPoint(device, local, _):
            return device, local
        case Dns(device):
            return device
        case _:
            return thing


def difference(desired: NetworkState, actual: NetworkState) -> tuple[Change, ...]:
    """The changes that turn `actual` into `desired`, in an order that leaves no gap.

    Additions come before removals, and each kind after those that it depends on: sysctls, devices, filters, addresses,
    routes, rules, name servers; removals in reverse order. Narrow routes are added first and removed last, so that the
    host route to a server exists for as long as a wide route into the tunnel.
    """
    kinds = (
        _changes(desired.sysctls, actual.sysctls, _sysctl_order),
        _changes(desired.devices, actual.devices, _device_order),
        _changes(desired.filters, actual.filters, _filter_order),
        _changes(desired.addresses, actual.addresses, _address_order),
        _changes(desired.routes, actual.routes, _route_order),
        _changes(desired.rules, actual.rules, _rule_order),
        _changes(desired.dns, actual.dns, _dns_order),
    )
    return (
        *(change for additions, _ in kinds for change in additions),
        *(change for _, removals in reversed(kinds) for change in reversed(removals)),
    )


def _changes(
    desired: frozenset[T], actual: frozenset[T], order: Callable[[T], Order]
) -> tuple[list[Change], list[Change]]:
    """Additions with replacements, and removals; both in `order`."""
    new = sorted(desired - actual, key=order)
    old = sorted(actual - desired, key=order)
    if not new or not old:
        # No replacements: saves the keys of thousands of routes.
        return [Change("add", thing) for thing in new], [Change("remove", thing) for thing in old]
    old_by_key: dict[Hashable, list[T]] = {}
    for thing in reversed(old):
        old_by_key.setdefault(unique_key(thing), []).append(thing)
    additions = []
    for thing in new:
        same_key = old_by_key.get(unique_key(thing))
        additions.append(Change("replace", thing, same_key.pop()) if same_key else Change("add", thing))
    replaced = {change.previous for change in additions}
    return additions, [Change("remove", thing) for thing in old if thing not in replaced]


def _sysctl_order(sysctl: Sysctl) -> Order:
    # Forwarding makes the kernel drop the routes of router advertisements, unless accept_ra is set before.
    return not sysctl.name.endswith(".accept_ra"), sysctl.name, sysctl.value


def _device_order(device: NetDevice) -> Order:
    return device.name, device.mtu


def _filter_order(thing: Filter) -> Order:
    return type(thing).__name__, str(thing)


def _address_order(pair: PointToPoint) -> Order:
    return pair.device, _address(pair.local), _address(pair.peer)


def _route_order(route: Route) -> Order:
    destination = route.destination
    return (
        destination.version,
        -destination.prefixlen,
        int(destination.network_address),
        -1 if route.metric is None else route.metric,
        route.table,
        route.kind,
        route.device,
        _address(route.gateway),
        _address(route.source),
    )


def _rule_order(rule: Rule) -> Order:
    mark = -1 if rule.unless_mark is None else rule.unless_mark
    suppressed = -1 if rule.suppress_prefix_length is None else rule.suppress_prefix_length
    return rule.version, rule.priority, rule.table, mark, suppressed


def _dns_order(dns: Dns) -> Order:
    return dns.device, tuple(map(_address, dns.servers)), dns.domains


def _address(address: IPv4Address | IPv6Address | None) -> tuple[int, int]:
    """None first, then IPv4."""
    return (0, 0) if address is None else (address.version, int(address))


def _describe_route(route: Route) -> str:
    words: list[str] = [] if route.kind == "unicast" else [route.kind]
    words.append(str(route.destination))
    if route.gateway:
        words += ["via", str(route.gateway)]
    if route.device:
        words += ["dev", route.device]
    if route.source:
        words += ["src", str(route.source)]
    if route.metric is not None:
        words += ["metric", str(route.metric)]
    if route.table != MAIN_TABLE:
        words += ["table", str(route.table)]
    return f"route {' '.join(words)}"


def _describe_rule(rule: Rule) -> str:
    family = " -6" if rule.version == 6 else ""
    mark = "" if rule.unless_mark is None else f" not fwmark {rule.unless_mark:#x}"
    table = "main" if rule.table == MAIN_TABLE else str(rule.table)
    least = rule.suppress_prefix_length
    suppressed = "" if least is None else f" suppress_prefixlength {least}"
    return f"rule{family} priority {rule.priority}{mark} table {table}{suppressed}"


def _describe_filter(thing: Filter) -> str:
    match thing:
        case Masquerade(inside, outside):
            return f"iifname {inside} oifname {outside} masquerade"
        case ClampMss(device, mtu):
            return f"forward {device} tcp maxseg for mtu {mtu}"
        case DropOtherTrafficToServer(server, port):
            return f"to {server} only udp dport {port}"
        case AnswerDirectly(device, mark):
            return f"mark {mark:#x} for connections from outside {device} to this host"
        case DropUnreachableIPv6():
            return "drop ip6 to unreachable destinations on any device"
        case DropOutsideTunnel(version, networks):
            allowed = f" except to {', '.join(map(str, networks[:_NAMED]))}" if networks else ""
            more = f" and {len(networks) - _NAMED} more" if len(networks) > _NAMED else ""
            return f"drop {'ip' if version == 4 else 'ip6'} outside tunnels{allowed}{more}"
