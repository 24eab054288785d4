"""Puts back what others take away: a network manager that tidies up, a person's `ip route flush`, a link that flaps.

At once, and then more and more patiently while it keeps happening: two programs that disagree must not keep a host
busy.
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
"""Seconds between two repairs that others have made necessary: doubled from the first to the longest."""

QUIET = 60.0
"""Seconds without a loss after which the next one is the first again."""

SHORTEST_PAUSE = 0.2
"""Seconds between two looks, whatever happens: a look reads all our routes."""

_NAMED = 5

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Mended:
    """What a look came to: what was missing and is there again, and what could not be put back, with the reasons."""

    put_back: list[Change] = field(default_factory=list)
    refused: list[tuple[Change, str]] = field(default_factory=list)


class Schedule:
    """When to look next. Pure: `now` in seconds of a clock that never goes back. `due` None: no reason to look."""

    def __init__(self) -> None:
        self.due: float | None = None
        self._delay = 0.0
        self._trouble = float("-inf")
        self._looked = float("-inf")

    def lost(self, now: float) -> None:
        """Somebody may have taken something of ours."""
        if now - self._trouble > QUIET:
            self._delay = 0.0
        self._ask(max(now, self._trouble + self._delay))

    def news(self, now: float) -> None:
        """The host's own network is different: a link that is back waits for nobody's patience."""
        if now - self._trouble > QUIET:
            self._delay = 0.0
        self._ask(now)

    def looked(self, now: float, *, repaired: bool, complete: bool) -> bool:
        """The look is over; `complete` unless something is missing still, which is tried again.

        Returns whether that begins a burst of trouble, of which one line in the log is enough.
        """
        self.due = None
        self._looked = now
        if not repaired and complete:
            return False
        first = self._delay == 0.0
        self._delay = min(2 * self._delay, LONGEST_DELAY) or FIRST_DELAY
        self._trouble = now
        if not complete:
            self.due = now + self._delay
        return first

    def _ask(self, when: float) -> None:
        when = max(when, self._looked + SHORTEST_PAUSE)
        self.due = when if self.due is None else min(self.due, when)


class Repairer:
    """Runs `mend` when the schedule says so, from the moment it is made, in the running event loop."""

    def __init__(self, mend: Callable[[], Awaitable[Mended]]) -> None:
        self._mend = mend
        self._schedule = Schedule()
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._task = self._loop.create_task(self._run())

    def lost(self) -> None:
        """See `Schedule.lost`."""
        self._schedule.lost(self._loop.time())
        self._changed.set()

    def news(self) -> None:
        """See `Schedule.news`."""
        self._schedule.news(self._loop.time())
        self._changed.set()

    async def close(self) -> None:
        """Look no more. A repair that is under way is cut short."""
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        while True:
            due = self._schedule.due
            wait = None if due is None else due - self._loop.time()
            if wait is not None and wait <= 0:
                # What is lost from here on asks for another look.
                self._schedule.due = None
                await self._look()
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._changed.wait()
            self._changed.clear()

    async def _look(self) -> None:
        try:
            mended = await self._mend()
        except DtunError as error:
            if self._done(repaired=False, complete=False):
                logger.warning("cannot look after the host's network: %s", error)
            return
        first = self._done(repaired=bool(mended.put_back), complete=not mended.refused)
        level = logging.WARNING if first else logging.DEBUG
        if mended.put_back:
            names = [describe(change.what) for change in mended.put_back]
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            logger.log(level, "put back what was taken from us: %s%s", ", ".join(names[:_NAMED]), more)
        if mended.refused:
            change, reason = mended.refused[0]
            more = f" (and {len(mended.refused) - 1} more)" if len(mended.refused) > 1 else ""
            logger.log(level, "cannot put back %s: %s%s; tries again", describe(change.what), reason, more)

    def _done(self, *, repaired: bool, complete: bool) -> bool:
        asked = self._schedule.due
        first = self._schedule.looked(self._loop.time(), repaired=repaired, complete=complete)
        if asked is not None:
            self._schedule.lost(self._loop.time())
        return first
