"""Detects sleep of the computer by two clocks, of which one stands still meanwhile (clock_gettime(3)).

`time.monotonic()` stands still, too, and with it all timers of the event loop: after a night the keepalive would wait
for the rest of its interval, although NAT routers have dropped the tunnel's mapping long ago.
"""

import asyncio
from collections.abc import Callable

from dtun.platform.darwin import syscalls
from dtun.platform.darwin.constants import CLOCK_MONOTONIC_RAW, CLOCK_UPTIME_RAW

SHORTEST = 1.0
"""Seconds. A shorter difference may come from reading the clocks one after the other."""


class SleepDetector:
    """Compares readings of the two clocks, in seconds. Pure."""

    def __init__(self, raw: float, uptime: float) -> None:
        self._difference = raw - uptime

    def slept(self, raw: float, uptime: float) -> float:
        """Seconds slept since the last call; 0.0 if less than `SHORTEST`."""
        difference = raw - uptime
        slept = difference - self._difference
        if slept < SHORTEST:
            return 0.0
        self._difference = difference
        return slept


class SleepWatch:
    """Calls `woke` with the seconds slept after the computer wakes up, until closed.

    It compares the clocks every `interval` seconds while the computer is awake.
    """

    def __init__(self, woke: Callable[[float], None], interval: float) -> None:
        self._woke = woke
        self._interval = interval
        self._loop = asyncio.get_running_loop()
        self._detector = SleepDetector(*_clocks())
        self._timer = self._loop.call_later(interval, self._check)

    def close(self) -> None:
        self._timer.cancel()

    def _check(self) -> None:
        self._timer = self._loop.call_later(self._interval, self._check)
        if seconds := self._detector.slept(*_clocks()):
            self._woke(seconds)


def _clocks() -> tuple[float, float]:
    return syscalls.clock(CLOCK_MONOTONIC_RAW), syscalls.clock(CLOCK_UPTIME_RAW)
