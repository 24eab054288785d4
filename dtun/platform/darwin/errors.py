"""Darwin's error numbers (sys/errno.h), which differ from Linux's from 35 on, and their messages."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from dtun.errors import UnavailableError

EPERM: Final = 1
ENOENT: Final = 2
ESRCH: Final = 3
ENXIO: Final = 6
EACCES: Final = 13
EBUSY: Final = 16
EEXIST: Final = 17
EINVAL: Final = 22
EDESTADDRREQ: Final = 39
EADDRNOTAVAIL: Final = 49
ENETDOWN: Final = 50
ENETUNREACH: Final = 51
ENOBUFS: Final = 55

GONE: Final = frozenset({ENOENT, ESRCH, ENXIO, EADDRNOTAVAIL})
"""A removal fails with these when there is nothing to remove."""

NOT_PERMITTED: Final = "may not change the host's network: only root may; start dtun with launchd or sudo"

_REASONS: Final = {
    EPERM: "operation not permitted",
    ENOENT: "no such file or directory",
    ESRCH: "there is no such route",
    ENXIO: "there is no such device",
    EACCES: "permission denied",
    EBUSY: "the device is in use",
    EEXIST: "it exists already",
    EINVAL: "invalid argument",
    EDESTADDRREQ: "a point-to-point device needs the address of its peer",
    EADDRNOTAVAIL: "there is no such address",
    ENETDOWN: "the device is down",
    ENETUNREACH: "the gateway is unreachable, or the device has no address of that IP version",
    ENOBUFS: "no buffer space available",
}


def reason(error: OSError) -> str:
    """The kernel's reason, without a full stop."""
    number = error.errno or 0
    return _REASONS.get(number) or (error.strerror or f"error {number}").lower()


@contextmanager
def unavailable_if_refused() -> Iterator[None]:
    """Turn an OSError of a read from the kernel into UnavailableError."""
    try:
        yield
    except OSError as error:
        raise UnavailableError(f"cannot read the kernel's routes: {reason(error)}") from None
