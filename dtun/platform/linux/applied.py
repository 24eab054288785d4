"""What this process has in the kernel, by kind, in sets that grow and shrink."""

from collections.abc import Collection
from dataclasses import fields
from typing import Any

from dtun.network.difference import Thing
from dtun.network.state import (
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

_KINDS = tuple(field.name for field in fields(NetworkState))


class Applied:
    """Sets that are never built anew: to hash ten thousand routes takes longer than a change of one."""

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
        """All of it."""
        return [thing for kind in _KINDS for thing in getattr(self, kind)]

    def state(self) -> NetworkState:
        """As a value."""
        return NetworkState(**{kind: frozenset(getattr(self, kind)) for kind in _KINDS})

    def add(self, thing: Thing) -> None:
        self._set_of(thing).add(thing)

    def discard(self, thing: Thing) -> None:
        self._set_of(thing).discard(thing)

    def drop_device(self, name: str) -> None:
        """It went, with all that it had."""
        for kind in ("devices", "addresses", "routes", "dns"):
            things: set[Any] = getattr(self, kind)
            things -= {thing for thing in things if device_of(thing) == name}

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
    """This process's TUN devices: its `own`, with their indexes; those `closed` that somebody goes on to name."""

    def __init__(self) -> None:
        self.own: dict[str, int] = {}
        self.closed: set[str] = set()

    def made(self, name: str, index: int) -> None:
        self.own[name] = index
        self.closed.discard(name)

    def gone(self, name: str) -> int | None:
        """Returns the index that it had."""
        self.closed.add(name)
        return self.own.pop(name, None)


def device_of(thing: Thing) -> str:
    """The device that takes it along; empty for what outlives every device."""
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
            | DropIPv6OutsideTunnel()
        ):
            return ""


def without_devices(state: NetworkState, gone: Collection[str]) -> NetworkState:
    """Without what belongs to the devices `gone`."""

    def rest(kind: str) -> frozenset[Any]:
        things: frozenset[Any] = getattr(state, kind)
        return things - {thing for thing in things if device_of(thing) in gone}

    return NetworkState(**{kind: rest(kind) for kind in _KINDS})


def devices_of(state: NetworkState) -> set[str]:
    """Every device that `state` names."""
    return {device_of(thing) for kind in _KINDS for thing in getattr(state, kind)}
