"""Errors that end dtun or a command, and their exit codes.

The exit codes follow sysexits(3), so that a service manager knows which failures a restart does not fix.
"""

from typing import ClassVar


class DtunError(Exception):
    """Its message says what went wrong, where, and what to do. It never contains a secret."""

    exit_code: ClassVar[int] = 1


class UnavailableError(DtunError):
    """A port, a device, an address or the like is missing or in use (EX_UNAVAILABLE)."""

    exit_code = 69


class PermissionDeniedError(DtunError):
    """A permission is missing (EX_NOPERM): CAP_NET_ADMIN, an unreadable file."""

    exit_code = 77


class ConfigError(DtunError):
    """The configuration or a key is wrong (EX_CONFIG)."""

    exit_code = 78
