"""Carries packets between one TUN device and the UDP sockets of its sessions. One turn, followed:

    out   TUN readable -> read until there is enough for a batch -> seal -> send
    in    UDP readable -> receive a batch -> open -> source allowed? -> write to TUN

What comes after a pause is most likely alone, and takes the same way by itself, without a look for more: `_sender` and
`_receiver`. Processors that have slept take half a microsecond for each step of Python and two for each call, in four
wake-ups a round trip.

What the UDP socket does not take now waits here, and TUN is not read until the socket has room again: the
kernel's queue in front of the TUN device then does what queues are for.
"""

import asyncio
import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from dtun.dataplane.datagrams import RECEIVE_SIZE, Datagrams
from dtun.dataplane.device import Accepts, Counters, Device

FRAMES = 128
"""Frames read from TUN before they are sealed and sent: three full sends, some 0.3 ms of work."""

READS = 64
"""Reads of TUN in one turn, at most."""

LONE = 8
"""What may be alone is taken as such so often in a row; then comes a look for more, and batches as long as there is."""

RECEIVES = 4
"""Receives on one socket in one turn, each of up to 64 datagrams, so that one busy peer holds up nobody for long."""

DEVICE_REST = 1.0
"""Seconds for which a device that cannot be read is left alone. The kernel calls such a one readable all the time."""

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
    """A session as the pump sees it: a connected socket, its record layer, and whom to call for the rest.

    `seal` makes one record of one frame; None where a frame may need several. `seal_batch` does it for all;
    `seal_with` changes both. `open_next` opens the next record in order, where it came alone, and `open` any datagram.
    `on_control` gets plaintexts that are no packets, `on_nothing` datagrams that held no plaintext (an alert, a
    handshake, a forgery), `on_error` an errno that says something about the path. `lone` is for the pump's use.
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
    lone: int = field(init=False, default=0)
    send: Callable[[bytes], int] = field(init=False)
    receive: Callable[[int], bytes] = field(init=False)
    refused: Callable[[OSError], None] = field(init=False)

    def __post_init__(self) -> None:
        self.send = self.datagrams.socket.send
        self.receive = self.datagrams.socket.recv

    def seal_with(
        self, seal: Callable[[bytes], bytes] | None, seal_batch: Callable[[Sequence[bytes]], list[bytes]]
    ) -> None:
        """Seal all further frames with these, and try batches again: the path, or what fits it, has changed."""
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
        "_lone",
        "_loop",
        "_out",
        "_pending",
        "_port",
        "_ports",
        "_rest",
    )

    def __init__(
        self, device: Device, counters: Counters, *, accepts: Accepts, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._device = device
        self._counters = counters
        self._accepts = accepts
        self._loop = loop
        self._port: Port | None = None
        self._ports: dict[int, Port] = {}
        self._pending: Sequence[bytes] = ()
        self._rest: asyncio.TimerHandle | None = None
        self._lone = 0
        self._buffer = memoryview(bytearray(RECEIVE_SIZE))
        self._out: Callable[[], None] = self._read_batch
        self._resume()

    @property
    def sent(self) -> int:
        """A number that grows with each packet that was read from the device."""
        return self._counters.tx_packets

    def attach(self, port: Port) -> None:
        """Send through this port from now on; the one before goes on receiving until it is detached."""
        port.refused = partial(self._failed, port, "udp send")
        self._ports[port.datagrams.socket.fileno()] = port
        self._send_through(port)
        self._loop.add_reader(port.datagrams.socket, self._receiver(port))

    def detach(self, port: Port) -> None:
        """Forget a port, before its socket is closed. Packets are dropped while there is none to send through."""
        if self._ports.pop(port.datagrams.socket.fileno(), None) is None:
            return
        if self._port is port:
            self._send_through(None)
        self._loop.remove_reader(port.datagrams.socket)

    def receive(self, port: Port, datagram: bytes) -> None:
        """Take in one datagram of a session, of any kind."""
        self._take(port, datagram, port.open(datagram))

    def deliver(self, packets: Sequence[bytes]) -> None:
        """Packets that came before the session was attached."""
        self._device.deliver(packets, self._accepts)
        self._device.flush()

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
        """Reads the device while packets leave through `port`. As a closure, see `AeadRecords.sealer`."""
        read_one, send, lone = self._device.read_one, port.send, LONE

        def read_device() -> None:
            if self._lone >= lone:
                self._read_batch()
                return
            try:
                frame = read_one()
            except OSError as error:
                self._unreadable(error)
                return
            if not frame:
                if frame is None:
                    return
                frame = self._read_odd()
                if frame is None:
                    return
            seal = port.seal
            if seal is None:
                self._lone += 1
                self._forward((frame,))
                return
            record = seal(frame)
            try:
                send(record)
            except OSError as error:
                self._insist(port, record, error)
            else:
                self._lone += 1

        return read_device

    def _insist(self, port: Port, record: bytes, error: OSError) -> None:
        if not port.datagrams.insist((record,), error, port.refused):
            self._wait_for_room(port, (record,))

    def _read_odd(self) -> bytes | None:
        """The frame that `read_one` has left, if it is one; several are sent here, for they start a stream."""
        try:
            frames = self._device.read()
        except OSError as error:
            self._unreadable(error)
            return None
        if not frames:
            return None
        if len(frames) == 1:
            return frames[0]
        self._lone = LONE
        self._forward(frames)
        return None

    def _read_batch(self) -> None:
        frames: list[bytes] = []
        read = self._device.read
        try:
            for _ in range(READS):
                more = read()
                if more is None:
                    break
                frames += more
                if len(frames) >= FRAMES:
                    break
        except OSError as error:
            self._unreadable(error)
        else:
            if len(frames) <= 1:
                self._lone = 0
        if frames:
            self._forward(frames)

    def _forward(self, frames: Sequence[bytes]) -> None:
        """Seal frames and send them."""
        port = self._port
        if port is None:
            self._counters.drops["no session"] += len(frames)
            return
        records = port.seal_batch(frames)
        # A datagram that is too large for the path must not take with it those that are not.
        sent = port.datagrams.send(records, port.refused)
        if sent != len(records):
            self._wait_for_room(port, records[sent:])

    def _unreadable(self, error: OSError) -> None:
        # EIO: the device is down for a moment, by another hand. EBADFD: it is gone.
        self._counters.dropped("tun read", error)
        self._let_rest()

    def _let_rest(self) -> None:
        self._lone = LONE  # and nobody looks for an answer there
        self._loop.remove_reader(self._device.fileno())
        if self._rest is not None:
            self._rest.cancel()
        self._rest = self._loop.call_later(DEVICE_REST, self._wake)

    def _wake(self) -> None:
        """Read the device again after a rest, unless it waits for room in a socket."""
        self._rest = None
        if not self._pending:
            self._resume()

    def _wait_for_room(self, port: Port, records: Sequence[bytes]) -> None:
        """Keep records that the socket has no room for, and leave TUN alone until it has."""
        self._pending = records
        self._lone = LONE  # and nobody looks for an answer there
        self._loop.remove_reader(self._device.fileno())
        self._loop.add_writer(port.datagrams.socket, self._room, port)

    def _room(self, port: Port) -> None:
        self._pending = self._pending[port.datagrams.send(self._pending, port.refused) :]
        if not self._pending:
            self._stop_waiting()
            self._resume()

    def _stop_waiting(self) -> None:
        """Wait no longer for room in a socket; what waited is given up."""
        if self._port is not None:
            self._loop.remove_writer(self._port.datagrams.socket)
        self._pending = ()

    def _resume(self) -> None:
        """Read TUN, whether or not it was left alone."""
        self._loop.add_reader(self._device.fileno(), self._out)

    def _receiver(self, port: Port) -> Callable[[], None]:
        """Reads the socket of `port`. As a closure, see `AeadRecords.sealer`."""
        receive, open_next, most, lone = port.receive, port.open_next, RECEIVE_SIZE, LONE
        deliver_one, accepts = self._device.deliver_one, self._accepts

        def read_socket() -> None:
            if port.lone >= lone:
                self._receive_batches(port)
                return
            port.lone += 1
            try:
                datagram = receive(most)
            except BlockingIOError:
                return
            except OSError as error:
                self._failed(port, "udp receive", error)
                return
            plaintext = open_next(datagram)
            if plaintext is None:
                self._take_other(port, datagram)
            elif not deliver_one(plaintext, accepts):
                port.on_control(plaintext)
            elif self._lone < lone:
                # If the host answers at once, as to a ping, that need not wait for the next turn.
                self._out()

        return read_socket

    def _take_other(self, port: Port, datagram: bytes) -> None:
        """Take in what is not the next record."""
        plaintexts = port.open(datagram)
        if len(plaintexts) != 1:
            # If it was several datagrams, their records have said where they end.
            port.lone = LONE
        self._take(port, datagram, plaintexts)

    def _receive_batches(self, port: Port) -> None:
        """Take in what has come by a socket, up to `RECEIVES` batches."""
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
                break  # one of them ended the session
        if count <= 1:
            port.lone = 0
        # Not after each batch: a super-packet that came in two of them is one write.
        self._device.flush()

    def _take(self, port: Port, datagram: bytes, plaintexts: Sequence[bytes]) -> None:
        """Pass on what was in a datagram."""
        others = self._device.deliver(plaintexts, self._accepts)
        self._device.flush()
        for plaintext in others:
            port.on_control(plaintext)
        if not plaintexts:
            port.on_nothing(datagram)

    def _failed(self, port: Port, doing: str, error: OSError) -> None:
        self._counters.dropped(doing, error)
        number = error.errno or 0
        if number in _PATH_ERRORS:
            # Not from inside this turn: the answer may be to close the socket that is being read.
            self._loop.call_soon(port.on_error, number)
