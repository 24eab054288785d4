"""Everything that parses bytes from the network, given bytes that nobody would send: nothing raises, little is kept.

A second or so for each target; `make fuzz` takes longer. A failure shows the input; DTUN_FUZZ_SEED makes it come again.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from unittest import mock

import pytest

from dtun.config import Key
from dtun.dataplane.device import Counters
from dtun.dataplane.offload import OffloadDevice
from dtun.dataplane.sources import SourceFilter
from dtun.dtls.association import Association, AssociationState
from dtun.dtls.engine import ClientEngine, ServerEngine
from dtun.dtls.listener import Failed, Listener, Path, Verified
from dtun.dtls.records import AeadRecords, SessionKeys
from dtun.dtls.suites import ALL_SUITES, DEFAULT_SUITES, LEGACY_SUITE, Suite
from dtun.protocol import frames, messages, record, segments
from dtun.protocol.channel import MAX_MESSAGE, Channel
from dtun.protocol.pieces import MAX_UNFINISHED, Cutter, Joiner
from dtun.session import go
from tests.fuzz.mutate import Fuzzer
from tests.unit.dataplane.test_offload import KernelTun
from tests.unit.dtls.wire import staying_in_mbed_tls
from tests.unit.protocol import segmenter

KEY = bytes(range(32))
PATH = Path(1, ("192.0.2.1", 40000), "198.51.100.1")

FRAMES = [
    frames.Control(1, 0, 2, b"payload").encode(),
    frames.Ack(1, 0).encode(),
    frames.Probe(7, 20).encode(),
    frames.Echo(7).encode(),
    frames.Notice(b"notice").encode(),
    frames.Piece(1, 0, 2, b"half").encode(),
]
MESSAGES = [
    b'{"type":"hello","instance":"00ff","subnets":["10.0.0.0/16","fd00::/48"],"mtu":1400,"features":["segments"]}',
    b'{"type":"welcome","address":"10.86.0.2","peer":"10.86.0.1","address6":"fd86::2","keepalive":10.0}',
    b'{"type":"welcome","address":"1.2.3.4","peer":"1.2.3.5","refused":[{"subnet":"1.0.0.0/8","reason":"because"}]}',
    b'{"type":"goodbye","reason":"stopped","text":"bye"}',
    b'{"type":"renew","version":1}',
    b'{"type":"hello","subnets":[[[[[[[[[[]]]]]]]]]]}',
    b'{"type":"hello","mtu":1e400,"x":"\\ud800","version":true}',
]


@contextmanager
def showing(data: bytes) -> Iterator[None]:
    """Say which input it was."""
    try:
        yield
    except Exception as error:
        error.add_note(f"input: {data.hex()}")
        raise


def keys(suite: Suite, key: bytes = b"k") -> SessionKeys:
    pair = (key * suite.key_length, b"i" * suite.fixed_iv_length)
    return SessionKeys(suite, pair, pair, 1, 0, frozenset())


def test_frames() -> None:
    for data in Fuzzer(FRAMES):
        with showing(data):
            frame = frames.decode(data)
            if frame is not None and not isinstance(frame, frames.Probe):
                assert frame.encode() == data


def test_messages() -> None:
    for data in Fuzzer(MESSAGES):
        with showing(data):
            message = messages.decode(data)
            if message is not None:
                assert messages.decode(messages.encode(message)) == message


def test_the_greeting_of_the_original() -> None:
    for data in Fuzzer(
        [bytes((10, 0, 0, 2, 10, 0, 0, 1)), b"10.0.0.0/16", b"empty", b"0.0.0.0/0", b"1.2.3.4/255.0.0.0"]
    ):
        with showing(data):
            assert (go.decode_greeting(data) is None) == (len(data) < 8)
            subnets = go.decode_answer(data)
            assert subnets is None or len(subnets) <= 1


def test_control_messages_in_fragments() -> None:
    fuzzer = Fuzzer(FRAMES[:2])
    channel = Channel()
    channel.send(b"something of our own" * 200, 0.0)
    for now, data in enumerate(fuzzer):
        with showing(data):
            frame = frames.decode(data)
            if isinstance(frame, frames.Control):
                message = channel.receive(frame)
                assert message is None or len(message) <= MAX_MESSAGE
            elif isinstance(frame, frames.Ack):
                channel.acknowledged(frame, float(now))
            assert len(channel.take_outgoing()) <= 64
            assert len(channel._fragments) <= 64


def test_frames_in_pieces() -> None:
    whole = bytes(range(256)) * 20
    too_large = [frames.Piece(9, index, 2, bytes(9000)).encode() for index in (0, 1)]
    fuzzer = Fuzzer([*Cutter().cut([whole, whole[:3000], whole[:1201]], 1200), *too_large])
    joiner = Joiner()
    for data in fuzzer:
        with showing(data):
            piece = frames.decode(data)
            if isinstance(piece, frames.Piece):
                frame = joiner.join(piece)
                assert frame is None or (piece.payload in frame and len(frame) <= record.MAX_PLAINTEXT)
            kept = [sum(map(len, parts)) for parts in joiner._unfinished.values()]
            assert len(kept) <= MAX_UNFINISHED
            assert all(size <= record.MAX_PLAINTEXT for size in kept)
    new = next(number for number in range(MAX_UNFINISHED + 1) if number not in joiner._unfinished)
    assert joiner.join(frames.Piece(new, 1, 2, b"whole")) is None
    assert joiner.join(frames.Piece(new, 0, 2, b"still ")) == b"still whole"


def super_packet(version: int, *, udp: bool = False) -> bytes:
    if version == 4:
        ip = bytes((0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 17 if udp else 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2))
    else:
        ip = bytes((0x60, 0, 0, 0, 0, 0, 17 if udp else 6, 64)) + bytes(15) + b"\1" + bytes(15) + b"\2"
    transport = bytes(8) if udp else bytes(12) + bytes((0x50, 0x98, 1, 0, 0, 0, 0, 0))
    return segmenter.with_sum_of_pseudo_header(segmenter.with_lengths(ip + transport + bytes(range(250))))


def segment_corpus() -> list[bytes]:
    corpus = []
    for version, start in ((4, 20), (6, 40)):
        corpus += segments.cut(super_packet(version), start, 16, 100)
        corpus += segments.cut(super_packet(version, udp=True), start, 6, 100)
        corpus.append(segments.partial(super_packet(version), start, 16))
        corpus.append(segments.partial(super_packet(version, udp=True), start, 6))
        corpus.append(super_packet(version))
    return corpus


def test_segments_of_super_packets() -> None:
    fuzzer = Fuzzer(segment_corpus())
    counters = Counters()
    device = OffloadDevice(KernelTun(), counters)
    sources = SourceFilter(counters, ())
    written: list[bytes] = []

    def writev(_: int, pieces: list[bytes]) -> int:
        written.append(b"".join(pieces))
        return len(written[-1])

    def accepts(frame: bytes, start: int) -> bool:
        sources.accepts(frame, start)
        return frame[start] >> 4 in (4, 6) and len(frame) - start >= (20 if frame[start] >> 4 == 4 else 40)

    with mock.patch.object(os, "writev", writev):
        for data in fuzzer:
            neighbours = [fuzzer.numbers.choice(fuzzer.corpus), data, fuzzer.one(), data]
            with showing(b" | ".join(neighbours)):
                device.deliver([one for one in neighbours if one], accepts)
                device.flush()
                assert all(10 + 20 <= len(one) <= 10 + 65535 for one in written)
            written.clear()


@pytest.mark.parametrize("suite", [DEFAULT_SUITES[0], LEGACY_SUITE], ids=lambda suite: suite.label)
def test_records_with_the_right_key_and_with_a_wrong_one(suite: Suite) -> None:
    sender = AeadRecords(keys(suite), server=False)
    sent = {sender.seal(text): text for text in (b"one", b"", b"three" * 20)}
    fuzzer = Fuzzer([*sent, sender.seal_close(), record.hello_request(1)])
    for data in fuzzer:
        right, wrong = AeadRecords(keys(suite), server=True), AeadRecords(keys(suite, b"w"), server=True)
        with showing(data):
            assert right.open_next(data) in {None, *sent.values()}
            assert wrong.open_next(data) is None
            assert set(right.open(data)) <= set(sent.values())
            assert wrong.open(data) == ()
            odd: list[bytes] = []
            size = fuzzer.numbers.choice((13, 40, max(len(data), 1)))
            assert set(right.open_batch(memoryview(data), size, odd)) <= set(sent.values())
            assert wrong.open_batch(memoryview(data), size, odd) == []
            assert wrong.highest == 0
            assert not wrong.closed


def test_plaintext_records() -> None:
    corpus = [datagram for flight in handshake()[2:] for datagram in flight] + [record.hello_request(1)]
    for data in Fuzzer(corpus):
        with showing(data):
            records = record.split(data)
            assert data.startswith(b"".join(records))
            if record.is_client_hello(data):
                assert len(record.client_random(data)) == 32
            record.server_hello_suite(data)
            record.plaintext_alert(data)
            assert record.sequence_of(data) >= -1
            assert not (record.is_hello_request(data) and record.is_client_hello(data))


def key_of(_path: Path, identity: str, _suite: Suite) -> Key | None:
    return Key(KEY) if identity == "demo" else None


def new_client() -> Association:
    return ClientEngine("demo", KEY, native=True).associate(0.0)


def shake_hands(
    listener: Listener[Key], path: Path = PATH, now: float = 0.0
) -> tuple[Association, Verified[Key], list[bytes], list[bytes]]:
    """A handshake that succeeds, with all datagrams from the client and from the server."""
    client = new_client()
    sent: list[bytes] = []
    received: list[bytes] = []
    while datagrams := client.take_outgoing():
        for datagram in datagrams:
            sent.append(datagram)
            listener.receive(datagram, path, now)
        for reply, to in listener.take_outgoing():
            if to == path:
                received.append(reply)
                client.receive(reply, now)
    verified = [
        event for event in listener.take_events() if isinstance(event, Verified) and event.path == path
    ]
    assert len(verified) == 1
    return client, verified[0], sent, received


def handshake() -> tuple[Association, Association, list[bytes], list[bytes]]:
    client, verified, sent, received = shake_hands(Listener(ServerEngine(ALL_SUITES), key_of))
    return client, verified.association, sent, received


def test_the_listener() -> None:
    listener = Listener(ServerEngine(ALL_SUITES), key_of, max_half_open=20)
    _, _, corpus, _ = shake_hands(listener)
    paths = [Path(1, ("192.0.2.9", port), "198.51.100.1") for port in range(1000, 1040)]
    fuzzer = Fuzzer(corpus)
    for now, data in enumerate(fuzzer):
        path = fuzzer.numbers.choice(paths)
        if now % 40 == 0:
            # Somebody with a good cookie, so that there is a handshake to disturb.
            start_handshake(listener, path, now / 100)
        with showing(data):
            listener.receive(data, path, now / 100)
            listener.poll(now / 100)
            assert sum(len(reply) for reply, _ in listener.take_outgoing()) <= 4000
            assert listener.half_open <= 20
            for event in listener.take_events():
                assert isinstance(event, Verified | Failed)
    shake_hands(listener, Path(1, ("192.0.2.77", 7), "198.51.100.1"), now / 100)


def start_handshake(listener: Listener[Key], path: Path, now: float) -> None:
    client = new_client()
    for _ in range(2):
        for datagram in client.take_outgoing():
            listener.receive(datagram, path, now)
        for reply, to in listener.take_outgoing():
            if to == path:
                client.receive(reply, now)


@pytest.mark.parametrize("how_far", [0, 1], ids=["hello", "key exchange"])
def test_a_client_that_shakes_hands(how_far: int) -> None:
    listener = Listener(ServerEngine(ALL_SUITES), key_of)
    _, _, _, corpus = shake_hands(listener)
    fuzzer = Fuzzer(corpus)
    client = new_client()
    for number, data in enumerate(fuzzer):
        if number % 20 == 0 or client.state is not AssociationState.HANDSHAKING:
            client = new_client()
            for _ in range(how_far):
                answer(listener, client)
        with showing(data):
            client.receive(data, 0.0)
            client.take_outgoing()
            assert client.state is not AssociationState.ESTABLISHED, "nobody has proven a key to it"


def answer(listener: Listener[Key], client: Association) -> None:
    for datagram in client.take_outgoing():
        listener.receive(datagram, PATH, 0.0)
    for reply, _ in listener.take_outgoing():
        client.receive(reply, 0.0)


@pytest.mark.parametrize("offload", [True, False], ids=["offloaded", "in Mbed TLS"])
def test_an_established_session(offload: bool) -> None:
    with nullcontext() if offload else staying_in_mbed_tls():
        client, server, sent, _ = handshake()
        server.receive(client.seal(b"hello"), 0.0)
    assert server.takeover_done
    assert server.records.offloaded is offload
    fuzzer = Fuzzer([*sent, client.seal(b"never sent"), record.hello_request(5)])
    fuzzer.corpus[-2] = fuzzer.corpus[-2][:-1] + bytes([fuzzer.corpus[-2][-1] ^ 1])
    for data in fuzzer:
        with showing(data):
            assert list(server.receive(data, 0.0)) in ([], [b"never sent"])
            server.take_outgoing()
            assert server.state is AssociationState.ESTABLISHED, "a stranger has ended it"
    assert list(server.receive(client.seal(b"still here"), 0.0)) == [b"still here"]
