"""What each part of the service wants in the kernel, merged and applied as one state."""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import fields
from typing import Any

from dtun.errors import DtunError
from dtun.network.difference import Thing, describe
from dtun.network.state import NetDevice, NetworkState, PointToPoint
from dtun.platform.interface import ChangesRefusedError, Kernel

Rejection = tuple[Thing, str]
"""A part of the desired state that the kernel refuses, with its reason."""

log = logging.getLogger("dtun.server")


class DesiredState:
    """The desired network state, by owner. One change is applied at a time."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._states: dict[str, NetworkState] = {}
        self._in_place = False
        self._batching = False
        self._lock = asyncio.Lock()

    async def set(self, owner: str, state: NetworkState) -> list[Rejection]:
        """Replace what this owner wants, and apply it together with what all other owners want.

        Returns what the kernel refuses of it, such as a route that another program has; it is no longer wanted then.
        What the kernel refuses to other owners is not returned.

        Raises:
            UnavailableError: the kernel refuses a device or an address; the owner's previous state stays desired.
        """
        async with self._lock:
            before = self._states.get(owner, NetworkState())
            if self._in_place and state == before:
                return []
            self._in_place = False
            self._states[owner] = state
            if self._batching:
                return []
            try:
                await self._kernel.apply(self._total())
            except ChangesRefusedError as error:
                if any(change.what in state.devices | state.addresses for change, _ in error.refused):
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
    async def batch(self) -> AsyncIterator[list[Rejection]]:
        """Inside, `set` only records; at the end everything is applied together.

        The list then has what the kernel refuses. Raises UnavailableError if that is a device or an address.
        """
        refused: list[Rejection] = []
        self._batching = True
        try:
            yield refused
        finally:
            self._batching = False
        async with self._lock:
            try:
                await self._kernel.apply(self._total())
            except ChangesRefusedError as error:
                refused += [(change.what, reason) for change, reason in error.refused]
                if any(isinstance(change.what, NetDevice | PointToPoint) for change, _ in error.refused):
                    raise
                without = {thing for thing, _ in refused}
                self._states = {owner: _without(state, without) for owner, state in self._states.items()}

    async def remove(self, owner: str) -> None:
        """Remove what this owner wanted. Call this before its device is closed."""
        with contextlib.suppress(DtunError):
            await self.set(owner, NetworkState())
        self._states.pop(owner, None)

    def _total(self) -> NetworkState:
        # Not by `|`, one owner after the other: each of a thousand would copy the state of all before it.
        kinds = [_kinds(state) for state in self._states.values()]
        return NetworkState(
            **{name: frozenset().union(*(kind[name] for kind in kinds)) for name in _kinds(NetworkState())}
        )


class Rejections:
    """What the kernel refuses of one owner's state, as one line for each kind and reason. New lines are logged."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self.lines: list[str] = []

    def replace(self, refused: list[Rejection]) -> None:
        """Set what is refused now; log each line that is new."""
        known, self.lines = self.lines, _lines(refused)
        for line in self.lines:
            if line not in known:
                log.warning("%s: %s", self._owner, line)


def _lines(refused: list[Rejection]) -> list[str]:
    kinds = Counter((type(thing), reason) for thing, reason in refused)
    examples = {(type(thing), reason): thing for thing, reason in reversed(refused)}
    return [
        f"{describe(examples[kind])}: {kind[1]}" + (f" (and {count - 1} more)" if count > 1 else "")
        for kind, count in kinds.items()
    ]


def _kinds(state: NetworkState) -> Mapping[str, frozenset[Any]]:
    return {field.name: getattr(state, field.name) for field in fields(state)}


def _things(state: NetworkState) -> frozenset[Thing]:
    return frozenset().union(*_kinds(state).values())


def _without(state: NetworkState, refused: Collection[Thing]) -> NetworkState:
    return NetworkState(**{name: things.difference(refused) for name, things in _kinds(state).items()})
