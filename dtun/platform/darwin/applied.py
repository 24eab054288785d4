"""What this process has in the kernel, in memory and in the journal."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import fields

from dtun.network.difference import Change, Thing, difference
from dtun.network.state import NetDevice, NetworkState, PointToPoint, Route, Sysctl
from dtun.platform.darwin.missing import missing
from dtun.platform.entries import Entry, SavedSysctl
from dtun.platform.journal import Journal

_KIND_OF = {NetDevice: "devices", PointToPoint: "addresses", Route: "routes", Sysctl: "sysctls"}


class Applied:
    """Devices of this process, and all that has been applied. Stale: the kernel may have removed some of it."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._devices: set[str] = set()
        self._closed: set[str] = set()
        self._things: set[Thing] = set()
        self._stale = False

    @property
    def devices(self) -> Collection[str]:
        """The names of this process's open devices."""
        return self._devices

    def adopt(self, entries: Iterable[Entry]) -> None:
        """Take over what a killed process left, if it is still there.

        Raises:
            OSError: the kernel cannot be read.
            UnavailableError: the journal cannot be written.
        """
        for entry in entries:
            if isinstance(entry, Route):
                self._things.add(entry)
            elif isinstance(entry, SavedSysctl):
                self._things.add(entry.sysctl)
        self.forget_missing()
        self.prune_journal()

    def device_opened(self, device: str) -> None:
        self._devices.add(device)
        self._closed.discard(device)

    def device_closed(self, device: str) -> None:
        """The kernel removed its addresses and routes with it."""
        self._devices.discard(device)
        self._closed.add(device)
        self._things = {thing for thing in self._things if _device(thing) != device}

    def without_closed(self, desired: NetworkState) -> NetworkState:
        """`desired` without what belongs to closed devices. Closed names are kept while `desired` has them."""
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

    def changes_to(self, wanted: NetworkState) -> Sequence[Change]:
        """The changes from what is applied to `wanted`. Raises OSError if the kernel cannot be read."""
        changes = difference(wanted, self._state())
        if self._stale or any(change.action != "add" for change in changes):
            # A removal would hit another program's route that took the place of ours.
            self.forget_missing()
            changes = difference(wanted, self._state())
        return remove_same_peer_first(changes)

    def write_ahead(self, wanted: NetworkState) -> None:
        """Write to the journal, before it is applied, what outlives this process.

        Raises:
            UnavailableError: the journal cannot be written.
        """
        self._journal.add(route for route in wanted.routes if route.device not in self._devices)

    def record(self, change: Change) -> None:
        """This change has been made."""
        if change.previous is not None:
            self._things.discard(change.previous)
        if change.action == "remove":
            self._things.discard(change.what)
        else:
            self._things.add(change.what)

    def prune_journal(self) -> None:
        """Remove routes from the journal that are not applied. Raises UnavailableError if it cannot be written."""
        self._journal.remove(
            [
                entry
                for entry in self._journal.entries
                if isinstance(entry, Route) and entry not in self._things
            ]
        )

    def routes_through(self, devices: Collection[str]) -> list[Route]:
        """Our routes through these devices that have no gateway."""
        return [
            thing
            for thing in self._things
            if isinstance(thing, Route) and thing.device in devices and thing.gateway is None
        ]

    def mark_stale(self) -> None:
        """The kernel may have removed something of ours: compare before the next changes."""
        self._stale = True

    def missing(self) -> frozenset[Thing]:
        """What is applied and no longer in the kernel. Raises OSError if the kernel cannot be read."""
        return missing(self._things)

    def forget_missing(self) -> None:
        """Keep only what is in the kernel. Raises OSError if it cannot be read."""
        self._things -= self.missing()
        self._stale = False

    def _state(self) -> NetworkState:
        kinds: dict[str, set[Thing]] = {}
        for thing in self._things:
            kinds.setdefault(_KIND_OF.get(type(thing), "dns"), set()).add(thing)
        return NetworkState(**{kind: frozenset(things) for kind, things in kinds.items()})  # type: ignore[arg-type]


def remove_same_peer_first(changes: Sequence[Change]) -> Sequence[Change]:
    """Remove an address pair before another with the same peer is added: both have the kernel's route to the peer."""
    added_peers = {
        (change.what.device, change.what.peer)
        for change in changes
        if change.action == "add" and isinstance(change.what, PointToPoint)
    }
    early = [
        change
        for change in changes
        if change.action == "remove"
        and isinstance(change.what, PointToPoint)
        and (change.what.device, change.what.peer) in added_peers
    ]
    if not early:
        return changes
    first = next(number for number, change in enumerate(changes) if isinstance(change.what, PointToPoint))
    return [*changes[:first], *early, *(change for change in changes[first:] if change not in early)]


def _device(thing: object) -> str:
    return thing.name if isinstance(thing, NetDevice) else str(getattr(thing, "device", ""))
