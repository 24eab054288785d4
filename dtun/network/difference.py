"""From what is to what should be: the ordered changes that turn one network state into another."""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

from dtun.network.state import Link, NetworkState, PointToPoint, Route

Thing = Link | PointToPoint | Route
Action = Literal["add", "replace", "remove"]
T = TypeVar("T", Link, PointToPoint, Route)

# What the kernel makes of a route without a metric. An IPv6 route of metric 0 gets the default, too.
DEFAULT_METRIC = {4: 0, 6: 1024}


@dataclass(frozen=True, slots=True)
class Change:
    """One step. `previous` is what a replacement takes the place of, and None otherwise."""

    action: Action
    what: Thing
    previous: Thing | None = None

    def __str__(self) -> str:
        """The step in the words of ip(8), such as "add route 10.0.0.0/16 dev dtun-demo"."""
        return f"{self.action} {describe(self.what)}"


def describe(thing: Thing) -> str:
    """What it is, in the words of ip(8), without a verb."""
    match thing:
        case Link(name, mtu):
            return f"link {name} mtu {mtu}"
        case PointToPoint(device, local, peer):
            return f"address {local} peer {peer} dev {device}"
        case Route(destination, device, gateway, source, metric):
            via = f" via {gateway}" if gateway else ""
            src = f" src {source}" if source else ""
            cost = "" if metric is None else f" metric {metric}"
            return f"route {destination}{via} dev {device}{src}{cost}"


def slot(thing: Thing) -> Hashable:
    """What only one thing in the kernel can have: two things with the same slot replace each other."""
    match thing:
        case Link(name, _):
            return name
        case PointToPoint(device, local, _):
            return device, local
        case Route(destination, _, _, _, metric):
            return destination, metric or DEFAULT_METRIC[destination.version]


def difference(desired: NetworkState, actual: NetworkState) -> tuple[Change, ...]:
    """The changes that make `actual` into `desired`, in an order that leaves no gap.

    What is new comes before what goes, and everything after what it stands on: links, addresses, routes;
    removals in reverse. Narrow routes are added first and removed last, so that a host route that keeps the
    tunnel's own packets out of the tunnel is there for as long as the wide route into it.
    """
    links, old_links = _changes(desired.links, actual.links, _link_order)
    addresses, old_addresses = _changes(desired.addresses, actual.addresses, _address_order)
    routes, old_routes = _changes(desired.routes, actual.routes, _route_order)
    return (
        *links,
        *addresses,
        *routes,
        *reversed(old_routes),
        *reversed(old_addresses),
        *reversed(old_links),
    )


def _changes(
    desired: frozenset[T], actual: frozenset[T], order: Callable[[T], tuple[object, ...]]
) -> tuple[list[Change], list[Change]]:
    """Additions with replacements, and removals; both in `order`."""
    going: dict[Hashable, list[T]] = {}
    for thing in sorted(actual - desired, key=order, reverse=True):
        going.setdefault(slot(thing), []).append(thing)

    def coming() -> Iterator[Change]:
        for thing in sorted(desired - actual, key=order):
            rivals = going.get(slot(thing))
            yield Change("replace", thing, rivals.pop()) if rivals else Change("add", thing)

    arrivals = list(coming())
    leavers = sorted((thing for rest in going.values() for thing in rest), key=order)
    return arrivals, [Change("remove", thing) for thing in leavers]


def _link_order(link: Link) -> tuple[object, ...]:
    return link.name, link.mtu


def _address_order(pair: PointToPoint) -> tuple[object, ...]:
    return pair.device, pair.local.version, pair.local.packed, pair.peer.version, pair.peer.packed


def _route_order(route: Route) -> tuple[object, ...]:
    destination = route.destination
    return (
        destination.version,
        -destination.prefixlen,
        destination.network_address.packed,
        route.metric or -1,
        route.device,
        str(route.gateway),
        str(route.source),
    )
