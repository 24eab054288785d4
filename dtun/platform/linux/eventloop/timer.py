"""A timer as a file descriptor, for epoll (timerfd_create(2)).

    struct itimerspec   | interval: seconds, nanoseconds | from now: seconds, nanoseconds |   each a long of C

An interval of 0 means once; 0 from now disarms the timer.
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
    """Readable from its expiry until it is set again."""

    def __init__(self) -> None:
        """Create a disarmed timer.

        Raises:
            OSError: there are no more descriptors.
        """
        self._descriptor = _checked(_libc.timerfd_create(time.CLOCK_MONOTONIC, _TFD_NONBLOCK | _TFD_CLOEXEC))

    def fileno(self) -> int:
        return self._descriptor

    def set(self, seconds: float | None) -> None:
        """Expire once, `seconds` from now (at once if that is not positive); never if None."""
        # At least 1 ns, because 0 disarms the timer.
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
