"""Darwin's error numbers, which Linux counts differently from 35 on (sys/errno.h), and what they say to a person."""

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
"""What the kernel says when there is nothing left to remove."""

NOT_PERMITTED: Final = "may not change the host's network: that takes root; start dtun with launchd or sudo"

_WORDS: Final = {
    EPERM: "operation not permitted",
    ENOENT: "no such file or directory",
    ESRCH: "there is no such route",
    ENXIO: "there is no such device",
    EACCES: "permission denied",
    EBUSY: "the device is taken",
    EEXIST: "it exists",
    EINVAL: "the kernel finds it invalid",
    EDESTADDRREQ: "a point-to-point device needs the address of its peer",
    EADDRNOTAVAIL: "there is no such address",
    ENETDOWN: "the device is down",
    ENETUNREACH: "there is no way to the gateway, or the device has no address of that IP version",
    ENOBUFS: "no buffer space available",
}


def words(error: OSError) -> str:
    """The kernel's reason, without a full stop."""
    number = error.errno or 0
    return _WORDS.get(number) or (error.strerror or f"error {number}").lower()


@contextmanager
def in_words() -> Iterator[None]:
    """Around questions: an error of the kernel becomes an UnavailableError for a person."""
    try:
        yield
    except OSError as error:
        raise UnavailableError(f"the kernel does not tell its routes: {words(error)}") from None
