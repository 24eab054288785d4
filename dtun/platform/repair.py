"""Restores what other programs remove: a network manager, `ip route flush`, an interface that went down.

The first repair is immediate. While removals go on, the delay between repairs doubles, so that two programs that
disagree do not keep the host busy.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

from dtun.errors import DtunError
from dtun.network.difference import Change, describe

FIRST_DELAY = 1.0
LONGEST_DELAY = 60.0
"""Seconds between two repairs: doubled from the first to the longest."""

QUIET = 60.0
"""Seconds without a removal after which the delay starts again at zero."""

SHORTEST_PAUSE = 0.2
"""Seconds between two checks in any case: a check reads all our routes from the kernel."""

# Names in one line of the log.
_NAMED = 5

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RepairResult:
    """What a check restored, and what it could not restore, with the reasons."""

    restored: list[Change] = field(default_factory=list)
    refused: list[tuple[Change, str]] = field(default_factory=list)


class RepairSchedule:
    """When to check next. Pure: `now` in monotonic seconds. `due` None: no check is needed.

    Not `dtun.pacing.Backoff`: the delay starts at zero, a quiet minute resets it, and one host needs no jitter.
    """

    def __init__(self) -> None:
        self.due: float | None = None
        self._delay = 0.0
        self._last_repair = float("-inf")
        self._last_check = float("-inf")

    def removed(self, now: float) -> None:
        """Another program may have removed something of ours."""
        self._forget_old_repairs(now)
        self._request(max(now, self._last_repair + self._delay))

    def host_changed(self, now: float) -> None:
        """The host's own network changed, such as a link that is up again: check without the delay."""
        self._forget_old_repairs(now)
        self._request(now)

    def checked(self, now: float, *, repaired: bool, complete: bool) -> bool:
        """Record a check. Unless it is `complete`, something is still missing, and another check becomes due.

        Returns whether this is the first repair after a quiet time; only that one is worth a warning.
        """
        self.due = None
        self._last_check = now
        if not repaired and complete:
            return False
        first = self._delay == 0.0
        self._delay = min(2 * self._delay, LONGEST_DELAY) or FIRST_DELAY
        self._last_repair = now
        if not complete:
            self.due = now + self._delay
        return first

    def _forget_old_repairs(self, now: float) -> None:
        if now - self._last_repair > QUIET:
            self._delay = 0.0

    def _request(self, when: float) -> None:
        when = max(when, self._last_check + SHORTEST_PAUSE)
        self.due = when if self.due is None else min(self.due, when)


class Repairer:
    """Runs `repair` when the schedule says so, in the running event loop, until closed."""

    def __init__(self, repair: Callable[[], Awaitable[RepairResult]]) -> None:
        self._repair = repair
        self._schedule = RepairSchedule()
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._task = self._loop.create_task(self._run())

    def removed(self) -> None:
        """See `RepairSchedule.removed`."""
        self._schedule.removed(self._loop.time())
        self._changed.set()

    def host_changed(self) -> None:
        """See `RepairSchedule.host_changed`."""
        self._schedule.host_changed(self._loop.time())
        self._changed.set()

    async def close(self) -> None:
        """Stop. A repair in progress is cancelled."""
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        while True:
            due = self._schedule.due
            wait = None if due is None else due - self._loop.time()
            if wait is not None and wait <= 0:
                # A removal during the check requests another one.
                self._schedule.due = None
                await self._check()
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._changed.wait()
            self._changed.clear()

    async def _check(self) -> None:
        try:
            result = await self._repair()
        except DtunError as error:
            if self._checked(repaired=False, complete=False):
                logger.warning("cannot check the host's network: %s", error)
            return
        first = self._checked(repaired=bool(result.restored), complete=not result.refused)
        level = logging.WARNING if first else logging.DEBUG
        if result.restored:
            names = [describe(change.what) for change in result.restored]
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            logger.log(
                level, "restored after removal by another program: %s%s", ", ".join(names[:_NAMED]), more
            )
        if result.refused:
            change, reason = result.refused[0]
            more = f" (and {len(result.refused) - 1} more)" if len(result.refused) > 1 else ""
            logger.log(level, "cannot restore %s: %s%s; will retry", describe(change.what), reason, more)

    def _checked(self, *, repaired: bool, complete: bool) -> bool:
        requested = self._schedule.due
        first = self._schedule.checked(self._loop.time(), repaired=repaired, complete=complete)
        if requested is not None:
            self._schedule.removed(self._loop.time())
        return first
