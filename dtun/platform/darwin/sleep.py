"""Notices that the computer has slept: one clock goes on meanwhile, the other stands still (clock_gettime(3)).

`time.monotonic()`, and with it every timer of the event loop, stands still, too: after a night of sleep the keepalive
would wait for the rest of its seconds, while the NAT in front of us has long forgotten the tunnel.
"""

import asyncio
from collections.abc import Callable

from dtun.platform.darwin import syscalls
from dtun.platform.darwin.constants import CLOCK_MONOTONIC_RAW, CLOCK_UPTIME_RAW

SHORTEST = 1.0
"""Seconds of sleep that count. The clocks are read one after the other, so that they never agree to the last digit."""


class SleepCount:
    """Compares the two clocks. Pure: both readings come in, in seconds."""

    def __init__(self, raw: float, uptime: float) -> None:
        self._apart = raw - uptime

    def slept(self, raw: float, uptime: float) -> float:
        """Seconds slept since the last call; 0.0 if it was none worth mentioning."""
        apart = raw - uptime
        gap = apart - self._apart
        if gap < SHORTEST:
            return 0.0
        self._apart = apart
        return gap


class SleepWatch:
    """Calls `woke` with the seconds slept, soon after the computer has woken up, until closed.

    It looks every `interval` seconds while the computer is awake.
    """

    def __init__(self, woke: Callable[[float], None], interval: float) -> None:
        self._woke = woke
        self._interval = interval
        self._loop = asyncio.get_running_loop()
        self._count = SleepCount(*_clocks())
        self._timer = self._loop.call_later(interval, self._look)

    def close(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        self._timer = self._loop.call_later(self._interval, self._look)
        if seconds := self._count.slept(*_clocks()):
            self._woke(seconds)


def _clocks() -> tuple[float, float]:
    return syscalls.clock(CLOCK_MONOTONIC_RAW), syscalls.clock(CLOCK_UPTIME_RAW)
