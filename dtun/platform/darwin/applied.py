"""What one dtun process has in the kernel: kept in memory and in the journal, and compared with what is there."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import fields

from dtun.network.difference import Change, Thing, difference
from dtun.network.state import NetDevice, NetworkState, PointToPoint, Route, Sysctl
from dtun.platform.darwin import missing
from dtun.platform.entries import Entry, SavedSysctl
from dtun.platform.journal import Journal

_KIND_OF = {NetDevice: "devices", PointToPoint: "addresses", Route: "routes", Sysctl: "sysctls"}


class Applied:
    """`devices` are the open ones of this process. `stale`: the kernel may have dropped something of ours."""

    def __init__(self, journal: Journal) -> None:
        self.devices: set[str] = set()
        self.stale = False
        self._journal = journal
        self._have: set[Thing] = set()
        self._closed: set[str] = set()

    def adopt(self, left: Iterable[Entry]) -> None:
        """What a dead predecessor has left is ours now, as far as it is there still."""
        for entry in left:
            if isinstance(entry, Route):
                self._have.add(entry)
            elif isinstance(entry, SavedSysctl):
                self._have.add(entry.sysctl)
        self.forget_lost()
        self.settle()

    def opened(self, device: str) -> None:
        """This process has made a device."""
        self.devices.add(device)
        self._closed.discard(device)

    def closed(self, device: str) -> None:
        """It has closed one: addresses and routes went with it."""
        self.devices.discard(device)
        self._closed.add(device)
        self._have = {thing for thing in self._have if _device(thing) != device}

    def without_closed(self, desired: NetworkState) -> NetworkState:
        """Without what went with a device. A name is only of interest for as long as the caller goes on to name it."""
        if not self._closed:
            return desired
        named = {_device(thing) for field in fields(desired) for thing in getattr(desired, field.name)}
        self._closed &= named
        return NetworkState(
            **{
                field.name: frozenset(
                    thing for thing in getattr(desired, field.name) if _device(thing) not in self._closed
                )
                for field in fields(desired)
            }
        )

    def changes(self, wanted: NetworkState) -> Sequence[Change]:
        """What leads from what there is to what is wanted."""
        changes = difference(wanted, self._state())
        if self.stale or any(change.action != "add" for change in changes):
            # A removal would hit whatever took the place of something of ours that is gone.
            self.forget_lost()
            changes = difference(wanted, self._state())
        return one_pair_a_peer(changes)

    def announce(self, wanted: NetworkState) -> None:
        """Into the journal, before the first of it is made. Raises UnavailableError if that cannot be written."""
        self._journal.add(route for route in wanted.routes if self._outlives_us(route))

    def note(self, change: Change) -> None:
        """This has been done."""
        if change.previous is not None:
            self._have.discard(change.previous)
        if change.action == "remove":
            self._have.discard(change.what)
        else:
            self._have.add(change.what)

    def settle(self) -> None:
        """Let the journal tell exactly what there is. Raises UnavailableError if it cannot be written."""
        self._journal.remove(
            [entry for entry in self._journal.entries if isinstance(entry, Route) and entry not in self._have]
        )

    def routes_through(self, devices: Collection[str]) -> list[Route]:
        """Our routes that have one of these devices and no gateway."""
        return [
            thing
            for thing in self._have
            if isinstance(thing, Route) and thing.device in devices and thing.gateway is None
        ]

    def lost(self) -> frozenset[Thing]:
        """What somebody has taken from us. Raises OSError if the kernel does not answer."""
        return missing.missing(self._have)

    def forget_lost(self) -> None:
        """Remember only what is there."""
        self._have -= self.lost()
        self.stale = False

    def _outlives_us(self, route: Route) -> bool:
        return route.device not in self.devices

    def _state(self) -> NetworkState:
        kinds: dict[str, set[Thing]] = {}
        for thing in self._have:
            kinds.setdefault(_KIND_OF.get(type(thing), "dns"), set()).add(thing)
        return NetworkState(**{kind: frozenset(things) for kind, things in kinds.items()})  # type: ignore[arg-type]


def one_pair_a_peer(changes: Sequence[Change]) -> Sequence[Change]:
    """Let a pair go before another with the same peer comes: the kernel's route to the peer belongs to one of them."""
    coming = {
        (change.what.device, change.what.peer)
        for change in changes
        if change.action == "add" and isinstance(change.what, PointToPoint)
    }
    early = [
        change
        for change in changes
        if change.action == "remove"
        and isinstance(change.what, PointToPoint)
        and (change.what.device, change.what.peer) in coming
    ]
    if not early:
        return changes
    first = next(number for number, change in enumerate(changes) if isinstance(change.what, PointToPoint))
    return [*changes[:first], *early, *(change for change in changes[first:] if change not in early)]


def _device(thing: object) -> str:
    return thing.name if isinstance(thing, NetDevice) else str(getattr(thing, "device", ""))
