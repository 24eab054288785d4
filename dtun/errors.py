"""What dtun says to a person when it cannot go on, and with which exit code.

The exit codes follow sysexits(3), so that a service manager can tell what a restart will not mend.
"""

from typing import ClassVar


class DtunError(Exception):
    """One clear message: what went wrong, where, and what to do. Never holds a secret."""

    exit_code: ClassVar[int] = 1


class UnavailableError(DtunError):
    """Something that this host should offer is missing or taken (EX_UNAVAILABLE): a port, a device, an address."""

    exit_code = 69


class PermissionDeniedError(DtunError):
    """A right is missing (EX_NOPERM): no CAP_NET_ADMIN, an unreadable file."""

    exit_code = 77


class ConfigError(DtunError):
    """The configuration or a key is not usable as it is (EX_CONFIG): a restart alone does not help."""

    exit_code = 78
