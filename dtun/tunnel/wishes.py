"""What each part of the service wants in the kernel, put together and applied as one state."""

import asyncio
import contextlib

from dtun.errors import DtunError
from dtun.network.state import NetworkState, Route
from dtun.platform.interface import ChangesRefusedError, Kernel


class Wishes:
    """Desired network state by owner. One change is applied at a time."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._states: dict[str, NetworkState] = {}
        self._in_place = False
        self._lock = asyncio.Lock()

    async def put(self, owner: str, state: NetworkState) -> list[tuple[Route, str]]:
        """Have the kernel look as this owner wants, in addition to what all others want.

        Routes that the kernel refuses (somebody else has that destination) are given up and returned, each
        with the reason. What it refuses to other owners is not this one's concern.

        Raises:
            UnavailableError: the kernel refuses a link or an address; the owner's wishes are as they were before.
        """
        async with self._lock:
            before = self._states.get(owner, NetworkState())
            if self._in_place and state == before:
                return []
            self._in_place = False
            self._states[owner] = state
            try:
                await self._apply()
            except ChangesRefusedError as error:
                if any(change.what in state.links | state.addresses for change, _ in error.refused):
                    self._states[owner] = before
                    raise
                mine = [
                    (change.what, reason)
                    for change, reason in error.refused
                    if isinstance(change.what, Route) and change.what in state.routes
                ]
                refused = frozenset(route for route, _ in mine)
                self._states[owner] = NetworkState(state.links, state.addresses, state.routes - refused)
                self._in_place = len(mine) == len(error.refused)
                return mine
            self._in_place = True
            return []

    async def drop(self, owner: str) -> None:
        """Remove what this owner wanted. Call before its device is closed."""
        with contextlib.suppress(DtunError):
            await self.put(owner, NetworkState())
        self._states.pop(owner, None)

    async def _apply(self) -> None:
        total = NetworkState(
            links=frozenset().union(*(state.links for state in self._states.values())),
            addresses=frozenset().union(*(state.addresses for state in self._states.values())),
            routes=frozenset().union(*(state.routes for state in self._states.values())),
        )
        await self._kernel.apply(total)
