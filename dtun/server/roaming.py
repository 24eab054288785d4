"""Chooses the sessions that a record from an unknown address may belong to (NAT rebinding). Pure.

DTLS 1.2 records without connection IDs (RFC 9146) do not name their session, so the record is tried with the keys
of the sessions that may have its sequence number next. A trial costs microseconds, and anybody can send garbage, so
trials are limited: in all, and for each datagram.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from math import inf
from typing import Generic, Protocol, TypeVar

from dtun.pacing import RateLimiter

SEQUENCE_REACH = 1 << 16
"""How far a record may be ahead of the last known one: the client's address changed a moment ago, not long ago."""

TRIALS_PER_SECOND = 2000.0
TRIALS_PER_DATAGRAM = 64

SORTED_FOR = 0.25
"""Seconds for which the order of the sessions is used, so that what a stray record costs does not grow with them."""


class Candidate(Protocol):
    """A session that may have moved; `highest` is the highest sequence number that it has opened."""

    @property
    def highest(self) -> int: ...


_C = TypeVar("_C", bound=Candidate)


class Trials(Generic[_C]):
    """Which sessions to try, within the limits. `sessions` are all there are; call `forget` when they change."""

    def __init__(self, sessions: Callable[[], Iterable[_C]]) -> None:
        self._sessions = sessions
        self._limiter = RateLimiter(burst=TRIALS_PER_SECOND, per_seconds=1)
        self._sorted: list[_C] = []
        self._numbers: list[int] = []
        self._sorted_at = -inf

    def forget(self) -> None:
        """There is another session, or one less."""
        self._sorted, self._numbers, self._sorted_at = [], [], -inf

    def candidates(self, sequence: int, now: float) -> Iterator[_C]:
        """The sessions to try for a record with this sequence number, nearest first, within the limits."""
        if self._limiter.tokens(now) < 1:
            return
        if now - self._sorted_at >= SORTED_FOR:
            self._sort(now)
        # Not by `self`: what a trial reveals may change the sessions.
        numbers, sessions = self._numbers, self._sorted
        after = bisect_left(numbers, sequence)
        for index in range(after - 1, max(after - TRIALS_PER_DATAGRAM, 0) - 1, -1):
            # Since it was sorted a session may have received more, which brings it nearer, or has overtaken.
            if sequence - numbers[index] > 2 * SEQUENCE_REACH:
                return
            session = sessions[index]
            if 0 < sequence - session.highest <= SEQUENCE_REACH:
                if self._limiter.allow(now) is None:
                    return
                yield session

    def _sort(self, now: float) -> None:
        pairs = sorted(((session.highest, session) for session in self._sessions()), key=lambda pair: pair[0])
        self._numbers = [number for number, _ in pairs]
        self._sorted = [session for _, session in pairs]
        self._sorted_at = now
