"""What a connection inside Mbed TLS says about itself, and the bounds that it sets on identities and keys."""

from enum import Enum, auto
from typing import Final

IDENTITY_MAX: Final = 64  # bytes; longer ones can overflow clients of Mbed TLS (CVE-2026-50580)
KEY_MAX: Final = 32  # bytes; MBEDTLS_PSK_MAX_LEN
HANDSHAKE_MTU: Final = 1200  # bytes; room for any network's path MTU while it is not known yet


class Status(Enum):
    """Where a handshake stands after it has gone as far as its input allows."""

    WAITING = auto()
    COOKIE_SENT = auto()  # the server asked for a cookie and has forgotten everything else
    OVER = auto()
    FAILED = auto()


class Failure(Enum):
    """Why a connection broke off."""

    NONE = auto()
    CLOSED = auto()  # close_notify
    BAD_MAC = auto()
    NO_COMMON_SUITE = auto()
    ALERT = auto()
    TIMEOUT = auto()
    OTHER = auto()


def is_identity(identity: str) -> bool:
    """Whether a string may be an identity: 1 to 64 bytes, all of them fit for a log line."""
    return identity.isprintable() and 0 < len(identity.encode(errors="replace")) <= IDENTITY_MAX


def is_key(key: bytes) -> bool:
    """Whether Mbed TLS can take a key of this length."""
    return 0 < len(key) <= KEY_MAX
