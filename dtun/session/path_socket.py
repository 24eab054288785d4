"""One session's socket as the search for its path's MTU needs it: the edge around `dtun.session.pmtud`.

Native peers only: others get what the kernel does by itself.
"""

import contextlib
import errno
import socket

from dtun.protocol.messages import MIN_IPV6_MTU, MIN_MTU
from dtun.session import udp
from dtun.session.session import Session

TRIES = 3
"""For one datagram. A socket with an error of ICMP to report does so once, in place of sending what it is given."""


class PathSocket:
    """`known_mtu` is what a session before has found on the same path."""

    def __init__(self, sock: socket.socket, session: Session, known_mtu: int | None) -> None:
        self._socket = sock
        self._session = session
        self._known_mtu = known_mtu
        self._kernel_mtu = known_mtu or udp.ETHERNET
        self._headers = udp.outer_headers(sock)
        self._begun = False

    @property
    def mtu(self) -> int:
        """Bytes of the largest packet that the path takes, with all its headers, as far as is known."""
        path = self._session.path
        return path.current if path is not None else self._known_mtu or self.ask_kernel()

    @property
    def room(self) -> int:
        """Bytes of plaintext in a record that the path takes."""
        return self.mtu - self._headers - self._session.association.records.overhead

    def ask_kernel(self) -> int:
        """The kernel's estimate of the path's MTU; the one before while there is no route."""
        with contextlib.suppress(OSError):
            self._kernel_mtu = udp.path_mtu(self._socket)
        return self._kernel_mtu

    def discover(self, now: float) -> None:
        """Begin to look for the path's MTU as soon as the session is open, where fragments can be forbidden."""
        if self._begun or not self._session.open:
            return
        self._begun = True
        if not self._session.association.native:
            return
        try:
            udp.forbid_fragments(self._socket)
        except OSError:
            return
        smallest = MIN_IPV6_MTU if self._socket.family == socket.AF_INET6 else MIN_MTU
        self._session.discover(self.mtu, self._headers, smallest=smallest, now=now)

    def send(self, datagram: bytes) -> OSError | None:
        """Send one datagram; returns why the network does not take it."""
        refusal: OSError | None = None
        for _ in range(TRIES):
            try:
                self._socket.send(datagram)
            except OSError as error:
                refusal = error
                if error.errno != errno.EMSGSIZE:
                    break
            else:
                return None
        return refusal

    def send_probes(self, now: float) -> None:
        """Send the session's probes, and tell it which ones this host's own interface does not take."""
        for probe in self._session.take_probes():
            refusal = self.send(probe)
            if refusal is not None and refusal.errno == errno.EMSGSIZE:
                self._session.refused(self._headers + len(probe), now)
