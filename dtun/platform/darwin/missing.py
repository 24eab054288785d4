"""Which parts of a desired state the kernel does not have."""

from collections.abc import Iterable

from dtun.network.difference import Thing
from dtun.network.state import Address, NetDevice, PointToPoint, Route, Sysctl
from dtun.platform.darwin import observed, sysctl
from dtun.platform.darwin.constants import IFF_UP


def missing(wanted: Iterable[Thing]) -> frozenset[Thing]:
    """Those that are not in the kernel, or not as dtun makes them. Name servers never count as missing.

    Raises:
        OSError: the kernel cannot be read.
    """
    wanted = list(wanted)
    return frozenset((*_routes(wanted), *_of_interfaces(wanted), *_sysctls(wanted)))


def _routes(wanted: Iterable[Thing]) -> list[Route]:
    ours = [thing for thing in wanted if isinstance(thing, Route)]
    there = {
        found.route.destination: found
        for version in {route.destination.version for route in ours}
        for found in observed.routes(version)
        if not found.scoped
    }
    return [
        route for route in ours if (found := there.get(route.destination)) is None or not found.is_ours(route)
    ]


def _of_interfaces(wanted: Iterable[Thing]) -> list[Thing]:
    ours = [thing for thing in wanted if isinstance(thing, NetDevice | PointToPoint)]
    if not ours:
        return []
    there = {one.name: one for one in observed.interfaces()}

    def has(device: str, local: Address) -> bool:
        return device in there and any(address == local for address, _ in there[device].members)

    def is_up(device: NetDevice) -> bool:
        one = there.get(device.name)
        return one is not None and bool(one.flags & IFF_UP) and one.mtu == device.mtu

    return [
        thing
        for thing in ours
        if not (is_up(thing) if isinstance(thing, NetDevice) else has(thing.device, thing.local))
    ]


def _sysctls(wanted: Iterable[Thing]) -> list[Sysctl]:
    return [thing for thing in wanted if isinstance(thing, Sysctl) and not sysctl.is_set(thing)]
