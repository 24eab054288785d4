"""What each part of the service wants in the kernel, put together and applied as one state."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import fields
from typing import Any

from dtun.errors import DtunError
from dtun.network.difference import Thing
from dtun.network.state import NetDevice, NetworkState, PointToPoint
from dtun.platform.interface import ChangesRefusedError, Kernel

Refused = list[tuple[Thing, str]]
"""What the kernel does not take, each with its reason in a person's words."""


class DesiredState:
    """Desired network state by owner. One change is applied at a time."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._states: dict[str, NetworkState] = {}
        self._in_place = False
        self._noting = False
        self._lock = asyncio.Lock()

    async def put(self, owner: str, state: NetworkState) -> Refused:
        """Have the kernel look as this owner wants, in addition to what all others want.

        What is refused (a route to where somebody else has one) is given up and returned. What is refused to
        other owners is not this one's concern.

        Raises:
            UnavailableError: the kernel refuses a link or an address; the owner's desired state is as they were before.
        """
        async with self._lock:
            before = self._states.get(owner, NetworkState())
            if self._in_place and state == before:
                return []
            self._in_place = False
            self._states[owner] = state
            if self._noting:
                return []
            try:
                await self._kernel.apply(self._total())
            except ChangesRefusedError as error:
                if any(change.what in state.links | state.addresses for change, _ in error.refused):
                    self._states[owner] = before
                    raise
                wanted = _things(state)
                mine = [(change.what, reason) for change, reason in error.refused if change.what in wanted]
                self._states[owner] = _without(state, {thing for thing, _ in mine})
                self._in_place = len(mine) == len(error.refused)
                return mine
            self._in_place = True
            return []

    @contextlib.asynccontextmanager
    async def at_once(self) -> AsyncIterator[Refused]:
        """Inside, desired_state are only noted; all of them are applied together in the end.

        What is refused is in the list then. Raises UnavailableError there if a link or an address is.
        """
        refused: Refused = []
        self._noting = True
        try:
            yield refused
        finally:
            self._noting = False
        async with self._lock:
            try:
                await self._kernel.apply(self._total())
            except ChangesRefusedError as error:
                refused += [(change.what, reason) for change, reason in error.refused]
                if any(isinstance(change.what, NetDevice | PointToPoint) for change, _ in error.refused):
                    raise
                without = {thing for thing, _ in refused}
                self._states = {owner: _without(state, without) for owner, state in self._states.items()}

    async def drop(self, owner: str) -> None:
        """Remove what this owner wanted. Call before its device is closed."""
        with contextlib.suppress(DtunError):
            await self.put(owner, NetworkState())
        self._states.pop(owner, None)

    def _total(self) -> NetworkState:
        # Not one by one: of a thousand owners, each `or` would copy what all before it want.
        kinds = [_kinds(state) for state in self._states.values()]
        return NetworkState(
            **{name: frozenset().union(*(kind[name] for kind in kinds)) for name in _kinds(NetworkState())}
        )


def _kinds(state: NetworkState) -> Mapping[str, frozenset[Any]]:
    return {field.name: getattr(state, field.name) for field in fields(state)}


def _things(state: NetworkState) -> frozenset[Thing]:
    return frozenset().union(*_kinds(state).values())


def _without(state: NetworkState, refused: Collection[Thing]) -> NetworkState:
    return NetworkState(**{name: things.difference(refused) for name, things in _kinds(state).items()})
