"""The up and down hooks of one tunnel: in order, one at a time, and up again only if it failed or went down."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from dtun.config.common import Hook

RunHook = Callable[[Hook, Mapping[str, str], str], Awaitable[bool]]
"""Runs a hook with exactly these variables; the text says whose it is. False if it failed; it has been logged."""


class UpDown:
    """Remembers whether the tunnel's `up` has been run and has worked."""

    def __init__(self, run: RunHook, up: Hook | None, down: Hook | None, what: str) -> None:
        self._run = run
        self._up = up
        self._down = down
        self._what = what
        self._is_up = False
        self._begun = False
        self._lock = asyncio.Lock()
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
        async with self._lock:
            if self._is_up:
                return
            self._begun = True
            works = self._up is None or await self._run(self._up, variables, f"{self._what}: up hook")
            self._is_up = works
            self.error = None if works else "the up hook failed; it is run again with the next session"

    async def down(self, variables: Mapping[str, str]) -> None:
        """Run `down`, also after one of the two that failed or was cut off: it may have done half of its work."""
        async with self._lock:
            if not self._begun:
                return
            self._is_up = False
            self.error = None
            if self._down is not None:
                await self._run(self._down, variables, f"{self._what}: down hook")
            # Not before: a `down` that was cut off, as the service stopped, is run again.
            self._begun = False
