"""Gets a server's listening sockets: from a socket unit, from the process before this one, or new ones."""

import logging
import socket

from dtun.config import Endpoint, ServerConfig
from dtun.errors import DtunError, UnavailableError
from dtun.handover.fdstore import FdStore, discard, listener_name
from dtun.session import udp

log = logging.getLogger("dtun.server")


def endpoints(config: ServerConfig) -> list[Endpoint]:
    """Where to listen: by default on IPv6 only if the kernel has it."""
    if "listen" in config.model_fields_set or udp.has_ipv6():
        return list(config.listen)
    log.info("this kernel has no IPv6, so there is IPv4 only")
    return [endpoint for endpoint in config.listen if endpoint.address.version == 4]


class Listeners:
    """Gets the listening sockets for a start."""

    def __init__(self, fdstore: FdStore) -> None:
        self._fdstore = fdstore
        self._given = fdstore.listeners()

    def find(self, endpoint: Endpoint) -> tuple[socket.socket, bool]:
        """The socket for this address, and whether it has to go into the fd store: systemd keeps that of a unit.

        Raises:
            UnavailableError: the port is taken, perhaps by a socket unit with another address than `listen`.
            PermissionDeniedError: this process may not use ports below 1024.
        """
        try:
            return self._find(endpoint)
        except DtunError:
            self._close_rest()
            raise

    def close(self) -> None:
        """Close the sockets of a socket unit that `listen` does not name, with a warning."""
        for unused in self._given:
            where = udp.show(unused.getsockname())
            log.warning("the socket unit listens on %s, which `listen` does not name; it is not used", where)
        self._close_rest()

    def _find(self, endpoint: Endpoint) -> tuple[socket.socket, bool]:
        kept = self._fdstore.take(listener_name(endpoint))
        for index, sock in enumerate(self._given):
            if sock.getsockname()[:2] == (str(endpoint.address), endpoint.port):
                if kept is not None:  # the unit is new
                    discard(kept)
                    self._fdstore.forget(listener_name(endpoint))
                _check(sock)
                return udp.prepare_listener(self._given.pop(index)), False
        if kept is not None:
            return udp.prepare_listener(socket.socket(fileno=kept)), True
        try:
            # Sessions of the process before this one may have the port, whatever it listened on.
            shared = endpoint.port in self._fdstore.ports
            return udp.listen(str(endpoint.address), endpoint.port, shared=shared), True
        except UnavailableError as error:
            for sock in self._given:
                if sock.getsockname()[1] == endpoint.port:
                    where = udp.show(sock.getsockname())
                    raise UnavailableError(
                        f"listen: the socket unit listens on {where}, not on {endpoint}; make them the same"
                    ) from error
            raise

    def _close_rest(self) -> None:
        for unused in self._given:
            unused.close()
        self._given.clear()


def _check(given: socket.socket) -> None:
    """Refuse a socket for both IPv6 and IPv4: the addresses of IPv4 clients would have another form there."""
    if given.family == socket.AF_INET6 and not given.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
        where = udp.show(given.getsockname())
        raise UnavailableError(
            f"listen: the socket unit's {where} is for IPv4, too; add BindIPv6Only=ipv6-only to the unit"
        )
