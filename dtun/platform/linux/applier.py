"""Carries changes into the kernel in order, and keeps the books: what is applied, and what outlives the process."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
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
from dtun.platform.linux.netlink.requests import Requests
from dtun.platform.linux.netlink.route_batches import BATCH, RouteBatches
from dtun.platform.linux.operations import Operations
from dtun.platform.linux.services import Services
from dtun.platform.linux.settings import Settings, is_set

Outcome = tuple[list[Change], list[tuple[Change, str]]]


class Applier:
    """One open kernel's hands. `devices` says which are this process's own: what goes with them is in no journal."""

    def __init__(
        self, netlink: Requests, bulk: RouteBatches, services: Services, journal: Journal, devices: Devices
    ) -> None:
        self.applied = Applied()
        # The packet filter's table is there with contents that only a dead predecessor knew.
        self.filters_left = False
        # Somebody has taken some of what is in it.
        self.filters_taken = False
        self._services = services
        self._journal = journal
        self._devices = devices
        self._settings = Settings(journal)
        self._changer = Operations(netlink, bulk, self._settings, services)

    async def adopt(self, entries: frozenset[Entry]) -> None:
        """Take over what a dead predecessor left, as far as it is really there.

        Raises:
            UnavailableError: the kernel does not say.
        """
        gone: set[Entry] = set(
            await self._missing(entry for entry in entries if isinstance(entry, Route | Rule))
        )
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
                    self.filters_left = await self._services.firewall.present()
                    if not self.filters_left:
                        gone.add(entry)
        self._journal.remove(gone)

    async def forget_lost(self, things: Iterable[Thing]) -> set[Thing]:
        """Compare memory with the kernel; returns those of `things` that it does not have, which are forgotten.

        Raises:
            UnavailableError: the kernel does not say.
        """
        things = list(things)
        lost: set[Thing] = await self._missing(things)
        lost.update(thing for thing in things if isinstance(thing, Sysctl) and not is_set(thing))
        filters = [thing for thing in things if isinstance(thing, Filter)]
        if self.filters_taken and filters:
            self.filters_taken = False
            lost.update(filters)
        for thing in lost:
            self.applied.discard(thing)
        return lost

    def pins(self) -> list[Thing]:
        """What is applied and does not go with a device of ours: others' devices may have dropped it."""
        own = self._devices.own
        return [*(route for route in self.applied.routes if route.device not in own), *self.applied.rules]

    def settle(self) -> None:
        """Nothing that is not applied stays in the journal."""
        applied = self.applied
        self._journal.remove(
            [
                entry
                for entry in self._journal.entries
                if (isinstance(entry, Route) and entry not in applied.routes)
                or (isinstance(entry, Rule) and entry not in applied.rules)
            ]
        )

    async def carry_out(self, changes: Sequence[Change], filters: frozenset[Filter]) -> Outcome:
        """Make the changes, of which those of filters come to `filters`; returns what was done, and what refused.

        Raises:
            PermissionDeniedError: CAP_NET_ADMIN is missing.
            UnavailableError: the kernel or the journal does not work.
        """
        done: list[Change] = []
        refused: list[tuple[Change, str]] = []
        of_filters = [change for change in changes if isinstance(change.what, Filter)]
        # What a predecessor's table does is not known: it stays until the routes are those of now. So do guards of
        # servers that are given up: the routes to these are removed after the filters come.
        late = self.filters_left
        kept = _kept_for_now(of_filters)
        turn = not late
        for batch in _batches(changes):
            results: Iterable[tuple[Change, str | None]]
            if isinstance(batch[0].what, Route):
                results = zip(batch, await self._routes(batch), strict=True)
            elif isinstance(batch[0].what, Filter):
                # All at once, when it is the turn of the first.
                todo = of_filters if turn else []
                results = zip(
                    todo, repeat(await self._filter(filters | kept) if turn else None), strict=False
                )
                turn = False
            else:
                results = zip(batch, [await self._one(batch[0])], strict=True)
            for change, reason in results:
                # Closed in the meantime: whether it was done or refused, it is gone.
                if device_of(change.what) not in self._devices.closed:
                    self._note(change, reason, done, refused)
            await asyncio.sleep(0)
        if late or kept:
            reason = await self._filter(filters)
            for change in of_filters if late else []:
                self._note(change, reason, done, refused)
            if reason and not of_filters:
                raise UnavailableError(f"cannot put the packet filter in order: {reason}")
        return done, refused

    async def _one(self, change: Change) -> str | None:
        """Anything but routes and filters. Sysctls see to the journal themselves."""
        if not isinstance(change.what, Rule):
            return await self._changer.refusal(change)
        removes = change.action == "remove"
        if not removes:
            self._journal.add([change.what])
        reason = await self._changer.refusal(change)
        if removes == (reason is None):
            self._journal.remove([change.what])
        return reason

    def _note(
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

    async def _routes(self, changes: Sequence[Change]) -> list[str | None]:
        """Up to a batch, of one action. In the journal before, out of it after."""
        own = self._devices.own
        removes = changes[0].action == "remove"
        if not removes:
            self._journal.add(
                change.what
                for change in changes
                if isinstance(change.what, Route) and change.what.device not in own
            )
        reasons = await self._changer.routes_refusals(changes)
        void: list[Entry] = []
        for change, reason in zip(changes, reasons, strict=True):
            if (reason is None) == removes and isinstance(change.what, Route):
                void.append(change.what)
            elif reason is None and isinstance(change.previous, Route):
                void.append(change.previous)
        self._journal.remove(void)
        return reasons

    async def _filter(self, filters: frozenset[Filter]) -> str | None:
        table = FilterTable(self._services.table)
        if filters:
            self._journal.add([table])
        reason = await self._changer.filters_refusal(filters)
        if reason is None:
            self.filters_left = False
            if not filters:
                self._journal.remove([table])
        return reason

    async def _missing(self, things: Iterable[Thing]) -> set[Any]:
        with unavailable_if_refused():
            return await missing(things)


def _kept_for_now(of_filters: Iterable[Change]) -> frozenset[Filter]:
    """The guards that go while other filters come: not yet when it is the turn of these."""
    actions = {change.action for change in of_filters}
    return frozenset(
        change.what
        for change in of_filters
        if "add" in actions
        and change.action == "remove"
        and isinstance(change.what, DropOtherTrafficToServer)
    )


def _batches(changes: Sequence[Change]) -> Iterator[Sequence[Change]]:
    """Runs of routes with one action, cut to a size; everything else alone."""
    start = 0
    for (is_route, _), run in groupby(
        changes, key=lambda change: (isinstance(change.what, Route), change.action)
    ):
        end = start + sum(1 for _ in run)
        step = BATCH if is_route else 1
        for first in range(start, end, step):
            yield changes[first : min(first + step, end)]
        start = end
