"""Where the listening sockets of a server come from: a socket unit, the process before this one, or the kernel."""

import logging
import socket

from dtun.config import Endpoint
from dtun.errors import DtunError, UnavailableError
from dtun.handover.fdstore import FdStore, discard, listener_name
from dtun.session import udp

log = logging.getLogger("dtun.server")


class Listeners:
    """Finds the sockets for a start."""

    def __init__(self, fdstore: FdStore) -> None:
        self._fdstore = fdstore
        self._given = fdstore.listeners()

    def find(self, endpoint: Endpoint) -> tuple[socket.socket, bool]:
        """The socket for this address, and whether a successor depends on us to keep it: systemd has that of a unit.

        Raises:
            UnavailableError: the port is taken, perhaps by a socket unit that says something else than `listen`.
            PermissionDeniedError: ports below 1024 need a right that this process does not have.
        """
        try:
            return self._find(endpoint)
        except DtunError:
            self._let_go()
            raise

    def close(self) -> None:
        """What a socket unit has and `listen` does not name."""
        for unused in self._given:
            where = udp.show(unused.getsockname())
            log.warning("the socket unit listens on %s, which `listen` does not name; it is not used", where)
        self._let_go()

    def _find(self, endpoint: Endpoint) -> tuple[socket.socket, bool]:
        kept = self._fdstore.take(listener_name(endpoint))
        for index, sock in enumerate(self._given):
            if sock.getsockname()[:2] == (str(endpoint.address), endpoint.port):
                if kept is not None:  # from before there was a unit
                    discard(kept)
                    self._fdstore.forget(listener_name(endpoint))
                _check(sock)
                return udp.prepare_listener(self._given.pop(index)), False
        if kept is not None:
            return udp.prepare_listener(socket.socket(fileno=kept)), True
        try:
            return udp.listen(str(endpoint.address), endpoint.port), True
        except UnavailableError as error:
            for sock in self._given:
                if sock.getsockname()[1] == endpoint.port:
                    where = udp.show(sock.getsockname())
                    raise UnavailableError(
                        f"listen: the socket unit listens on {where}, not on {endpoint}; make them the same"
                    ) from error
            raise

    def _let_go(self) -> None:
        for unused in self._given:
            unused.close()
        self._given.clear()


def _check(given: socket.socket) -> None:
    """One that serves IPv6 and IPv4 at once is none of ours: its clients' addresses would be of another form."""
    if given.family == socket.AF_INET6 and not given.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
        where = udp.show(given.getsockname())
        raise UnavailableError(
            f"listen: the socket unit's {where} is for IPv4, too; add BindIPv6Only=ipv6-only to the unit"
        )
