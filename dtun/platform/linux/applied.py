"""What this process has put in the kernel, and the devices that it belongs to."""

from collections.abc import Collection
from dataclasses import fields, replace
from typing import Any

from dtun.network.difference import DEFAULT_METRIC, Thing
from dtun.network.state import (
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
from dtun.platform.linux import observed
from dtun.platform.linux.netlink.dump import unavailable_if_refused
from dtun.platform.linux.netlink.wire import IFF_UP, ROUTE_PROTOCOL

_KINDS = tuple(field.name for field in fields(NetworkState))


class Applied:
    """What is applied, by kind. Mutable sets: to copy ten thousand routes takes longer than to change one."""

    def __init__(self) -> None:
        self.sysctls: set[Sysctl] = set()
        self.devices: set[NetDevice] = set()
        self.filters: set[Filter] = set()
        self.addresses: set[PointToPoint] = set()
        self.routes: set[Route] = set()
        self.rules: set[Rule] = set()
        self.dns: set[Dns] = set()

    def __len__(self) -> int:
        return sum(len(getattr(self, kind)) for kind in _KINDS)

    def things(self) -> list[Thing]:
        """Return all of them."""
        return [thing for kind in _KINDS for thing in getattr(self, kind)]

    def state(self) -> NetworkState:
        """Return them as an immutable value."""
        return NetworkState(**{kind: frozenset(getattr(self, kind)) for kind in _KINDS})

    def add(self, thing: Thing) -> None:
        self._set_of(thing).add(thing)

    def discard(self, thing: Thing) -> None:
        self._set_of(thing).discard(thing)

    def discard_device(self, name: str) -> set[Thing]:
        """Discard a device that is gone, with everything that belongs to it, and return all that."""
        discarded: set[Thing] = set()
        for kind in ("devices", "addresses", "routes", "dns"):
            things: set[Any] = getattr(self, kind)
            gone = {thing for thing in things if device_of(thing) == name}
            things -= gone
            discarded |= gone
        return discarded

    def _set_of(self, thing: Thing) -> set[Any]:  # noqa: PLR0911 - one for each kind
        match thing:
            case Route():
                return self.routes
            case NetDevice():
                return self.devices
            case PointToPoint():
                return self.addresses
            case Rule():
                return self.rules
            case Sysctl():
                return self.sysctls
            case Dns():
                return self.dns
            case _:
                return self.filters


class Devices:
    """This process's TUN devices: `own` with their indexes, and those that desired states still name, but are gone.

    `closed` are gone because we closed them; `lost` were removed, renamed or moved by another program, each with what
    was applied to it.
    """

    def __init__(self) -> None:
        self.own: dict[str, int] = {}
        self.closed: set[str] = set()
        self.lost: dict[str, set[Thing]] = {}

    @property
    def gone(self) -> set[str]:
        """The devices to which nothing can be applied."""
        return self.closed.union(self.lost)

    def created(self, name: str, index: int) -> None:
        self.own[name] = index
        self.closed.discard(name)
        self.lost.pop(name, None)

    def removed(self, name: str) -> int | None:
        """We have closed it. Returns the index that it had, if it was not lost before."""
        self.closed.add(name)
        self.lost.pop(name, None)
        return self.own.pop(name, None)


def device_of(thing: Thing) -> str:
    """Return the device with which a thing is removed; empty if it outlives every device."""
    match thing:
        case NetDevice(name):
            return name
        case PointToPoint() | Route() | Dns():
            return thing.device
        case (
            Sysctl()
            | Rule()
            | Masquerade()
            | ClampMss()
            | DropOtherTrafficToServer()
            | DropUnreachableIPv6()
            | DropOutsideTunnel()
            | AnswerDirectly()
        ):
            return ""


def without_devices(state: NetworkState, gone: Collection[str]) -> NetworkState:
    """Return `state` without what belongs to the devices `gone`."""

    def rest(kind: str) -> frozenset[Any]:
        things: frozenset[Any] = getattr(state, kind)
        return things - {thing for thing in things if device_of(thing) in gone}

    return NetworkState(**{kind: rest(kind) for kind in _KINDS})


def devices_of(state: NetworkState) -> set[str]:
    """Return every device that `state` names."""
    return {device_of(thing) for kind in _KINDS for thing in getattr(state, kind)}


async def read_devices(names: Collection[str]) -> list[Thing]:
    """Return what a predecessor applied to the devices `names`, which this process adopted.

    These are the devices themselves, if they are up, their point-to-point addresses, and dtun's routes.

    Raises:
        UnavailableError: the kernel cannot be read.
    """
    with unavailable_if_refused():
        links = {link.index: link for link in await observed.links() if link.name in names}
        things: list[Thing] = [
            NetDevice(link.name, link.mtu) for link in links.values() if link.flags & IFF_UP
        ]
        things += [
            PointToPoint(links[found.index].name, found.local, found.network.network_address)
            for found in await observed.addresses()
            if found.index in links and found.network.num_addresses == 1
        ]
        for version in (4, 6):
            things += [
                _without_default_metric(found.route)
                for found in await observed.routes(version, _is_ours)
                if found.route.device in names
            ]
    return things


def _is_ours(_length: int, protocol: int, _table: int) -> bool:
    return protocol == ROUTE_PROTOCOL


def _without_default_metric(route: Route) -> Route:
    """Desired states name a metric only if it is not the default, but the kernel always returns one."""
    default = route.metric == DEFAULT_METRIC[route.destination.version]
    return replace(route, metric=None) if default else route
