"""Packets through the pump, on a real loop: a pair of packet sockets stands in for the TUN device, another for UDP."""

import asyncio
import errno
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from ipaddress import IPv6Address

import pytest

from dtun.dataplane import pump as pump_module
from dtun.dataplane.datagrams import Datagrams
from dtun.dataplane.device import Counters, PlainDevice
from dtun.dataplane.pump import LOOP, MAX_SINGLES, READS, RECEIVES, Port, Pump
from dtun.dataplane.sources import LINK_ONLY


def packet(number: int) -> bytes:
    """An IPv4 packet, as far as the pump looks, that can be told from others."""
    return b"\x45" + number.to_bytes(4) + bytes(7) + b"\x0a\x00\x00\x01" + bytes(4)


def seal(plaintext: bytes) -> bytes:
    return b"R" + plaintext


def seal_all(plaintexts: Sequence[bytes]) -> list[bytes]:
    return [seal(plaintext) for plaintext in plaintexts]


def open_records(datagram: bytes) -> Sequence[bytes]:
    """A datagram of this test: R, then plaintexts between bars; anything else is no record."""
    return tuple(datagram[1:].split(b"|")) if datagram[:1] == b"R" else ()


def open_next(datagram: bytes) -> bytes | None:
    return datagram[1:] if datagram[:1] == b"R" and b"|" not in datagram else None


def open_batch(datagrams: memoryview, size: int, odd: list[bytes]) -> list[bytes]:
    plaintexts: list[bytes] = []
    for start in range(0, len(datagrams), size):
        datagram = bytes(datagrams[start : start + size])
        if datagram[:1] == b"R":
            plaintexts += open_records(datagram)
        else:
            odd.append(datagram)
    return plaintexts


def seal_framed(plaintext: bytes) -> bytes:
    """A record that says where it ends, as real ones do."""
    return b"R" + len(plaintext).to_bytes(2) + plaintext


def open_framed(datagram: bytes) -> Sequence[bytes]:
    plaintexts = []
    while datagram:
        end = 3 + int.from_bytes(datagram[1:3])
        plaintexts.append(datagram[3:end])
        datagram = datagram[end:]
    return plaintexts


def open_batch_framed(datagrams: memoryview, _size: int, _odd: list[bytes]) -> list[bytes]:
    return list(open_framed(bytes(datagrams)))


def port_of(sock: socket.socket, errors: Callable[[int], None] = lambda _: None) -> Port:
    return Port(
        Datagrams(sock),
        seal,
        seal_all,
        open_records,
        open_next,
        open_batch,
        lambda _: None,
        lambda _: None,
        errors,
    )


class Session:
    """A port, the peer's end of its socket, and what the pump said about it."""

    def __init__(self) -> None:
        # A Unix datagram socket says when it is full; the least of buffers holds a handful of packets.
        self.socket, self.peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        self.socket.setblocking(False)
        self.peer.setblocking(False)
        self.controls: list[bytes] = []
        self.nothings: list[bytes] = []
        self.errors: list[int] = []
        self.port = Port(
            Datagrams(self.socket, batches=False),
            seal,
            seal_all,
            open_records,
            open_next,
            open_batch,
            self.controls.append,
            self.nothings.append,
            self.errors.append,
        )

    def close(self) -> None:
        self.socket.close()
        self.peer.close()


class Device(PlainDevice):
    """One that can be made to fail."""

    broken = False
    failed_reads = 0

    def read_one(self) -> bytes | None:
        if self.broken:
            self.failed_reads += 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().read_one()


class Tunnel:
    """A pump, its device, and the host's end of that."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.device, self.host = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.device.setblocking(False)
        self.host.setblocking(False)
        self.counters = Counters()
        self.refused: set[bytes] = set()
        self.plain = Device(self.device.fileno(), self.counters)
        self.pump = Pump(
            self.plain,
            self.counters,
            accepts=lambda frame, start: frame[start:] not in self.refused,
            loop=loop,
        )

    def is_paused(self) -> bool:
        return self.pump.blocked

    async def send_singles(self, session: "Session", count: int = MAX_SINGLES) -> None:
        """Send so many packets with a pause after each. After MAX_SINGLES, the next may be the start of a stream."""
        for _ in range(count):
            self.host.send(packet(0))
            assert await received(session.peer, 1) == [seal(packet(0))]

    def close(self) -> None:
        self.pump.close()
        self.device.close()
        self.host.close()


@pytest.fixture
async def tunnel() -> AsyncIterator[Tunnel]:
    made = Tunnel(asyncio.get_running_loop())
    yield made
    made.close()


@pytest.fixture
def make_session() -> Iterator[Callable[[], Session]]:
    made: list[Session] = []

    def make() -> Session:
        made.append(Session())
        return made[-1]

    yield make
    for session in made:
        session.close()


def waiting_at(sock: socket.socket) -> list[bytes]:
    found = []
    with suppress(BlockingIOError):
        while True:
            found.append(sock.recv(65535))
    return found


async def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        await asyncio.sleep(0.001)


async def received(sock: socket.socket, count: int) -> list[bytes]:
    """The next `count` datagrams at this socket."""
    found: list[bytes] = []

    def enough() -> bool:
        found.extend(waiting_at(sock))
        return len(found) >= count

    await wait_for(enough, f"{count} datagrams")
    return found


async def turns(count: int = 5) -> None:
    """Let the loop see everything that it could see now."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_packets_go_both_ways(tunnel: Tunnel, make_session: Callable[[], Session]) -> None:
    session = make_session()
    tunnel.pump.attach(session.port)
    tunnel.host.send(packet(1))
    assert await received(session.peer, 1) == [seal(packet(1))]
    session.peer.send(b"R" + packet(2) + b"|" + packet(3))
    assert await received(tunnel.host, 2) == [packet(2), packet(3)]
    counters = tunnel.counters
    assert (counters.tx_packets, counters.tx_bytes) == (1, 20)
    assert (counters.rx_packets, counters.rx_bytes) == (2, 40)
    assert not counters.drops


async def test_a_full_socket_pauses_the_device_and_nothing_is_lost_or_doubled(
    tunnel: Tunnel, make_session: Callable[[], Session]
) -> None:
    session = make_session()
    tunnel.pump.attach(session.port)
    sent = [packet(number) for number in range(300)]
    left = list(sent)

    def feed() -> None:
        with suppress(BlockingIOError):
            while left:
                tunnel.host.send(left[0])
                left.pop(0)

    arrived: list[bytes] = []
    while len(arrived) < len(sent):
        feed()
        await wait_for(lambda: tunnel.is_paused() or not left, "the socket to be full")
        arrived += await received(session.peer, 1)
    assert arrived == [seal(one) for one in sent]
    assert tunnel.counters.tx_packets == len(sent)
    assert not tunnel.counters.drops


async def test_while_the_socket_is_full_packets_wait_in_the_device_and_the_loop_rests(
    tunnel: Tunnel, make_session: Callable[[], Session]
) -> None:
    session = make_session()
    tunnel.pump.attach(session.port)
    await tunnel.send_singles(session)
    for number in range(READS + 30):
        tunnel.host.send(packet(number))
    await wait_for(tunnel.is_paused, "the socket to be full")
    taken = tunnel.counters.tx_packets
    await turns(20)
    assert tunnel.counters.tx_packets == taken
    assert taken == MAX_SINGLES + READS, "a turn's worth"


async def test_the_device_is_read_again_when_the_full_port_is_replaced(
    tunnel: Tunnel, make_session: Callable[[], Session]
) -> None:
    full, fresh = make_session(), make_session()
    tunnel.pump.attach(full.port)
    for number in range(READS + 30):
        tunnel.host.send(packet(number))
    await wait_for(tunnel.is_paused, "the socket to be full")
    taken = tunnel.counters.tx_packets
    tunnel.pump.attach(fresh.port)
    assert (await received(fresh.peer, 1))[0] == seal(packet(taken))
    full.peer.send(b"R" + packet(99))
    assert await received(tunnel.host, 1) == [packet(99)], "the port before still receives"


async def test_without_a_session_packets_are_dropped_and_counted(
    tunnel: Tunnel, make_session: Callable[[], Session]
) -> None:
    tunnel.host.send(packet(1))
    await wait_for(lambda: tunnel.counters.drops["no session"] == 1, "the drop")
    session = make_session()
    tunnel.pump.attach(session.port)
    tunnel.pump.detach(session.port)
    tunnel.pump.detach(session.port)  # twice is once
    session.peer.send(b"R" + packet(3))
    tunnel.host.send(packet(2))
    await wait_for(lambda: tunnel.counters.drops["no session"] == 2, "the second drop")
    assert waiting_at(session.peer) == waiting_at(tunnel.host) == []


async def test_what_the_kernel_says_to_its_neighbours_is_no_drop(tunnel: Tunnel) -> None:
    solicitation = (
        b"\x60" + bytes(7) + IPv6Address("fe80::1").packed + IPv6Address("ff02::2").packed + bytes(16)
    )
    tunnel.host.send(solicitation)
    tunnel.host.send(packet(1))
    await wait_for(lambda: tunnel.counters.drops["no session"] == 1, "the drop")
    assert tunnel.counters.ignored == {LINK_ONLY: 1}
    assert tunnel.counters.drops.total() == 1


async def test_a_full_port_that_is_detached_does_not_leave_the_device_paused(
    tunnel: Tunnel, make_session: Callable[[], Session]
) -> None:
    session = make_session()
    tunnel.pump.attach(session.port)
    for number in range(READS + 30):
        tunnel.host.send(packet(number))
    await wait_for(tunnel.is_paused, "the socket to be full")
    tunnel.pump.detach(session.port)
    await wait_for(lambda: tunnel.counters.drops["no session"] > 0, "the rest to be dropped")


async def test_what_is_no_ip_packet_goes_to_the_session(
    tunnel: Tunnel, make_session: Callable[[], Session]
) -> None:
    session = make_session()
    tunnel.pump.attach(session.port)
    session.peer.send(b"R\x01control||" + packet(1))  # an empty record in the middle
    session.peer.send(b"no record")
    assert await received(tunnel.host, 1) == [packet(1)]
    await wait_for(lambda: session.nothings == [b"no record"], "the datagram without a plaintext")
    assert session.controls == [b"\x01control", b""]


async def test_a_packet_that_the_filter_refuses_is_not_written(
    tunnel: Tunnel, make_session: Callable[[], Session]
) -> None:
    session = make_session()
    tunnel.refused.add(packet(1))
    tunnel.pump.attach(session.port)
    session.peer.send(b"R" + packet(1) + b"|" + packet(2))
    tunnel.pump.deliver([packet(1), packet(3)])
    assert sorted(await received(tunnel.host, 2)) == [packet(2), packet(3)]
    assert tunnel.counters.rx_packets == 2


async def test_a_session_that_ends_in_the_middle_of_a_batch_is_not_read_further(
    tunnel: Tunnel, make_session: Callable[[], Session]
) -> None:
    session = make_session()

    def end(control: bytes) -> None:
        session.controls.append(control)
        tunnel.pump.detach(session.port)
        session.socket.close()

    session.port.on_control = end
    for number in range(2):
        session.peer.send(b"R" + packet(number))
    session.peer.send(b"R\x07bye|" + packet(7))
    session.peer.send(b"R" + packet(8))
    tunnel.pump.attach(session.port)
    assert await received(tunnel.host, 3) == [packet(0), packet(1), packet(7)]
    await turns()
    assert session.controls == [b"\x07bye"]
    assert not tunnel.counters.drops, "the closed socket was left alone"
    assert waiting_at(tunnel.host) == []


async def test_one_busy_peer_holds_up_the_others_for_one_batch_only(
    tunnel: Tunnel, make_session: Callable[[], Session]
) -> None:
    session = make_session()

    class Busy:
        """Always has one more datagram."""

        socket = session.socket
        receives = 0

        def receive_into(self, buffer: memoryview) -> tuple[int, int]:
            self.receives += 1
            buffer[:2] = b"R\x01"
            return 2, 2

    busy = Busy()
    session.port.datagrams = busy  # type: ignore[assignment]
    session.port.singles = MAX_SINGLES
    tunnel.pump.attach(session.port)
    session.peer.send(b"so that its socket is readable")
    while not busy.receives:
        await turns(1)
    assert busy.receives == RECEIVES


async def test_errors_of_the_path_are_counted_and_told_outside_of_the_turn(tunnel: Tunnel) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        gone.bind(("127.0.0.1", 0))
        udp.setblocking(False)
        udp.connect(gone.getsockname())
        gone.close()
        errors: list[int] = []
        port = port_of(udp, errors.append)
        tunnel.pump.attach(port)
        tunnel.host.send(packet(1))
        await wait_for(lambda: errors == [errno.ECONNREFUSED], "the ICMP error")
        drops = tunnel.counters.drops
        assert drops["udp receive: ECONNREFUSED"] + drops["udp send: ECONNREFUSED"] == 1
        tunnel.pump.detach(port)


async def test_a_record_that_is_too_long_is_counted_and_pauses_nothing(tunnel: Tunnel) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.setblocking(False)
        udp.connect(("127.0.0.1", 9))
        errors: list[int] = []
        port = port_of(udp, errors.append)
        port.seal = lambda plaintext: plaintext + bytes(70000)
        tunnel.pump.attach(port)
        for number in range(2):
            tunnel.host.send(packet(number))
            await wait_for(lambda n=number: tunnel.counters.drops["udp send: EMSGSIZE"] == n + 1, "the drop")  # type: ignore[misc]
        assert errors == [errno.EMSGSIZE] * 2, "the session hears of it, and looks what the path takes"
        tunnel.pump.detach(port)


async def test_batches_go_through_udp_in_order_whatever_their_sizes(tunnel: Tunnel) -> None:
    """With the kernel's segmentation and coalescing, where it has them."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        for sock in (peer, udp):
            sock.setblocking(False)
            sock.bind(("127.0.0.1", 0))
        udp.connect(peer.getsockname())
        peer.connect(udp.getsockname())
        port = port_of(udp)
        port.seal, port.open, port.open_batch = seal_framed, open_framed, open_batch_framed
        port.open_next = lambda _: None
        port.seal_batch = lambda plaintexts: list(map(seal_framed, plaintexts))
        tunnel.pump.attach(port)
        sizes = [0, 0, 0, 500, 500, 100, 700, 0]
        sent = [packet(number) + bytes(size) for number, size in enumerate(sizes * 5)]
        for one in sent:
            tunnel.host.send(one)
        records = list(map(seal_framed, sent))
        assert await received(peer, len(sent)) == records
        back = Datagrams(peer)
        assert back.send(records) == len(sent)
        assert await received(tunnel.host, len(sent)) == sent
        assert tunnel.counters.rx_packets == tunnel.counters.tx_packets == len(sent)
        tunnel.pump.detach(port)


async def test_a_device_that_cannot_be_written_costs_that_packet_only(
    tunnel: Tunnel, make_session: Callable[[], Session]
) -> None:
    session = make_session()
    tunnel.pump.attach(session.port)
    with suppress(BlockingIOError):
        while True:
            tunnel.device.send(packet(0))
    session.peer.send(b"R" + packet(1))
    await wait_for(lambda: tunnel.counters.drops["tun write: EAGAIN"] == 1, "the drop")
    assert tunnel.counters.rx_packets == 0
    waiting_at(tunnel.host)
    session.peer.send(b"R" + packet(2))
    assert await received(tunnel.host, 1) == [packet(2)]


async def test_a_device_that_is_gone_for_a_moment_does_not_spin_the_loop(
    tunnel: Tunnel, make_session: Callable[[], Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its descriptor is readable all the time, and every read fails."""
    session = make_session()
    tunnel.pump.attach(session.port)
    monkeypatch.setattr(pump_module, "DEVICE_REST", 0.05)
    device = tunnel.plain
    device.broken = True
    tunnel.host.send(packet(1))
    await wait_for(lambda: device.failed_reads == 1, "the first error")
    await turns(50)
    assert device.failed_reads <= 2
    await wait_for(lambda: device.failed_reads >= 3, "another try after a rest")
    await turns(50)
    assert device.failed_reads <= 5
    device.broken = False
    assert await received(session.peer, 1) == [seal(packet(1))]
    assert tunnel.counters.drops["tun read: EIO"] == device.failed_reads


async def test_one_that_finds_the_socket_full_waits_and_those_behind_it_do_in_the_device(
    tunnel: Tunnel, make_session: Callable[[], Session]
) -> None:
    session = make_session()
    filled = 0
    with suppress(BlockingIOError):
        while True:
            session.socket.send(b"before")
            filled += 1
    tunnel.pump.attach(session.port)
    sent = [packet(number) for number in range(3)]
    for one in sent:
        tunnel.host.send(one)
    await wait_for(tunnel.is_paused, "the socket to be full")
    assert tunnel.counters.tx_packets == 1
    assert await received(session.peer, filled + 3) == [b"before"] * filled + seal_all(sent)


class Recorder:
    """Stands in for the device and for the sockets' batches, and notes what the pump does."""

    def __init__(self, tunnel: Tunnel, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[str] = []
        device, datagrams = tunnel.plain, session.port.datagrams
        deliver_one, read_one, receive_into = device.deliver_one, device.read_one, datagrams.receive_into

        def noted_deliver(plaintext: bytes, accepts: Callable[[bytes, int], bool]) -> bool:
            self.done.append("deliver")
            return deliver_one(plaintext, accepts)

        def noted_read() -> bytes | None:
            self.done.append("read")
            return read_one()

        def noted_receive(buffer: memoryview) -> tuple[int, int]:
            self.done.append("receive a batch")
            return receive_into(buffer)

        monkeypatch.setattr(device, "deliver_one", noted_deliver)
        monkeypatch.setattr(device, "read_one", noted_read)
        monkeypatch.setattr(datagrams, "receive_into", noted_receive)


def noting_batches(port: Port) -> list[int]:
    """The sizes of the batches that will be sealed."""
    batches: list[int] = []

    def noted(plaintexts: Sequence[bytes]) -> list[bytes]:
        batches.append(len(plaintexts))
        return seal_all(plaintexts)

    port.seal_batch = noted
    return batches


async def test_the_answer_to_a_single_packet_leaves_in_the_same_turn(
    tunnel: Tunnel, make_session: Callable[[], Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = make_session()
    recorder = Recorder(tunnel, session, monkeypatch)
    tunnel.pump.attach(session.port)
    session.peer.send(b"R" + packet(1))
    await wait_for(lambda: "read" in recorder.done, "a look for the answer")
    assert await received(tunnel.host, 1) == [packet(1)]
    await turns()
    assert recorder.done == ["deliver", "read"], "and nothing else, for which the answer would have to wait"
    recorder.done.clear()
    session.peer.send(b"R\x01control")
    await wait_for(lambda: session.controls == [b"\x01control"], "the message")
    assert recorder.done == ["deliver"], "the host has nothing to answer"
    await tunnel.send_singles(session)
    recorder.done.clear()
    session.peer.send(b"R" + packet(2))
    assert await received(tunnel.host, 1) == [packet(2)]
    assert recorder.done == ["deliver"], "in a stream, the loop sees what is to be read"


@pytest.mark.parametrize("frames", [1, 3])
async def test_what_is_no_single_packet_leaves_whole_and_a_super_packet_starts_a_stream(
    frames: int, tunnel: Tunnel, make_session: Callable[[], Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = make_session()
    device = tunnel.plain
    cut = [packet(number) for number in range(frames)]
    reads: list[Sequence[bytes] | None] = [cut]
    batches = noting_batches(session.port)

    def read_one() -> bytes:
        tunnel.device.recv(65535)
        return b""

    with monkeypatch.context() as patched:
        patched.setattr(device, "read_one", read_one)
        patched.setattr(device, "read", lambda: reads.pop() if reads else None)
        tunnel.pump.attach(session.port)
        tunnel.host.send(b"what stands for them")
        assert await received(session.peer, frames) == seal_all(cut)
    assert not reads
    assert batches == ([] if frames == 1 else [frames]), "one frame, such as a TCP segment, has the short way"
    assert tunnel.pump.streaming == (frames > 1)


async def test_datagrams_that_get_no_answer_do_not_make_a_stream_of_what_is_sent(
    tunnel: Tunnel, make_session: Callable[[], Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = make_session()
    recorder = Recorder(tunnel, session, monkeypatch)
    tunnel.pump.attach(session.port)
    for number in range(3 * MAX_SINGLES):
        session.port.singles = 0
        session.peer.send(b"R" + packet(number))
        assert await received(tunnel.host, 1) == [packet(number)]
    assert recorder.done.count("read") == 3 * MAX_SINGLES, "a look for an answer each time"
    assert not tunnel.pump.streaming


async def test_a_look_for_an_answer_is_one_read_where_records_are_not_single(
    tunnel: Tunnel, make_session: Callable[[], Session]
) -> None:
    """A busy host must not hold up the other sockets of this turn."""
    session = make_session()
    session.port.seal = None
    tunnel.pump.attach(session.port)
    waiting = [packet(number) for number in range(3)]
    for one in waiting:
        tunnel.host.send(one)
    session.peer.send(b"R" + packet(9))
    tunnel.pump._receiver(session.port)()
    assert waiting_at(session.peer) == seal_all(waiting[:1])
    assert await received(session.peer, 2) == seal_all(waiting[1:])


async def test_no_answer_is_looked_for_while_the_device_is_left_alone(
    tunnel: Tunnel, make_session: Callable[[], Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = make_session()
    recorder = Recorder(tunnel, session, monkeypatch)
    tunnel.pump.attach(session.port)
    number = 0
    while not tunnel.is_paused():
        tunnel.host.send(packet(number))
        number += 1
        await turns()
    recorder.done.clear()
    session.peer.send(b"R" + packet(1))
    assert await received(tunnel.host, 1) == [packet(1)]
    assert "read" not in recorder.done, "what it would read has nowhere to go"
    assert await received(session.peer, number) == seal_all([packet(n) for n in range(number)])
    tunnel.plain.broken = True
    tunnel.host.send(packet(3))
    await wait_for(lambda: tunnel.counters.drops["tun read: EIO"] == 1, "the device to rest")
    recorder.done.clear()
    session.peer.send(b"R" + packet(2))
    assert await received(tunnel.host, 1) == [packet(2)]
    assert recorder.done == ["deliver"]


async def test_in_a_stream_datagrams_are_received_in_batches_until_it_ends(
    tunnel: Tunnel, make_session: Callable[[], Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = make_session()
    recorder = Recorder(tunnel, session, monkeypatch)
    session.peer.send(b"R" + packet(0))
    session.peer.send(b"R" + packet(0))
    tunnel.pump.attach(session.port)
    await received(tunnel.host, 2)
    assert "receive a batch" not in recorder.done
    # Each time that so many came one by one, it looks whether there is more at once.
    for _ in range(MAX_SINGLES):
        session.peer.send(b"R" + packet(1))
        await received(tunnel.host, 1)
    assert recorder.done.count("receive a batch") == 2, "one datagram, and that there is no more"
    assert session.port.singles < MAX_SINGLES
    recorder.done.clear()
    session.port.singles = MAX_SINGLES
    session.peer.send(b"R" + packet(2))
    session.peer.send(b"R" + packet(3))
    assert await received(tunnel.host, 2) == [packet(2), packet(3)]
    assert recorder.done.count("receive a batch") == 3
    assert session.port.singles == MAX_SINGLES, "a stream"
    assert "read" not in recorder.done, "in which the loop has it all in view"


async def test_in_a_stream_packets_leave_in_batches_until_it_ends(
    tunnel: Tunnel, make_session: Callable[[], Session]
) -> None:
    session = make_session()
    batches = noting_batches(session.port)
    tunnel.pump.attach(session.port)
    await tunnel.send_singles(session, MAX_SINGLES - 2)
    for number in range(4):
        tunnel.host.send(packet(number))
    assert await received(session.peer, 4) == seal_all([packet(number) for number in range(4)])
    assert batches == [2], "each might have been a single packet until then"
    for _ in range(2):
        tunnel.host.send(packet(1))
        await received(session.peer, 1)
    assert batches == [2, 1], (
        "the last two were single packets: one to find out, and one that took the short path"
    )


async def test_frames_that_need_several_records_are_sealed_as_a_batch(
    tunnel: Tunnel, make_session: Callable[[], Session]
) -> None:
    session = make_session()
    session.port.seal = None
    session.port.seal_batch = lambda plaintexts: [
        b"R" + half for one in plaintexts for half in (one[:9], one[9:])
    ]
    tunnel.pump.attach(session.port)
    tunnel.host.send(packet(1))
    assert await received(session.peer, 2) == [b"R" + packet(1)[:9], b"R" + packet(1)[9:]]


async def test_a_closed_pump_touches_nothing_any_more(
    tunnel: Tunnel, make_session: Callable[[], Session]
) -> None:
    session = make_session()
    tunnel.pump.attach(session.port)
    tunnel.pump.close()
    tunnel.host.send(packet(1))
    session.peer.send(b"R" + packet(2))
    await turns()
    assert waiting_at(session.peer) == waiting_at(tunnel.host) == []
    assert tunnel.counters.tx_packets == tunnel.counters.rx_packets == 0


PEERS = {
    "ipv4": (bytes([198, 51, 100, 7]), b"\x45" + bytes(15)),
    "ipv6": (bytes([0x20, 1, 13, 184]) + bytes(11) + b"\7", b"\x60" + bytes(23)),
}


@pytest.mark.parametrize("started", [False, True], ids=["single", "stream"])
@pytest.mark.parametrize("version", PEERS)
async def test_a_datagram_of_the_sessions_own_is_not_sealed_again(
    tunnel: Tunnel, make_session: Callable[[], Session], version: str, started: bool
) -> None:
    """The host routes the server into the tunnel: that would go round for ever."""
    session = make_session()
    peer, header = PEERS[version]
    session.port.set_flow(peer, 40000, 443)
    tunnel.pump.attach(session.port)
    if started:
        await tunnel.send_singles(session)
    ports = (40000).to_bytes(2) + (443).to_bytes(2)
    tunnel.host.send(header + peer + ports + b"length, checksum and a record")
    others = [header + peer + b"\0\1" + ports[2:] + bytes(8), packet(1)]
    for other in others:
        tunnel.host.send(other)
    assert await received(session.peer, 2) == seal_all(others)
    assert tunnel.counters.drops == {LOOP: 1}
    assert session.errors == [errno.ELOOP]


def test_the_sessions_own_super_packets_are_known_by_their_first_frame(
    make_session: Callable[[], Session],
) -> None:
    session = make_session()
    peer, header = PEERS["ipv4"]
    own = header + peer + (40000).to_bytes(2) + (443).to_bytes(2) + bytes(8)
    assert not session.port.is_own((own,)), "not told yet"
    session.port.set_flow(peer, 40000, 443)
    assert session.port.is_own((own,))
    assert session.port.is_own((b"\4\0\x14\6" + own,))
    assert session.port.is_own((b"\3\0\5\0" + own, b"\3\x81\5\0" + own))
    assert not session.port.is_own(())
    assert not session.port.is_own((packet(1),))


async def test_a_device_that_is_made_anew_is_read_although_a_copy_of_the_old_one_is_open() -> None:
    """As systemd has one, which epoll would report for ever."""
    tunnel, session = Tunnel(asyncio.get_running_loop()), Session()
    copy, (device, host) = tunnel.device.dup(), socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with copy, device, host, tunnel.device, tunnel.host, session.socket, session.peer:
        tunnel.pump.attach(session.port)
        tunnel.host.close()  # the old one is readable for ever, as a TUN device that was removed
        tunnel.pump.device_lost()
        tunnel.pump.detach(session.port)
        tunnel.pump.attach(session.port)  # another session meanwhile
        device.setblocking(False)
        os.dup2(device.fileno(), tunnel.device.fileno(), inheritable=False)
        tunnel.pump.device_renewed()
        host.send(packet(1))
        assert await received(session.peer, 1) == [seal(packet(1))]
        turns = time.process_time()
        await asyncio.sleep(0.1)
        assert time.process_time() - turns < 0.05, "nothing is reported for ever"
        tunnel.pump.close()
