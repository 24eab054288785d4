"""Chooses the sessions that a record from an unknown address may belong to (NAT rebinding). Pure.

DTLS 1.2 records without connection IDs (RFC 9146) do not name their session, so the record is tried with the keys
of the sessions that may have its sequence number next. A trial costs microseconds, and anybody can send garbage, so
trials are limited: in all, and for each datagram.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

from dtun.pacing import RateLimiter

SEQUENCE_REACH = 1 << 16
"""How far a record may be ahead of the last known one: the client's address changed a moment ago, not long ago."""

TRIALS_PER_SECOND = 2000.0
TRIALS_PER_DATAGRAM = 64


class Candidate(Protocol):
    """A session that may have moved; `highest` is the highest sequence number that it has opened."""

    @property
    def highest(self) -> int: ...


_C = TypeVar("_C", bound=Candidate)


class Trials:
    """Which sessions to try, within the limits."""

    def __init__(self) -> None:
        self._limiter = RateLimiter(burst=TRIALS_PER_SECOND, per_seconds=1)

    def candidates(self, sessions: Iterable[_C], sequence: int, now: float) -> Iterator[_C]:
        """The sessions to try for a record with this sequence number, nearest first, within the limits."""
        near = sorted(
            (session for session in sessions if 0 < sequence - session.highest <= SEQUENCE_REACH),
            key=lambda session: sequence - session.highest,
        )
        for session in near[:TRIALS_PER_DATAGRAM]:
            if self._limiter.allow(now) is None:
                return
            yield session
