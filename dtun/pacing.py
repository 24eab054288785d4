"""How often something may happen: rate limits, and back-off between attempts. Pure: `now` comes from the caller."""

import random

FIRST_WAIT = 0.5
"""Seconds before the second attempt, at most."""

LONGEST_WAIT = 15.0
"""Seconds between two attempts, at most: this long after an outage has ended, everybody is back."""


class RateLimiter:
    """A token bucket: `burst` events at once, refilled evenly within `per_seconds`."""

    def __init__(self, *, burst: float, per_seconds: float) -> None:
        self._burst = burst
        self._per_second = burst / per_seconds
        self._tokens = burst
        self._filled_at = float("-inf")
        self._held_back = 0

    def allow(self, now: float) -> int | None:
        """None if this event is one too many; otherwise how many were held back since the last one allowed."""
        if self._tokens < self._burst:
            self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._per_second)
        self._filled_at = now
        if self._tokens < 1:
            self._held_back += 1
            return None
        self._tokens -= 1
        held_back, self._held_back = self._held_back, 0
        return held_back


class Backoff:
    """Exponential back-off with jitter in the upper half, so that many clients do not reconnect in step."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self._random = rng or random.Random()  # noqa: S311 - spreads load, hides nothing
        self._ceiling = FIRST_WAIT

    def next(self) -> float:
        """Seconds to wait now; longer the next time."""
        ceiling, self._ceiling = self._ceiling, min(self._ceiling * 2, LONGEST_WAIT)
        return self._random.uniform(ceiling / 2, ceiling)

    def reset(self) -> None:
        """An attempt succeeded: start with short waits again."""
        self._ceiling = FIRST_WAIT
