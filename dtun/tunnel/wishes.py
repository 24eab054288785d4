"""What each part of the service wants in the kernel, put together and applied as one state."""

import asyncio
import contextlib

from dtun.errors import UnavailableError
from dtun.network.state import NetworkState, Route
from dtun.platform.interface import ChangesRefusedError, Kernel


class Wishes:
    """Desired network state by owner. One change is applied at a time."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._states: dict[str, NetworkState] = {}
        self._lock = asyncio.Lock()

    async def put(self, owner: str, state: NetworkState) -> list[tuple[Route, str]]:
        """Have the kernel look as this owner wants, in addition to what all others want.

        Routes that the kernel refuses (somebody else has that destination) are given up and returned, each
        with the reason.

        Raises:
            UnavailableError: the kernel refuses a link or an address.
        """
        async with self._lock:
            if state == self._states.get(owner):
                return []
            self._states[owner] = state
            try:
                await self._apply()
            except ChangesRefusedError as error:
                mine = [
                    (change.what, reason)
                    for change, reason in error.refused
                    if isinstance(change.what, Route) and change.what in state.routes
                ]
                if len(mine) < len(error.refused):
                    raise
                refused = frozenset(route for route, _ in mine)
                self._states[owner] = NetworkState(state.links, state.addresses, state.routes - refused)
                return mine
            return []

    async def drop(self, owner: str) -> None:
        """Remove what this owner wanted. Call before its device is closed."""
        with contextlib.suppress(UnavailableError):
            await self.put(owner, NetworkState())
        self._states.pop(owner, None)

    async def _apply(self) -> None:
        total = NetworkState(
            links=frozenset().union(*(state.links for state in self._states.values())),
            addresses=frozenset().union(*(state.addresses for state in self._states.values())),
            routes=frozenset().union(*(state.routes for state in self._states.values())),
        )
        await self._kernel.apply(total)
