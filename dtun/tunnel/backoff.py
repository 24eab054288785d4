"""How long to wait before trying again."""

import random

FIRST = 0.5
"""Seconds before the second try, at most."""

LONGEST = 15.0
"""Seconds between two tries, at most: an outage of any length ends within that time."""


class Backoff:
    """Exponential, with full jitter in the upper half, so that many clients do not come back as one."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self._random = rng or random.Random()  # noqa: S311 - spreads load, hides nothing
        self._ceiling = FIRST

    def next(self) -> float:
        """Seconds to wait now; longer the next time."""
        ceiling, self._ceiling = self._ceiling, min(self._ceiling * 2, LONGEST)
        return self._random.uniform(ceiling / 2, ceiling)

    def reset(self) -> None:
        """Something worked: begin anew."""
        self._ceiling = FIRST
