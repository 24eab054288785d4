"""Carries packets between one TUN device and the UDP sockets of its sessions. One turn of the event loop:

    out   TUN readable -> read until there is enough for a batch -> seal -> send
    in    UDP readable -> receive a batch -> open -> source allowed? -> write to TUN

After a pause a packet is most likely a single packet. It takes the short path, `_sender` and `_receiver`, which does
not look for more packets. On a processor that has slept, each step of Python takes half a microsecond and each call
two, and one round trip wakes up four processes.

A datagram of the session itself that comes back from TUN, because the host routes the peer's address into the tunnel,
is dropped: sealed again it would go round for ever.

When the UDP socket is full, the sealed records wait here, and TUN is not read until the socket has room again: further
packets wait, and may be dropped, in the kernel's queue of the TUN device.
"""

import asyncio
import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from dtun.dataplane.datagrams import RECEIVE_SIZE, Datagrams
from dtun.dataplane.device import Accepts, Counters, Device
from dtun.dataplane.sources import LINK_ONLY, is_link_only
from dtun.protocol.segments import HEADER_SIZE

FRAMES = 128
"""Frames read from TUN before they are sealed and sent: three full sends, about 0.3 ms of work."""

READS = 64
"""Reads of TUN in one turn at most."""

MAX_SINGLES = 8
"""Packets in a row on the short path. After these the pump works in batches until a batch has only one packet."""

RECEIVES = 4
"""Receives on one socket in one turn, each of up to 64 datagrams, so that a busy peer delays others only briefly."""

# Where the destination and the ports of UDP are in a packet without options (RFC 791, 3.1; RFC 8200, 3; RFC 768), by
# the length of an address.
_FLOW_AT = {4: slice(16, 24), 16: slice(24, 44)}

DEVICE_REST = 1.0
"""Seconds without reading after a read error of the device: the kernel reports such a device as always readable."""

LOOP = "routing loop"
"""Counts the session's own datagrams that the host has routed into the device."""

_PATH_ERRORS = frozenset(
    {
        errno.ECONNREFUSED,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.ENETDOWN,
        errno.EADDRNOTAVAIL,
        errno.EHOSTDOWN,
        errno.EMSGSIZE,
    }
)


@dataclass(slots=True)
class Port:
    """A session as the pump sees it: a connected socket, its record layer, and callbacks.

    `seal` makes one record of one frame; it is None if a frame may need several records, which `seal_batch` makes.
    `seal_with` changes both. `open_next`, `open` and `open_batch`: see `Records`. `on_control` gets plaintexts that are
    not packets, `on_nothing` datagrams without a plaintext (an alert, a handshake, a forgery), `on_error` an errno that
    concerns the path; ELOOP if the host routes the peer's address into the device. `flow`: see `set_flow`. `singles` is
    the pump's: how many datagrams in a row came on the short path.
    """

    datagrams: Datagrams
    seal: Callable[[bytes], bytes] | None
    seal_batch: Callable[[Sequence[bytes]], list[bytes]]
    open: Callable[[bytes], Sequence[bytes]]
    open_next: Callable[[bytes], bytes | None]
    open_batch: Callable[[memoryview, int, list[bytes]], list[bytes]]
    on_control: Callable[[bytes], None]
    on_nothing: Callable[[bytes], None]
    on_error: Callable[[int], None]
    flow: bytes | None = field(init=False, default=None)
    flow_at: slice = field(init=False, default_factory=lambda: _FLOW_AT[4])
    singles: int = field(init=False, default=0)
    send: Callable[[bytes], int] = field(init=False)
    receive: Callable[[int], bytes] = field(init=False)
    refused: Callable[[OSError], None] = field(init=False)

    def __post_init__(self) -> None:
        self.send = self.datagrams.socket.send
        self.receive = self.datagrams.socket.recv

    def set_flow(self, peer: bytes, source_port: int, destination_port: int) -> None:
        """How the session's own datagrams look: the peer's address (4 or 16 bytes), and the ports."""
        self.flow = peer + source_port.to_bytes(2, "big") + destination_port.to_bytes(2, "big")
        self.flow_at = _FLOW_AT[len(peer)]

    def is_own(self, frames: Sequence[bytes]) -> bool:
        """Whether the frames of one read are datagrams of this session itself."""
        if not frames or self.flow is None:
            return False
        frame, at = frames[0], self.flow_at
        start = 0 if frame[0] & 0xD0 == 0x40 else HEADER_SIZE
        return frame[start + at.start : start + at.stop] == self.flow

    def seal_with(
        self, seal: Callable[[bytes], bytes] | None, seal_batch: Callable[[Sequence[bytes]], list[bytes]]
    ) -> None:
        """Seal further frames with these, and try batches again: the path, or the size that fits it, has changed."""
        self.seal = seal
        self.seal_batch = seal_batch
        self.datagrams.renew()


class Pump:
    """The data plane of one TUN device. Sends through one port at a time, receives from all of them."""

    __slots__ = (
        "_accepts",
        "_buffer",
        "_counters",
        "_device",
        "_loop",
        "_lost",
        "_out",
        "_pending",
        "_port",
        "_ports",
        "_rest",
        "_singles",
    )

    def __init__(
        self,
        device: Device,
        counters: Counters,
        *,
        accepts: Accepts,
        loop: asyncio.AbstractEventLoop,
        paused: bool = False,
    ) -> None:
        """`paused`: packets wait in the device's queue until the first `attach`, or `start`."""
        self._device = device
        self._counters = counters
        self._accepts = accepts
        self._loop = loop
        self._port: Port | None = None
        self._ports: dict[int, Port] = {}
        self._pending: Sequence[bytes] = ()
        self._rest: asyncio.TimerHandle | None = None
        self._singles = 0
        self._lost = False
        self._buffer = memoryview(bytearray(RECEIVE_SIZE))
        self._out: Callable[[], None] = self._read_batch
        if not paused:
            self.start()

    def start(self) -> None:
        """Read the device. Packets are dropped as long as no session is attached."""
        if self._port is None:
            self._resume()

    @property
    def sent(self) -> int:
        """Packets read from the device so far."""
        return self._counters.tx_packets

    @property
    def streaming(self) -> bool:
        """Whether the next packets from the device are sent in batches."""
        return self._singles >= MAX_SINGLES

    @property
    def blocked(self) -> bool:
        """Whether records wait for room in the socket, and the device is not read meanwhile."""
        return len(self._pending) > 0

    def attach(self, port: Port) -> None:
        """Send through this port from now on; the previous one still receives until it is detached."""
        port.refused = partial(self._failed, port, "udp send")
        self._ports[port.datagrams.socket.fileno()] = port
        self._send_through(port)
        self._loop.add_reader(port.datagrams.socket, self._receiver(port))

    def detach(self, port: Port) -> None:
        """Remove a port, before its socket is closed. Without a port to send through, packets are dropped."""
        if self._ports.pop(port.datagrams.socket.fileno(), None) is None:
            return
        if self._port is port:
            self._send_through(None)
        self._loop.remove_reader(port.datagrams.socket)

    def receive(self, port: Port, datagram: bytes) -> None:
        """Process one datagram of a session, of any kind."""
        self._process(port, datagram, port.open(datagram))

    def deliver(self, packets: Sequence[bytes]) -> None:
        """Write packets that arrived before the session was attached."""
        self._device.deliver(packets, self._accepts)
        self._device.flush()

    def device_lost(self) -> None:
        """Do not wait for the device, which is gone: another one will be behind its descriptor."""
        self._lost = True
        self._singles = MAX_SINGLES  # so that `_receiver` does not read the device
        self._loop.remove_reader(self._device.fileno())

    def device_renewed(self) -> None:
        """Read the device that is behind the descriptor now."""
        self._lost = False
        if not self._pending:
            self._resume()

    def close(self) -> None:
        """Stop reading the device and all ports, before they are closed."""
        for port in list(self._ports.values()):
            self.detach(port)
        self._loop.remove_reader(self._device.fileno())
        if self._rest is not None:
            self._rest.cancel()

    def _send_through(self, port: Port | None) -> None:
        self._stop_waiting()
        self._port = port
        self._out = self._read_batch if port is None else self._sender(port)
        self._resume()

    def _sender(self, port: Port) -> Callable[[], None]:
        """What reads the device while packets are sent through `port`: a closure, to save attribute look-ups."""
        read_one, send, limit = self._device.read_one, port.send, MAX_SINGLES

        def read_device() -> None:
            if self._singles >= limit:
                self._read_batch()
                return
            try:
                frame = read_one()
            except OSError as error:
                self._unreadable(error)
                return
            if not frame or frame[port.flow_at] == port.flow:
                frame = self._read_odd(port, frame)
                if frame is None:
                    return
            seal = port.seal
            if seal is None:
                self._singles += 1
                self._forward((frame,))
                return
            record = seal(frame)
            try:
                send(record)
            except OSError as error:
                self._send_failed(port, record, error)
            else:
                self._singles += 1

        return read_device

    def _send_failed(self, port: Port, record: bytes, error: OSError) -> None:
        if not port.datagrams.retry((record,), error, port.refused):
            self._wait_for_room(port, (record,))

    def _read_odd(self, port: Port, came: bytes | None) -> bytes | None:
        """The frame that `read_one` left for `read`, if it is one; several are sent here and start a stream.

        `came` is what `read_one` gave: nothing, b"", or a datagram of the session itself.
        """
        if came or came is None:
            if came:
                self._looped(port, 1)
            return None
        try:
            frames = self._device.read()
        except OSError as error:
            self._unreadable(error)
            return None
        if not frames or port.is_own(frames):
            if frames:
                self._looped(port, len(frames))
            return None
        if len(frames) == 1:
            return frames[0]
        self._singles = MAX_SINGLES
        self._forward(frames)
        return None

    def _read_batch(self) -> None:
        frames: list[bytes] = []
        read, port = self._device.read, self._port
        try:
            for _ in range(READS):
                more = read()
                if more is None:
                    break
                if port is not None and port.is_own(more):
                    self._looped(port, len(more))
                    continue
                frames += more
                if len(frames) >= FRAMES:
                    break
        except OSError as error:
            self._unreadable(error)
        else:
            if len(frames) <= 1:
                self._singles = 0
        if frames:
            self._forward(frames)

    def _forward(self, frames: Sequence[bytes]) -> None:
        """Seal frames and send them."""
        port = self._port
        if port is None:
            for frame in frames:
                if is_link_only(frame):
                    self._counters.ignored[LINK_ONLY] += 1
                else:
                    self._counters.drops["no session"] += 1
            return
        records = port.seal_batch(frames)
        # Without `refused`, the first datagram that is too large for the path would stop the others.
        sent = port.datagrams.send(records, port.refused)
        if sent != len(records):
            self._wait_for_room(port, records[sent:])

    def _looped(self, port: Port, count: int) -> None:
        self._counters.drops[LOOP] += count
        self._loop.call_soon(port.on_error, errno.ELOOP)

    def _unreadable(self, error: OSError) -> None:
        # EIO: another program has set the device down. EBADFD: the device is gone.
        self._counters.dropped("tun read", error)
        self._singles = MAX_SINGLES  # so that `_receiver` does not read the device
        self._loop.remove_reader(self._device.fileno())
        if self._rest is not None:
            self._rest.cancel()
        self._rest = self._loop.call_later(DEVICE_REST, self._end_rest)

    def _end_rest(self) -> None:
        """Read the device again, unless records wait for room in the socket."""
        self._rest = None
        if not self._pending:
            self._resume()

    def _wait_for_room(self, port: Port, records: Sequence[bytes]) -> None:
        """Keep records that the socket has no room for, and do not read TUN until it has."""
        self._pending = records
        self._singles = MAX_SINGLES  # so that `_receiver` does not read the device
        self._loop.remove_reader(self._device.fileno())
        self._loop.add_writer(port.datagrams.socket, self._send_pending, port)

    def _send_pending(self, port: Port) -> None:
        self._pending = self._pending[port.datagrams.send(self._pending, port.refused) :]
        if not self._pending:
            self._stop_waiting()
            self._resume()

    def _stop_waiting(self) -> None:
        """Stop waiting for room in the socket, and drop the records that waited."""
        if self._port is not None:
            self._loop.remove_writer(self._port.datagrams.socket)
        self._pending = ()

    def _resume(self) -> None:
        """Read TUN (again)."""
        if self._lost:
            return
        self._loop.add_reader(self._device.fileno(), self._out)

    def _receiver(self, port: Port) -> Callable[[], None]:
        """What reads the socket of `port`: a closure, to save attribute look-ups."""
        receive, open_next, most, limit = port.receive, port.open_next, RECEIVE_SIZE, MAX_SINGLES
        deliver_one, accepts = self._device.deliver_one, self._accepts

        def read_socket() -> None:
            if port.singles >= limit:
                self._receive_batches(port)
                return
            port.singles += 1
            try:
                datagram = receive(most)
            except BlockingIOError:
                return
            except OSError as error:
                self._failed(port, "udp receive", error)
                return
            plaintext = open_next(datagram)
            if plaintext is None:
                self._process_other(port, datagram)
            elif not deliver_one(plaintext, accepts):
                port.on_control(plaintext)
            elif self._singles < limit:
                # An immediate answer of the host, as to a ping, need not wait for the next turn.
                self._out()

        return read_socket

    def _process_other(self, port: Port, datagram: bytes) -> None:
        """Process a datagram that is not just the next record."""
        plaintexts = port.open(datagram)
        if len(plaintexts) != 1:
            # Probably several datagrams, joined by UDP_GRO; the lengths of their records separate them.
            port.singles = MAX_SINGLES
        self._process(port, datagram, plaintexts)

    def _receive_batches(self, port: Port) -> None:
        """Process what a socket has received, up to `RECEIVES` batches."""
        count = 0
        buffer, datagrams, deliver, accepts = (
            self._buffer,
            port.datagrams,
            self._device.deliver,
            self._accepts,
        )
        for _ in range(RECEIVES):
            try:
                length, size = datagrams.receive_into(buffer)
            except BlockingIOError:
                break
            except OSError as error:
                self._failed(port, "udp receive", error)
                break
            count += 1 if length == size else 2  # or more
            odd: list[bytes] = []
            plaintexts = port.open_batch(buffer[:length], size or 1, odd)
            for plaintext in deliver(plaintexts, accepts):
                port.on_control(plaintext)
            for datagram in odd:
                self.receive(port, datagram)
            if datagrams.socket.fileno() not in self._ports:
                break  # a message in the batch ended the session
        if count <= 1:
            port.singles = 0
        # Not after each batch: a super-packet may continue in the next one, and is then a single write.
        self._device.flush()

    def _process(self, port: Port, datagram: bytes, plaintexts: Sequence[bytes]) -> None:
        """Pass on the plaintexts of a datagram."""
        others = self._device.deliver(plaintexts, self._accepts)
        self._device.flush()
        for plaintext in others:
            port.on_control(plaintext)
        if not plaintexts:
            port.on_nothing(datagram)

    def _failed(self, port: Port, operation: str, error: OSError) -> None:
        self._counters.dropped(operation, error)
        number = error.errno or 0
        if number in _PATH_ERRORS:
            # In the next turn: the callback may close the socket that is being read.
            self._loop.call_soon(port.on_error, number)
