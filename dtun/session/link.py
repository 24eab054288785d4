"""A session at work: its connected UDP socket, its timer, and its place in the data plane. The I/O around `Session`."""

import asyncio
import errno
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from dtun.dataplane.datagrams import RECEIVE_SIZE, Datagrams
from dtun.dataplane.pump import Port, Pump
from dtun.protocol.messages import MIN_IPV6_MTU, MIN_MTU, Message
from dtun.protocol.record import MAX_PLAINTEXT
from dtun.session import udp
from dtun.session.path_socket import PathSocket
from dtun.session.session import AddressProven, Event, PathMtuChanged, Reason, Session
from dtun.session.udp import SockAddr

SEGMENT_HEADER = 4
"""Bytes of each record's plaintext kept for the header of a segment, so that a full one still fits the path."""

UNPROVEN = "for a new address that is not proven"
"""The reason of drops until a peer that has moved has answered from its new address."""

# Content types change_cipher_spec and handshake (RFC 5246, section 6.2.1).
_HANDSHAKE_RECORDS = (b"\x14", b"\x16")


class Link:
    """Moves datagrams between a session and its socket until the session is closed, then closes the socket.

    `on_event` gets the session's events in order, `on_handshake` a handshake record that arrived on an established
    session (a ClientHello at a server, a HelloRequest at a client), `on_path` an errno about the path. `known_mtu` is
    the MTU that an earlier session found on the same path. `control_received` counts what was not a packet.
    `on_heard`, if set, is called for each datagram before the data plane has the socket.
    """

    def __init__(
        self,
        sock: socket.socket,
        session: Session,
        *,
        on_event: Callable[["Link", Event], None],
        on_handshake: Callable[["Link", bytes], None],
        on_path: Callable[["Link", int], None],
        loop: asyncio.AbstractEventLoop,
        known_mtu: int | None = None,
    ) -> None:
        self.session = session
        self.peer: SockAddr = sock.getpeername()
        self.local_address = str(sock.getsockname()[0])
        self.local_port: int = sock.getsockname()[1]
        self.drops: Counter[str] = session.drops
        self.control_received = 0
        self.on_heard: Callable[[], None] | None = None
        self._socket = sock
        self._on_event = on_event
        self._on_handshake = on_handshake
        self._on_path = on_path
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._port: Port | None = None
        self._pump: Pump | None = None
        self._path = PathSocket(sock, session, known_mtu)
        self._agreed = 0
        self._proven_peer = self.peer
        loop.add_reader(sock, self._readable)

    @property
    def endpoint(self) -> str:
        """The peer's UDP address, for people."""
        return udp.show(self.peer)

    def ended(self) -> bool:
        """Whether the session has ended and the socket is closed."""
        return self._socket.fileno() < 0

    def fileno(self) -> int:
        """The descriptor of the socket; -1 after the end."""
        return self._socket.fileno()

    @property
    def attached(self) -> bool:
        """Whether the data plane has the socket."""
        return self._port is not None and not self.ended()

    @property
    def highest(self) -> int:
        """The highest sequence number of an authentic record from the peer."""
        return self.session.association.records.highest

    @property
    def path_mtu(self) -> int:
        """The path's MTU in bytes, outer headers included, as far as is known."""
        return self._path.mtu

    @property
    def warnings(self) -> list[str]:
        """Problems of this session, for the log and the status."""
        reason = self.session.association.fallback_reason
        return [f"records stay in Mbed TLS, which is slow: {reason}"] if reason else []

    @property
    def inner_mtu(self) -> int:
        """Bytes of the largest inner packet that fits into one record and one outer packet."""
        return max(min(self._path.room, MAX_PLAINTEXT) - SEGMENT_HEADER, MIN_MTU)

    def agree_mtu(self, configured: int | None, peers: int | None, *, ipv6: bool) -> int:
        """Set and return the tunnel's MTU: `configured`, or the largest that both ends can send whole.

        It may exceed what the path carries: if configured so, or with IPv6 inside, whose minimum of 1,280 bytes does
        not fit into a path of 1,280 bytes. Packets that are too large are then sent in pieces.
        """
        mtu = configured or min(self.inner_mtu, peers or MAX_PLAINTEXT)
        self._agreed = max(mtu, MIN_IPV6_MTU) if ipv6 else mtu
        self._choose_sealing()
        return self._agreed

    def start(self, early: Iterable[bytes] = ()) -> None:
        """Send the session's first datagrams. `early` are plaintexts that came with the handshake's last flight."""
        for plaintext in early:
            self.session.receive_plaintext(plaintext, self._loop.time())
        self.flush()

    def send(self, message: Message) -> None:
        self.session.send(message, self._loop.time())
        self.flush()

    def close(self, reason: Reason, text: str, *, tell: bool = True) -> None:
        """End the session from this side; `on_event` gets Closed."""
        self.session.close(reason, text, self._loop.time(), tell=tell)
        self.flush()

    def attach(self, pump: Pump) -> None:
        """Hand the socket to the data plane: from now on packets go out through this session."""
        records = self.session.association.records
        self._pump = pump
        self._port = Port(
            Datagrams(self._socket),
            seal=None,
            seal_batch=records.seal_batch,
            open=records.open,
            open_next=records.open_next,
            open_batch=records.open_batch,
            on_control=self._receive_control,
            on_nothing=self._receive_other,
            on_error=self._path_error,
        )
        self._set_flow(self._port)
        self._choose_sealing()
        pump.attach(self._port)
        pump.deliver(self.session.take_early_packets())

    def move(self, peer: SockAddr, received: int) -> None:
        """Continue with the peer at another address (NAT rebinding), from which `received` bytes have come.

        Until it has answered from there, only little is sent there: see `dtun.session.new_address`.

        Raises:
            OSError: there is no route to the new address.
        """
        now = self._loop.time()
        self._socket.connect(peer)
        self.peer = peer
        if self._port is not None:
            self._set_flow(self._port)
        if self.session.path is not None:
            self.session.path.restart(self._path.ask_kernel(), now)
        if peer == self._proven_peer:
            self.session.back()
        else:
            self.session.moved(received, now)
        self._choose_sealing()
        self.flush()

    def receive(self, datagram: bytes) -> None:
        """Process a datagram for this session that arrived at another socket (the listening one)."""
        if self.ended():
            return
        if self._pump is not None and self._port is not None:
            self._pump.receive(self._port, datagram)
        else:
            self.session.receive(datagram, self._loop.time())
            self.flush()

    def flush(self) -> None:
        """Send what is due, set the timer, deliver the events; close the socket once the session has ended."""
        if self.ended():
            return
        now = self._loop.time()
        self._path.start_discovery(now)
        for datagram in self.session.take_outgoing():
            if not self.session.may_send(len(datagram)):
                self.drops[UNPROVEN] += 1
                continue
            error = self._path.send(datagram)
            if error is not None:
                self.drops[f"udp send: {errno.errorcode.get(error.errno or 0, 'error')}"] += 1
        self._path.send_probes(now)
        events = self.session.take_events()
        if AddressProven() in events:
            self._proven_peer = self.peer
            if self.session.path is not None:
                # What was probed until now may have been held back.
                self.session.path.restart(self._path.ask_kernel(), now)
        if PathMtuChanged() in events or AddressProven() in events:
            self._choose_sealing()
        if self.session.closed is not None:
            self._release()
        else:
            self._set_timer()
        for event in events:
            self._on_event(self, event)

    def _readable(self) -> None:
        """Read one datagram, before the data plane has the socket."""
        try:
            datagram = self._socket.recv(RECEIVE_SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            self._path_error(error.errno or 0)
            return
        if self.on_heard is not None:
            self.on_heard()
        if self.session.association.takeover_done and datagram[:1] in _HANDSHAKE_RECORDS:
            self._on_handshake(self, datagram)
        self.session.receive(datagram, self._loop.time())
        self.flush()

    def _receive_control(self, plaintext: bytes) -> None:
        self.control_received += 1
        self.session.receive_plaintext(plaintext, self._loop.time())
        if self._pump is not None:
            self._pump.deliver(self.session.take_early_packets())
        self.flush()

    def _receive_other(self, datagram: bytes) -> None:
        self.control_received += 1
        if datagram[:1] in _HANDSHAKE_RECORDS:
            self._on_handshake(self, datagram)
        elif self.session.association.records.closed:
            self.session.check_closed(self._loop.time())
            self.flush()

    def _set_flow(self, port: Port) -> None:
        port.set_flow(udp.host_of(self.peer).packed, self.local_port, self.peer[1])

    def _path_error(self, number: int) -> None:
        if self.ended():
            return
        if number == errno.EMSGSIZE:
            self.session.packet_too_big(self._path.ask_kernel(), self._loop.time())
            self.flush()
        else:
            self._on_path(self, number)

    def _choose_sealing(self) -> None:
        """Cut packets into pieces only if packets of the tunnel's MTU are too large for the path."""
        if self._port is None:
            return
        records = self.session.association.records
        if self.session.new_address is not None:
            self._port.seal_with(None, self._seal_for_new_address)
            return
        cuts = self.session.path is not None and self._agreed + SEGMENT_HEADER > self.session.room
        self._port.seal_with(
            records.seal if records.offloaded and not cuts else None,
            self._seal_pieces if cuts else records.seal_batch,
        )

    def _seal_pieces(self, plaintexts: Sequence[bytes]) -> list[bytes]:
        return self.session.association.records.seal_batch(self.session.cut(plaintexts))

    def _seal_for_new_address(self, plaintexts: Sequence[bytes]) -> list[bytes]:
        """Records of as many as may be sent to an address that is not proven. The rest is dropped, as on a bad path."""
        session, records = self.session, self.session.association.records
        allowed = []
        for plaintext in session.cut(plaintexts):
            if session.may_send(len(plaintext) + records.overhead):
                allowed.append(plaintext)
            else:
                self.drops[UNPROVEN] += 1
        return records.seal_batch(allowed)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        when = self.session.next_timer()
        self._timer = None if when is None else self._loop.call_at(when, self._tick)

    def _tick(self) -> None:
        sent = self._pump.sent if self._pump is not None else 0
        self.session.poll(self._loop.time(), sent=sent, kernel_mtu=self._path.ask_kernel())
        self.flush()

    def _release(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._pump is not None and self._port is not None:
            self._pump.detach(self._port)
        else:
            self._loop.remove_reader(self._socket)
        self._socket.close()
