"""Which of the things that dtun wants in the kernel are there, and which are not."""

from collections.abc import Iterable

from dtun.network.difference import Thing
from dtun.network.state import Address, NetDevice, PointToPoint, Route, Sysctl
from dtun.platform.darwin import lookup, settings
from dtun.platform.darwin.constants import IFF_UP


def missing(wanted: Iterable[Thing]) -> frozenset[Thing]:
    """Those that are not there, or not as dtun makes them. Name servers count as there.

    Raises OSError if the kernel does not answer.
    """
    wanted = list(wanted)
    return frozenset((*_routes(wanted), *_from_interfaces(wanted), *_settings(wanted)))


def _routes(wanted: Iterable[Thing]) -> list[Route]:
    ours = [thing for thing in wanted if isinstance(thing, Route)]
    there = {
        found.route.destination: found
        for version in {route.destination.version for route in ours}
        for found in lookup.table(version)
        if not found.scoped
    }
    return [
        route for route in ours if (found := there.get(route.destination)) is None or not found.is_ours(route)
    ]


def _from_interfaces(wanted: Iterable[Thing]) -> list[Thing]:
    ours = [thing for thing in wanted if isinstance(thing, NetDevice | PointToPoint)]
    if not ours:
        return []
    there = {one.name: one for one in lookup.interfaces()}

    def has(device: str, local: Address) -> bool:
        return device in there and any(address == local for address, _ in there[device].members)

    def is_up(link: NetDevice) -> bool:
        one = there.get(link.name)
        return one is not None and bool(one.flags & IFF_UP) and one.mtu == link.mtu

    return [
        thing
        for thing in ours
        if not (is_up(thing) if isinstance(thing, NetDevice) else has(thing.device, thing.local))
    ]


def _settings(wanted: Iterable[Thing]) -> list[Sysctl]:
    return [thing for thing in wanted if isinstance(thing, Sysctl) and not settings.is_set(thing)]
