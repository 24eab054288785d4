"""Brings the kernel to a desired state, change by change, and records what is applied."""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import replace

from dtun.network.difference import Change
from dtun.network.state import NetworkState, PointToPoint, Route
from dtun.platform.darwin import unsupported
from dtun.platform.darwin.applied import Applied
from dtun.platform.darwin.loopback import with_own_addresses
from dtun.platform.darwin.metrics import without_metrics
from dtun.platform.darwin.operations import Operations

Outcome = tuple[list[Change], list[tuple[Change, str]]]
"""The changes that were made, and those that were refused, each with its reason."""

TURN = 256
"""Changes in a row, before the data plane gets a turn of the event loop."""


class Applier:
    """Exists while the kernel is open. `applied` outlives it."""

    def __init__(self, applied: Applied, operations: Operations) -> None:
        self._applied = applied
        self._operations = operations

    async def apply(self, desired: NetworkState) -> Outcome:
        """Make the kernel look like `desired`.

        Raises:
            OSError: the kernel cannot be read.
            PermissionDeniedError: not root.
            UnavailableError: the journal cannot be written.
        """
        applied = self._applied
        possible, impossible = unsupported.split(applied.without_closed(desired))
        origins = without_metrics(possible.routes)
        wanted = replace(possible, routes=with_own_addresses(origins, possible.addresses))
        applied.write_ahead(wanted)
        made, refused = await self._apply(applied.changes_to(wanted))
        devices = {
            change.what.device
            for change in made
            if isinstance(change.what, PointToPoint) and change.action != "add"
        }
        if devices.intersection(applied.devices):
            # With an address the kernel may have removed routes; those that remain still have it as their source.
            applied.forget_missing()
            for route in applied.routes_through(devices):
                with contextlib.suppress(OSError):
                    self._operations.refresh(route)
            again, refused = await self._apply(applied.changes_to(wanted))
            made += again
        applied.prune_journal()
        # Of the halves of a route, one refusal is enough, in the name of the whole route.
        whole = {
            origins.get(change.what, change.what) if isinstance(change.what, Route) else change.what: (
                change,
                reason,
            )
            for change, reason in reversed(refused)
        }
        refusals = [(Change("add", thing), reason) for thing, reason in impossible]
        refusals += [(Change(change.action, thing), reason) for thing, (change, reason) in whole.items()]
        return made, refusals

    async def _apply(self, changes: Sequence[Change]) -> Outcome:
        made: list[Change] = []
        refused: list[tuple[Change, str]] = []
        for count, change in enumerate(changes, 1):
            if count % TURN == 0:
                await asyncio.sleep(0)
            reason = self._operations.apply(change)
            if reason is None:
                self._applied.record(change)
                made.append(change)
            else:
                refused.append((change, reason))
        return made, refused
