"""What each part of the service wants in the kernel, merged and applied as one state."""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from dataclasses import fields
from typing import Any

from dtun.errors import DtunError
from dtun.network.difference import Thing, describe
from dtun.network.state import NetDevice, NetworkState, PointToPoint
from dtun.platform.interface import ChangesRefusedError, Kernel

Rejection = tuple[Thing, str]
"""A part of the desired state that the kernel refuses, with its reason."""

_Kind = tuple[type, str]

NEWS_INTERVAL = 60.0
"""Seconds between two log lines about one kind of refusal that comes and goes, as an interface does."""

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
            UnavailableError: the kernel refuses a device or an IPv4 address; the owner's previous state stays desired.
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
                wanted = _things(state)
                if any(change.what in wanted and _vital(change.what) for change, _ in error.refused):
                    self._states[owner] = before
                    raise
                mine = [(change.what, reason) for change, reason in error.refused if change.what in wanted]
                self._states[owner] = _without(state, {thing for thing, _ in mine})
                self._in_place = len(mine) == len(error.refused)
                return mine
            self._in_place = True
            return []

    @contextlib.asynccontextmanager
    async def batch(self) -> AsyncIterator[list[Rejection]]:
        """Inside, `set` only records; at the end everything is applied together.

        The list then has what the kernel refuses. Raises UnavailableError if that is a device or an IPv4 address.
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
                if any(_vital(change.what) for change, _ in error.refused):
                    raise
                without = {thing for thing, _ in refused}
                self._states = {owner: _without(state, without) for owner, state in self._states.items()}

    async def remove(self, owner: str) -> None:
        """Remove what this owner wanted. Call this before its device is closed."""
        with contextlib.suppress(DtunError):
            await self.set(owner, NetworkState())
        self._states.pop(owner, None)

    async def remove_all(self, owners: Collection[str]) -> None:
        """Remove what these owners wanted, in one step: for each of a thousand, the total would be compared anew."""
        async with self._lock:
            for owner in owners:
                self._states.pop(owner, None)
            self._in_place = False
            with contextlib.suppress(DtunError):
                await self._kernel.apply(self._total())

    def _total(self) -> NetworkState:
        # Not by `|`, one owner after the other: each of a thousand would copy the state of all before it.
        kinds = [_kinds(state) for state in self._states.values()]
        return NetworkState(
            **{name: frozenset().union(*(kind[name] for kind in kinds)) for name in _kinds(NetworkState())}
        )


def lacks_ipv6(refused: Iterable[Rejection]) -> str | None:
    """Why the kernel refuses an IPv6 address; None if it does not."""
    return next(
        (reason for thing, reason in refused if isinstance(thing, PointToPoint) and thing.local.version == 6),
        None,
    )


class Rejections:
    """What the kernel refuses of one owner's state, as one line for each kind and reason.

    Between a thing and its reason are `words`. A line is logged when its kind and reason are new, at most once in
    NEWS_INTERVAL. `clock` gives seconds.
    """

    def __init__(self, owner: str, words: str = ": ", clock: Callable[[], float] = time.monotonic) -> None:
        self._owner = owner
        self._words = words
        self._log = logging.getLogger("dtun.client" if owner == "client" else "dtun.server")
        self._clock = clock
        self._refused: Collection[_Kind] = ()
        self._logged: dict[_Kind, float] = {}
        self.lines: list[str] = []

    def replace(self, refused: list[Rejection]) -> None:
        """Set what is refused now; log what is new."""
        lines, now = _lines(refused, self._words), self._clock()
        self._logged = {kind: at for kind, at in self._logged.items() if now - at < NEWS_INTERVAL}
        for kind, line in lines.items():
            if kind not in self._refused and kind not in self._logged:
                self._log.warning("%s: %s", self._owner, line)
                self._logged[kind] = now
        self._refused, self.lines = lines.keys(), list(lines.values())


def refusal_lines(refused: list[Rejection]) -> list[str]:
    """One line for each kind of thing and reason, with the number of the others."""
    return list(_lines(refused).values())


def _lines(refused: list[Rejection], words: str = ": ") -> dict[_Kind, str]:
    kinds = Counter((type(thing), reason) for thing, reason in refused)
    examples = {(type(thing), reason): thing for thing, reason in reversed(refused)}
    return {
        kind: f"{describe(examples[kind])}{words}{kind[1]}"
        + (f" (and {count - 1} more)" if count > 1 else "")
        for kind, count in kinds.items()
    }


def _vital(thing: Thing) -> bool:
    """Whether nothing works without it."""
    return isinstance(thing, NetDevice) or (isinstance(thing, PointToPoint) and thing.local.version == 4)


def _kinds(state: NetworkState) -> Mapping[str, frozenset[Any]]:
    return {field.name: getattr(state, field.name) for field in fields(state)}


def _things(state: NetworkState) -> frozenset[Thing]:
    return frozenset().union(*_kinds(state).values())


def _without(state: NetworkState, refused: Collection[Thing]) -> NetworkState:
    return NetworkState(**{name: things.difference(refused) for name, things in _kinds(state).items()})
