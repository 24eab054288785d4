"""Where descriptors survive this process, so that its successor can go on where it ended."""

import os
import socket
from typing import Protocol


class FdStore(Protocol):
    """Keeps descriptors by name, under the service manager's care or not at all: `keeps`."""

    keeps: bool

    def keep(self, name: str, descriptor: int) -> None:
        """Have a copy of this descriptor kept until `forget`; in place of what had the name before."""
        ...

    def forget(self, name: str) -> None:
        """Nobody needs this one any more."""
        ...

    def take(self, name: str) -> int | None:
        """What a process before this one kept under this name; the caller owns it now. None if there is nothing."""
        ...

    def names(self) -> list[str]:
        """The names of what is there to take."""
        ...

    def listeners(self) -> list[socket.socket]:
        """UDP sockets that the service manager listens on for us; the caller owns them now."""
        ...

    def give_up_rest(self) -> None:
        """Let go of what nobody has taken."""
        ...


class NoFdStore:
    """For where nothing is kept."""

    keeps = False

    def keep(self, name: str, descriptor: int) -> None:
        """Nobody keeps it."""

    def forget(self, name: str) -> None:
        """There is nothing to forget."""

    def take(self, name: str) -> int | None:
        del name
        return None

    def names(self) -> list[str]:
        return []

    def listeners(self) -> list[socket.socket]:
        return []

    def give_up_rest(self) -> None:
        """There is nothing to give up."""


def listener_name(endpoint: object) -> str:
    """The name under which the socket that listens at this address is kept. A colon may not be in a name."""
    return f"listen.{str(endpoint).replace(':', '_')}"


def tun_name(device: str) -> str:
    """The name under which a TUN device is kept."""
    return f"tun.{device}"


def session_name(device: str) -> str:
    """The name under which the session in service on this device is kept (a memfd)."""
    return f"session.{device}"


def socket_name(device: str) -> str:
    """The name under which that session's UDP socket is kept."""
    return f"socket.{device}"


def sessions(fdstore: FdStore) -> list[str]:
    """The devices whose sessions are there to take."""
    prefix = session_name("")
    return [name.removeprefix(prefix) for name in fdstore.names() if name.startswith(prefix)]


def discard(descriptor: int | None) -> None:
    """Close what was taken and turned out to be of no use."""
    if descriptor is not None:
        os.close(descriptor)
