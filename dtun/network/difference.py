"""From what is to what should be: the ordered changes that turn one network state into another."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Literal, TypeVar

from dtun.network.state import (
    MAIN_TABLE,
    ClampMss,
    Dns,
    DropIPv6OutsideTunnel,
    DropOtherTrafficToServer,
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
Action = Literal["add", "replace", "remove"]
Order = tuple[object, ...]
T = TypeVar("T", Sysctl, NetDevice, Filter, PointToPoint, Route, Rule, Dns)

# What the kernel makes of a route without a metric. An IPv6 route of metric 0 gets the default, too.
DEFAULT_METRIC = {4: 0, 6: 1024}

# Networks of a filter that are worth a line.
_NAMED = 5


@dataclass(frozen=True, slots=True)
class Change:
    """One step. `previous` is what a replacement takes the place of, and None otherwise."""

    action: Action
    what: Thing
    previous: Thing | None = None

    def __str__(self) -> str:
        """The step in the words of ip(8) and its kin, such as "add route 10.0.0.0/16 dev dtun-demo"."""
        return f"{self.action} {describe(self.what)}"


def describe(thing: Thing) -> str:  # noqa: PLR0911 - one for each kind
    """What it is, in the words of ip(8), sysctl(8), nft(8) and resolvectl(1), without a verb."""
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


def slot(thing: Thing) -> Hashable:
    """What only one thing in the kernel can have: two things with the same slot replace each other."""
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
    """The changes that make `actual` into `desired`, in an order that leaves no gap.

    What is new comes before what goes, and everything after what it stands on: sysctls, links, filters, addresses,
    routes, rules, name servers; removals in reverse. Narrow routes are added first and removed last, so that a host
    route that keeps the tunnel's own packets out of the tunnel is there for as long as the wide route into it.
    """
    kinds = (
        _changes(desired.sysctls, actual.sysctls, _sysctl_order),
        _changes(desired.devices, actual.devices, _link_order),
        _changes(desired.filters, actual.filters, _filter_order),
        _changes(desired.addresses, actual.addresses, _address_order),
        _changes(desired.routes, actual.routes, _route_order),
        _changes(desired.rules, actual.rules, _rule_order),
        _changes(desired.dns, actual.dns, _dns_order),
    )
    return (
        *(change for arrivals, _ in kinds for change in arrivals),
        *(change for _, leavers in reversed(kinds) for change in reversed(leavers)),
    )


def _changes(
    desired: frozenset[T], actual: frozenset[T], order: Callable[[T], Order]
) -> tuple[list[Change], list[Change]]:
    """Additions with replacements, and removals; both in `order`."""
    coming = sorted(desired - actual, key=order)
    going = sorted(actual - desired, key=order)
    if not coming or not going:
        # Nobody takes anybody's place: thousands of routes need not be asked for their slots.
        return [Change("add", thing) for thing in coming], [Change("remove", thing) for thing in going]
    rivals: dict[Hashable, list[T]] = {}
    for thing in reversed(going):
        rivals.setdefault(slot(thing), []).append(thing)
    arrivals = []
    for thing in coming:
        rival = rivals.get(slot(thing))
        arrivals.append(Change("replace", thing, rival.pop()) if rival else Change("add", thing))
    replaced = {change.previous for change in arrivals}
    return arrivals, [Change("remove", thing) for thing in going if thing not in replaced]


def _sysctl_order(sysctl: Sysctl) -> Order:
    return sysctl.name, sysctl.value


def _link_order(link: NetDevice) -> Order:
    return link.name, link.mtu


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
        case DropUnreachableIPv6():
            return "ip6 unreachable, by any device, drop"
        case DropIPv6OutsideTunnel(networks):
            beside = f" and to {', '.join(map(str, networks[:_NAMED]))}" if networks else ""
            more = f" and {len(networks) - _NAMED} more" if len(networks) > _NAMED else ""
            return f"ip6 only through tunnels{beside}{more}"
