"""Where descriptors outlive this process, so that its successor resumes the sessions; and their names there."""

import os
import socket
from typing import Final, Protocol

_LISTENER: Final = "listen."
_TUN: Final = "tun."
_SESSION: Final = "session."
_SOCKET: Final = "socket."

CONFIG: Final = "config"
"""The name of the memfd with the configuration in use."""

PREFIXES: Final = (_LISTENER, _TUN, _SESSION, _SOCKET, CONFIG)
"""How the names of kept descriptors begin."""


class FdStore(Protocol):
    """Keeps descriptors by name for the next process, if `keeps`; otherwise it keeps nothing."""

    keeps: bool

    @property
    def ports(self) -> frozenset[int]:
        """The UDP ports of kept sockets and of a socket unit's. No other program can have them meanwhile."""
        ...

    def keep(self, name: str, descriptor: int) -> None:
        """Keep a copy of this descriptor until `forget`; it replaces the one of this name."""
        ...

    def forget(self, name: str) -> None:
        """Keep this one no longer."""
        ...

    def take(self, name: str) -> int | None:
        """The descriptor that the last process kept under this name; the caller owns it now. None without one.

        After None, nothing that was forgotten is open any more: a device or a port of that name can be made anew.
        """
        ...

    def names(self) -> list[str]:
        """The names that `take` has descriptors for."""
        ...

    def listeners(self) -> list[socket.socket]:
        """The UDP sockets on which the service manager listens for dtun; the caller owns them now."""
        ...

    def close_rest(self) -> None:
        """Close and forget what was not taken: the configuration has changed meanwhile."""
        ...


class NoFdStore:
    """Keeps nothing."""

    keeps = False
    ports: frozenset[int] = frozenset()

    def keep(self, name: str, descriptor: int) -> None: ...

    def forget(self, name: str) -> None: ...

    def take(self, name: str) -> int | None:
        del name
        return None

    def names(self) -> list[str]:
        return []

    def listeners(self) -> list[socket.socket]:
        return []

    def close_rest(self) -> None: ...


def listener_name(endpoint: object) -> str:
    """The name of the socket that listens at this address. systemd allows no colon in a name."""
    return _LISTENER + str(endpoint).replace(":", "_")


def tun_name(device: str) -> str:
    return _TUN + device


def session_name(device: str) -> str:
    """The name of the memfd with the session that serves on this device."""
    return _SESSION + device


def socket_name(device: str) -> str:
    """The name of that session's UDP socket."""
    return _SOCKET + device


def sessions(fdstore: FdStore) -> list[str]:
    """The devices that have a session to take."""
    return [name.removeprefix(_SESSION) for name in fdstore.names() if name.startswith(_SESSION)]


def devices(fdstore: FdStore) -> list[str]:
    """The TUN devices to take."""
    return [name.removeprefix(_TUN) for name in fdstore.names() if name.startswith(_TUN)]


def discard(descriptor: int | None) -> None:
    """Close a descriptor that was taken and cannot be used."""
    if descriptor is not None:
        os.close(descriptor)
