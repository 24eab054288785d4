"""A timer that is a descriptor, so that one wait is for it and for all others (timerfd_create(2)).

    struct itimerspec   | interval: seconds, nanoseconds | from now: seconds, nanoseconds |   each a long of C

An interval of 0 is for once; "from now" 0 turns the timer off.
"""

import ctypes
import os
import struct
import time
from typing import Final

_TFD_NONBLOCK: Final = os.O_NONBLOCK
_TFD_CLOEXEC: Final = os.O_CLOEXEC
_SPEC: Final = struct.Struct("@4l")
_NANOSECONDS: Final = 1_000_000_000

_libc: Final = ctypes.CDLL(None, use_errno=True)


class Timer:
    """Can be read from, as far as epoll is concerned, from when its time has come until it is set again."""

    def __init__(self) -> None:
        """Raises OSError when there are no more descriptors."""
        self._descriptor = _checked(_libc.timerfd_create(time.CLOCK_MONOTONIC, _TFD_NONBLOCK | _TFD_CLOEXEC))

    def fileno(self) -> int:
        return self._descriptor

    def set(self, seconds: float | None) -> None:
        """Go off once, `seconds` from now, at once if that is not after now; never if None."""
        # 1 ns from now at the earliest: 0 would be never.
        spec = (0, 0) if seconds is None else divmod(max(round(seconds * _NANOSECONDS), 1), _NANOSECONDS)
        _checked(_libc.timerfd_settime(self._descriptor, 0, _SPEC.pack(0, 0, *spec), None))

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
