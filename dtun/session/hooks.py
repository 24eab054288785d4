"""The up and down hooks of one tunnel: in order, one at a time, and `up` again only after it failed or after a `down`.

While a hook runs, the tunnel may go up and down many times. Only the outcome is run afterwards: a `down`, an `up`, or
both in this order, so that the slow hooks of an unstable client do not queue up.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from dtun.config.common import Hook

RunHook = Callable[[Hook, Mapping[str, str], str], Awaitable[bool]]
"""Runs a hook with exactly these variables; the text names it in the log. False if it failed, which was logged."""


class TunnelHooks:
    """Runs the hooks, and remembers whether `up` has succeeded since the last `down`."""

    def __init__(self, run: RunHook, up: Hook | None, down: Hook | None, what: str) -> None:
        self._run = run
        self._up = up
        self._down = down
        self._what = what
        self._is_up = False
        self._begun = False
        self._busy = False
        self._waiting: dict[str, asyncio.Future[bool]] = {}  # at most a down, then an up
        self.error: str | None = None

    def resume(self) -> None:
        """Count `up` as done: the process before this one ran it, and not `down`."""
        self._is_up = self._begun = True

    def change(self, up: Hook | None, down: Hook | None) -> None:
        """Replace the commands. Nothing is run because of the change."""
        self._up = up
        self._down = down

    async def up(self, variables: Mapping[str, str]) -> None:
        """Run `up` unless it has succeeded since the last `down`."""
        async with self._turn("up") as may_run:
            if self._is_up or not may_run:
                return
            self._begun = True
            succeeded = self._up is None or await self._run(self._up, variables, f"{self._what}: up hook")
            self._is_up = succeeded
            self.error = None if succeeded else "the up hook failed; it runs again with the next session"

    async def down(self, variables: Mapping[str, str]) -> None:
        """Run `down`, also after an `up` or `down` that failed or was cancelled: it may have done half of its work."""
        async with self._turn("down") as may_run:
            if not self._begun or not may_run:
                return
            self._is_up = False
            self.error = None
            if self._down is not None:
                await self._run(self._down, variables, f"{self._what}: down hook")
            # Only now: a `down` that was cancelled, because the service stopped, is run again.
            self._begun = False

    @asynccontextmanager
    async def _turn(self, kind: str) -> AsyncIterator[bool]:
        """Wait until no other hook runs. Yields False as soon as a later one makes this one pointless."""
        if not self._busy:
            self._busy = True
        elif not await self._wait(kind):
            yield False
            return
        try:
            yield True
        finally:
            self._start_next()

    async def _wait(self, kind: str) -> bool:
        for superseded in (kind, "up"):
            if superseded in self._waiting:
                _wake(self._waiting.pop(superseded), may_run=False)
        ours: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting[kind] = ours
        try:
            return await ours
        except asyncio.CancelledError:
            if self._waiting.get(kind) is ours:
                del self._waiting[kind]
            elif not ours.cancelled() and ours.result():
                self._start_next()
            raise

    def _start_next(self) -> None:
        """Let the next waiting hook run, if there is one."""
        while self._waiting:
            if _wake(self._waiting.pop(next(iter(self._waiting))), may_run=True):
                return
        self._busy = False


def _wake(waiting: asyncio.Future[bool], *, may_run: bool) -> bool:
    """False if the waiter was cancelled a moment ago."""
    if not waiting.done():
        waiting.set_result(may_run)
        return True
    return False
