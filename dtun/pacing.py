"""Rate limits, and back-off between attempts. Pure: `now` comes from the caller, in seconds."""

import random

FIRST_WAIT = 0.5
"""Seconds before the second attempt, at most."""

LONGEST_WAIT = 15.0
"""Seconds between two attempts, at most: so long after an outage all clients are back."""


class RateLimiter:
    """A token bucket: `burst` events at once, refilled evenly within `per_seconds`."""

    def __init__(self, *, burst: float, per_seconds: float) -> None:
        self._burst = burst
        self._per_second = burst / per_seconds
        self._tokens = burst
        self._filled_at = float("-inf")
        self._suppressed = 0

    def tokens(self, now: float) -> float:
        """The number of events that would be allowed at once."""
        if self._tokens < self._burst:
            self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._per_second)
        self._filled_at = now
        return self._tokens

    def allow(self, now: float) -> int | None:
        """None if this event exceeds the rate; otherwise the number of events suppressed since the last allowed one."""
        if self.tokens(now) < 1:
            self._suppressed += 1
            return None
        self._tokens -= 1
        suppressed, self._suppressed = self._suppressed, 0
        return suppressed


class Backoff:
    """Exponential back-off with jitter in the upper half, so that many clients do not reconnect at the same time."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self._random = rng or random.Random()  # noqa: S311 - spreads load, not a secret
        self._ceiling = FIRST_WAIT

    def next(self) -> float:
        """Seconds to wait now; the next wait is longer."""
        ceiling, self._ceiling = self._ceiling, min(self._ceiling * 2, LONGEST_WAIT)
        return self._random.uniform(ceiling / 2, ceiling)

    def reset(self) -> None:
        """Start with short waits again, after a success."""
        self._ceiling = FIRST_WAIT
