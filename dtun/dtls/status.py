"""What a connection inside Mbed TLS reports, and its limits on identities and keys.

Apart from mbed.py, because importing that takes 0.1 s, and commands that make no handshake need these, too.
"""

from enum import Enum, auto
from typing import Final

IDENTITY_MAX: Final = 64  # bytes; longer ones can overflow clients of Mbed TLS (CVE-2026-50580)
KEY_MAX: Final = 32  # bytes; MBEDTLS_PSK_MAX_LEN
HANDSHAKE_MTU: Final = 1200  # bytes; fits the path MTU of any network, which is not known yet


class Status(Enum):
    """The state of a handshake after all of its input was processed."""

    WAITING = auto()
    COOKIE_SENT = auto()  # the server asked for a cookie and keeps no state
    OVER = auto()
    FAILED = auto()


class Failure(Enum):
    """Why a connection ended."""

    NONE = auto()
    CLOSED = auto()  # close_notify
    BAD_MAC = auto()
    NO_COMMON_SUITE = auto()
    ALERT = auto()
    TIMEOUT = auto()
    OTHER = auto()


class ExportError(Exception):
    """The state of Mbed TLS is not as expected, or Mbed TLS refuses it. Holds no secret."""


def is_identity(identity: str) -> bool:
    """Whether a string may be an identity: 1 to 64 bytes, all printable."""
    return identity.isprintable() and 0 < len(identity.encode(errors="replace")) <= IDENTITY_MAX


def is_key(key: bytes) -> bool:
    """Whether Mbed TLS accepts a key of this length."""
    return 0 < len(key) <= KEY_MAX
