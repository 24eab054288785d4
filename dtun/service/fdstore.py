"""systemd's file descriptor store, and the sockets that it listens on for us (sd_listen_fds(3), sd_notify(3)).

It keeps what it was given over restarts, crashes and watchdog kills of a service, until the service is stopped.
"""

import logging
import os
import socket
from collections.abc import Mapping
from contextlib import suppress

log = logging.getLogger("dtun.service")

FIRST = 3
"""The first descriptor that is handed over (SD_LISTEN_FDS_START)."""


KEPT = ("tun.", "session.", "socket.", "listen.")
"""What names begin with that a process before this one has given; others are of socket units."""


class SystemdFdStore:
    """Implements `dtun.handover.fdstore.FdStore`. Reads the environment once; hooks do not inherit what it has."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        self.keeps = self._address is not None
        self._inherited: dict[str, list[int]] = {}
        for name, descriptor in _handed_over(environment):
            os.set_inheritable(descriptor, False)
            self._inherited.setdefault(name, []).append(descriptor)

    def keep(self, name: str, descriptor: int) -> None:
        """See `FdStore.keep`. Not polled: systemd would drop a device that reports an error for a moment (FDPOLL=0)."""
        self._send(f"FDSTOREREMOVE=1\nFDNAME={name}")
        self._send(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", descriptor)

    def forget(self, name: str) -> None:
        """See `FdStore.forget`."""
        self._send(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def take(self, name: str) -> int | None:
        """See `FdStore.take`. The store keeps its copy."""
        descriptors = self._inherited.get(name)
        return descriptors.pop() if descriptors else None

    def names(self) -> list[str]:
        """See `FdStore.names`."""
        return [name for name, descriptors in self._inherited.items() if descriptors]

    def listeners(self) -> list[socket.socket]:
        """The UDP sockets that a socket unit listens on; empty without one."""
        found = []
        for name, descriptors in list(self._inherited.items()):
            if name.startswith(KEPT):
                continue
            del self._inherited[name]
            for descriptor in descriptors:
                made = _udp_socket(descriptor)
                if made is not None:
                    found.append(made)
                else:
                    log.warning(
                        "%s hands over something else than a UDP socket; it is not used (ListenDatagram= is for those)",
                        name,
                    )
        return found

    def give_up_rest(self) -> None:
        """See `FdStore.give_up_rest`: the configuration has changed meanwhile."""
        for name, descriptors in self._inherited.items():
            for descriptor in descriptors:
                os.close(descriptor)
                self.forget(name)
        self._inherited.clear()

    def _send(self, message: str, *descriptors: int) -> None:
        if self._address is None:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            # Blocking for a moment at most: what is not kept now is lost with this process.
            sender.settimeout(1)
            sender.connect(self._address)
            socket.send_fds(sender, [message.encode()], descriptors)


def _udp_socket(descriptor: int) -> socket.socket | None:
    """The descriptor as what it should be; closed, if it is something else."""
    try:
        made = socket.socket(fileno=descriptor)
    except OSError:  # a FIFO, a file
        os.close(descriptor)
        return None
    if made.type == socket.SOCK_DGRAM and made.family in (socket.AF_INET, socket.AF_INET6):
        made.setblocking(False)
        return made
    made.close()
    return None


def _address(text: str) -> str | None:
    if text.startswith("@"):
        return "\0" + text[1:]  # Linux's abstract namespace
    return text if text.startswith("/") else None


def _handed_over(environment: Mapping[str, str]) -> list[tuple[str, int]]:
    try:
        count = int(environment.get("LISTEN_FDS", "0"))
        meant = int(environment.get("LISTEN_PID", "0")) == os.getpid()
    except ValueError:
        return []
    if not meant:
        return []
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    names += ["unknown"] * (count - len(names))
    return list(zip(names, range(FIRST, FIRST + count), strict=False))
