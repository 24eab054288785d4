"""Applies changes in order, and records what is applied and, in the journal, what outlives the process."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, repeat
from typing import Any

from dtun.errors import UnavailableError
from dtun.network.difference import Change, Thing
from dtun.network.state import DropOtherTrafficToServer, Filter, Route, Rule, Sysctl
from dtun.platform.entries import Entry, FilterTable, SavedSysctl
from dtun.platform.journal import Journal
from dtun.platform.linux.applied import Applied, Devices, device_of
from dtun.platform.linux.missing import missing
from dtun.platform.linux.netlink.dump import unavailable_if_refused
from dtun.platform.linux.netlink.route_batches import BATCH
from dtun.platform.linux.operations import Operations
from dtun.platform.linux.sysctl import Settings, is_set

Outcome = tuple[list[Change], list[tuple[Change, str]]]
"""The changes that were made, and those that were refused, with the reasons."""


class Applier:
    """Puts one instance's changes into the kernel.

    `devices` are this process's own: what goes with them is not in the journal. `filters_removed` is called when
    another program deletes something of the packet filter.
    """

    def __init__(self, journal: Journal, devices: Devices, filters_removed: Callable[[], None]) -> None:
        self.applied = Applied()
        self._table = f"dtun-{journal.instance}"
        # The packet filter's table holds what a killed predecessor wanted, which is unknown.
        self._filters_inherited = False
        self._filters_missing = False
        self._filters_removed = filters_removed
        self._journal = journal
        self._devices = devices
        self._operations = Operations(self._table, Settings(journal), self._on_filters_removed)

    @property
    def ports(self) -> tuple[int, ...]:
        """See `Operations.ports`."""
        return self._operations.ports

    async def check_permission(self) -> None:
        """See `Operations.check_permission`."""
        await self._operations.check_permission()

    async def close(self) -> None:
        """Close the sockets. What is applied stays."""
        await self._operations.close()

    async def adopt(self, entries: frozenset[Entry]) -> None:
        """Take over what a killed predecessor left, as far as it still exists.

        Raises:
            UnavailableError: the kernel cannot be read.
        """
        gone: set[Entry] = set(await _missing(entry for entry in entries if isinstance(entry, Route | Rule)))
        for entry in entries - gone:
            match entry:
                case Route() | Rule():
                    self.applied.add(entry)
                case SavedSysctl(sysctl):
                    if is_set(sysctl):
                        self.applied.add(sysctl)
                    else:
                        gone.add(entry)
                case FilterTable():
                    self._filters_inherited = await self._operations.firewall.present()
                    if not self._filters_inherited:
                        gone.add(entry)
        self._journal.remove(gone)

    async def forget_missing(self, things: Iterable[Thing]) -> set[Thing]:
        """Return those of `things` that the kernel does not have, which no longer count as applied.

        Raises:
            UnavailableError: the kernel cannot be read.
        """
        things = list(things)
        gone: set[Thing] = await _missing(things)
        gone.update(thing for thing in things if isinstance(thing, Sysctl) and not is_set(thing))
        filters = [thing for thing in things if isinstance(thing, Filter)]
        if self._filters_missing and filters:
            self._filters_missing = False
            gone.update(filters)
        for thing in gone:
            self.applied.discard(thing)
        return gone

    def not_on_own_devices(self) -> list[Thing]:
        """Return the applied routes and rules that do not belong to our devices: they may go with another device."""
        own = self._devices.own
        return [*(route for route in self.applied.routes if route.device not in own), *self.applied.rules]

    def prune_journal(self) -> None:
        """Remove the routes and rules that are no longer applied from the journal."""
        applied = self.applied
        self._journal.remove(
            [
                entry
                for entry in self._journal.entries
                if (isinstance(entry, Route) and entry not in applied.routes)
                or (isinstance(entry, Rule) and entry not in applied.rules)
            ]
        )

    async def apply(self, changes: Sequence[Change], filters: frozenset[Filter]) -> Outcome:
        """Make `changes`; those of filters lead to exactly `filters`.

        Raises:
            PermissionDeniedError: CAP_NET_ADMIN is missing.
            UnavailableError: the kernel or the journal does not work.
        """
        done: list[Change] = []
        refused: list[tuple[Change, str]] = []
        of_filters = [change for change in changes if isinstance(change.what, Filter)]
        # A predecessor's table stays until the routes are in place, because its contents are unknown. Filters of
        # former servers stay, too: the routes to these servers are removed after the filters are applied.
        late = self._filters_inherited
        kept = _kept_until_the_end(of_filters)
        pending = not late
        for batch in _batches(changes):
            results: Iterable[tuple[Change, str | None]]
            if isinstance(batch[0].what, Route):
                results = zip(batch, await self._apply_routes(batch), strict=True)
            elif isinstance(batch[0].what, Filter):
                # All of them with the first.
                todo = of_filters if pending else []
                reason = await self._apply_filters(filters | kept) if pending else None
                results = zip(todo, repeat(reason), strict=False)
                pending = False
            else:
                results = zip(batch, [await self._apply_one(batch[0])], strict=True)
            for change, reason in results:
                # What belongs to a device that is gone meanwhile is gone, whether the change was made or refused.
                if device_of(change.what) not in self._devices.gone:
                    self._record(change, reason, done, refused)
            await asyncio.sleep(0)
        if late or kept:
            reason = await self._apply_filters(filters)
            for change in of_filters if late else []:
                self._record(change, reason, done, refused)
            if reason and not of_filters:
                raise UnavailableError(f"cannot replace the packet filter: {reason}")
        return done, refused

    async def _apply_one(self, change: Change) -> str | None:
        """Make a change of anything but a route or a filter. `Settings` keeps sysctls in the journal itself."""
        if not isinstance(change.what, Rule):
            return await self._operations.apply(change)
        removes = change.action == "remove"
        if not removes:
            self._journal.add([change.what])
        reason = await self._operations.apply(change)
        if removes == (reason is None):
            self._journal.remove([change.what])
        return reason

    async def _apply_routes(self, changes: Sequence[Change]) -> list[str | None]:
        """Make up to a batch of changes, all with one action. Written to the journal before, deleted from it after."""
        own = self._devices.own
        removes = changes[0].action == "remove"
        if not removes:
            self._journal.add(
                change.what
                for change in changes
                if isinstance(change.what, Route) and change.what.device not in own
            )
        reasons = await self._operations.apply_routes(changes)
        absent: list[Entry] = []
        for change, reason in zip(changes, reasons, strict=True):
            if (reason is None) == removes and isinstance(change.what, Route):
                absent.append(change.what)
            elif reason is None and isinstance(change.previous, Route):
                absent.append(change.previous)
        self._journal.remove(absent)
        return reasons

    async def _apply_filters(self, filters: frozenset[Filter]) -> str | None:
        table = FilterTable(self._table)
        if filters:
            self._journal.add([table])
        reason = await self._operations.apply_filters(filters)
        if reason is None:
            self._filters_inherited = False
            if not filters:
                self._journal.remove([table])
        return reason

    def _record(
        self, change: Change, reason: str | None, done: list[Change], refused: list[tuple[Change, str]]
    ) -> None:
        if reason:
            refused.append((change, reason))
            return
        done.append(change)
        if change.previous is not None:
            self.applied.discard(change.previous)
        if change.action == "remove":
            self.applied.discard(change.what)
        else:
            self.applied.add(change.what)

    def _on_filters_removed(self) -> None:
        self._filters_missing = True
        self._filters_removed()


async def _missing(things: Iterable[Thing]) -> set[Any]:
    with unavailable_if_refused():
        return await missing(things)


def _kept_until_the_end(of_filters: Iterable[Change]) -> frozenset[Filter]:
    """Return the filters of servers that are removed while other filters are added."""
    actions = {change.action for change in of_filters}
    return frozenset(
        change.what
        for change in of_filters
        if "add" in actions
        and change.action == "remove"
        and isinstance(change.what, DropOtherTrafficToServer)
    )


def _batches(changes: Sequence[Change]) -> Iterator[Sequence[Change]]:
    """Yield runs of routes with one action, of at most `BATCH`, and every other change alone."""
    start = 0
    for (is_route, _), run in groupby(
        changes, key=lambda change: (isinstance(change.what, Route), change.action)
    ):
        end = start + sum(1 for _ in run)
        step = BATCH if is_route else 1
        for first in range(start, end, step):
            yield changes[first : min(first + step, end)]
        start = end
