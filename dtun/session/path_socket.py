"""A session's socket for path MTU discovery: the I/O around `dtun.session.pmtud`.

Native peers only: a Go dtun answers no probes, and gets what the kernel does by itself.
"""

import contextlib
import errno
import socket

from dtun.protocol.messages import MIN_IPV6_MTU, MIN_MTU
from dtun.session import udp
from dtun.session.session import Session

TRIES = 3
"""Attempts for one datagram: a pending ICMP error makes one send fail."""


class PathSocket:
    """Sends datagrams and probes. `known_mtu` is what an earlier session found on the same path."""

    def __init__(self, sock: socket.socket, session: Session, known_mtu: int | None) -> None:
        self._socket = sock
        self._session = session
        self._known_mtu = known_mtu
        self._kernel_mtu = known_mtu or udp.ETHERNET
        self._headers = udp.outer_headers(sock)
        self._started = False

    @property
    def mtu(self) -> int:
        """The path's MTU in bytes, outer headers included, as far as is known."""
        path = self._session.path
        return path.current if path is not None else self._known_mtu or self.ask_kernel()

    @property
    def room(self) -> int:
        """Bytes of plaintext in the largest record that the path carries."""
        return self.mtu - self._headers - self._session.association.records.overhead

    def ask_kernel(self) -> int:
        """The kernel's estimate of the path's MTU; the last one while there is no route."""
        with contextlib.suppress(OSError):
            self._kernel_mtu = udp.path_mtu(self._socket)
        return self._kernel_mtu

    def start_discovery(self, now: float) -> None:
        """Start path MTU discovery once the session is open, where the kernel can forbid fragmentation."""
        if self._started or not self._session.open:
            return
        self._started = True
        if not self._session.association.native:
            return
        try:
            udp.forbid_fragments(self._socket)
        except OSError:
            return
        smallest = MIN_IPV6_MTU if self._socket.family == socket.AF_INET6 else MIN_MTU
        self._session.start_discovery(self.mtu, self._headers, smallest=smallest, now=now)

    def send(self, datagram: bytes) -> OSError | None:
        """Send one datagram; returns the error if that fails."""
        failure: OSError | None = None
        for _ in range(TRIES):
            try:
                self._socket.send(datagram)
            except OSError as error:
                failure = error
                if error.errno != errno.EMSGSIZE:
                    break
            else:
                return None
        return failure

    def send_probes(self, now: float) -> None:
        """Send the session's probes; report those that are too large for this host's own interface."""
        for probe in self._session.take_probes():
            if not self._session.may_send(len(probe)):
                continue
            failure = self.send(probe)
            if failure is not None and failure.errno == errno.EMSGSIZE:
                self._session.probe_refused(self._headers + len(probe), now)
