"""The up and down hooks of one tunnel: in order, one at a time, and up again only if it failed or went down.

While one runs, a tunnel may come and go many times. Of that only the outcome is run afterwards: a `down`, an `up`, or
one after the other, so that slow hooks of a restless client do not queue up.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from dtun.config.common import Hook

RunHook = Callable[[Hook, Mapping[str, str], str], Awaitable[bool]]
"""Runs a hook with exactly these variables; the text says whose it is. False if it failed; it has been logged."""


class TunnelHooks:
    """Remembers whether the tunnel's `up` has been run and has worked."""

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
        """A process before this one has run `up`, and not `down`."""
        self._is_up = self._begun = True

    def change(self, up: Hook | None, down: Hook | None) -> None:
        """Run these from now on. What is up stays up: nothing is run because of the change."""
        self._up = up
        self._down = down

    async def up(self, variables: Mapping[str, str]) -> None:
        """Run `up` unless it has already worked since the last `down`."""
        async with self._turn("up") as is_ours:
            if self._is_up or not is_ours:
                return
            self._begun = True
            works = self._up is None or await self._run(self._up, variables, f"{self._what}: up hook")
            self._is_up = works
            self.error = None if works else "the up hook failed; it is run again with the next session"

    async def down(self, variables: Mapping[str, str]) -> None:
        """Run `down`, also after one of the two that failed or was cut off: it may have done half of its work."""
        async with self._turn("down") as is_ours:
            if not self._begun or not is_ours:
                return
            self._is_up = False
            self.error = None
            if self._down is not None:
                await self._run(self._down, variables, f"{self._what}: down hook")
            # Not before: a `down` that was cut off, as the service stopped, is run again.
            self._begun = False

    @asynccontextmanager
    async def _turn(self, kind: str) -> AsyncIterator[bool]:
        """Waits until no other hook runs. False at once when a later one makes this one pointless."""
        if not self._busy:
            self._busy = True
        elif not await self._wait(kind):
            yield False
            return
        try:
            yield True
        finally:
            self._pass_on()

    async def _wait(self, kind: str) -> bool:
        for overtaken in (kind, "up"):
            if overtaken in self._waiting:
                _tell(self._waiting.pop(overtaken), is_its_turn=False)
        ours: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting[kind] = ours
        try:
            return await ours
        except asyncio.CancelledError:
            if self._waiting.get(kind) is ours:
                del self._waiting[kind]
            elif not ours.cancelled() and ours.result():
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        """It is the next one's turn, if there is one."""
        while self._waiting:
            if _tell(self._waiting.pop(next(iter(self._waiting))), is_its_turn=True):
                return
        self._busy = False


def _tell(waiting: asyncio.Future[bool], *, is_its_turn: bool) -> bool:
    """False if nobody waits any more: cancelled a moment ago."""
    if not waiting.done():
        waiting.set_result(is_its_turn)
        return True
    return False
