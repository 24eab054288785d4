"""The offloaded record layer and Mbed TLS are given the same datagrams: they take the same, and refuse the same.

Both go on from one state of one session. A third hand seals for them, written from the RFCs, so that it can do what no
record layer does: choose numbers, epochs and types.

Mbed TLS is asked one whole record at a time, as `MbedRecords` does. With more it would not live through the replays:
the rest of a datagram of which it has skipped a record ends its session, and anybody can send that.

It cannot be asked about:

- numbers 64 and more behind the highest, which it always refuses; our window is larger (test_sequence.py, and below);
- empty plaintexts: it swallows them, and ends the session at the fourth in a row. Ours hands them out;
- records that are authentic but malformed (an alert that is not 2 bytes, more than 16,384 bytes of plaintext): they end
  its session. Ours drops and counts them (test_records.py);
- alerts of levels other than 1 and 2, which do not exist: ours hears any close_notify;
- the reason: it has none but "refused".
"""

import random
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from dtun.config import Key
from dtun.dtls import key_takeover
from dtun.dtls.engine import ClientEngine, ServerEngine
from dtun.dtls.listener import Listener
from dtun.dtls.mbed import MbedBuffer
from dtun.dtls.mbed_records import MbedRecords
from dtun.dtls.records import AeadRecords, Records, SessionKeys
from dtun.dtls.suites import ALL_SUITES, DEFAULT_SUITES, Suite
from dtun.protocol.record import ALERT, APPLICATION_DATA, MAX_SEQUENCE
from tests.unit.dtls.wire import KEY, Wire, staying_in_mbed_tls

START = 1000
"""Numbers of the tests begin here, so that there is room behind them."""

every_suite = pytest.mark.parametrize("suite", ALL_SUITES, ids=lambda suite: suite.label)
both_ends = pytest.mark.parametrize("server", [False, True], ids=["at the client", "at the server"])


@cache
def ends(suite: Suite) -> tuple[tuple[MbedBuffer, dict[str, Any]], tuple[MbedBuffer, dict[str, Any]]]:
    """The client's and the server's end of a session in Mbed TLS, to make copies of, each with its state."""
    wire = Wire(Listener(ServerEngine((suite,)), lambda *_: Key(KEY)))
    client = ClientEngine("demo", KEY, (suite,), native=True).associate(0.0)
    with staying_in_mbed_tls():
        wire.exchange(client)
        server = wire.server_end()
        assert server.receive(client.seal(b"hello"), 0.0)
    exported = []
    for end in (client, server):
        assert isinstance(end.records, MbedRecords)
        buffer = end.records.buffer
        state = buffer.export()
        assert state is not None
        exported.append((buffer, state))
    return exported[0], exported[1]


class Peer:
    """Whoever has the keys of the other end; and that end twice: in Mbed TLS, and offloaded in each way to open."""

    def __init__(self, suite: Suite, *, server: bool) -> None:
        self.suite = suite
        buffer, state = ends(suite)[server]
        keys: SessionKeys = key_takeover.read_keys(state["connection"], suite)
        self.key, self.iv = keys.client if server else keys.server
        self.mbed = MbedRecords(buffer.restored(state), suite)
        self.offloaded = [AeadRecords(keys, server=server) for _ in range(3)]

    def seal(self, sequence: int, plaintext: bytes, *, epoch: int = 1, kind: int = APPLICATION_DATA) -> bytes:
        """RFC 6347, section 4.1; RFC 5288, section 3; RFC 6655, section 3; RFC 7905, section 2."""
        number = epoch.to_bytes(2) + sequence.to_bytes(6)
        start = bytes((kind, 254, 253))
        if len(self.iv) == 4:
            nonce, explicit = self.iv + number, number
        else:
            nonce = bytes(a ^ b for a, b in zip(self.iv, bytes(4) + number, strict=True))
            explicit = b""
        associated = number + start + len(plaintext).to_bytes(2)
        sealed = explicit + self.suite.aead(self.key).encrypt(nonce, plaintext, associated)
        return start + number + len(sealed).to_bytes(2) + sealed

    def take(self, datagram: bytes) -> list[bytes]:
        """What Mbed TLS makes of a datagram, and every way of ours does, too."""
        expected = list(self.mbed.open(datagram))
        assert [list(way(records, datagram)) for way, records in zip(WAYS, self.offloaded, strict=True)] == [
            expected
        ] * 3
        assert [records.closed for records in self.offloaded] == [self.mbed.closed] * 3
        return expected


def in_a_batch(records: Records, datagram: bytes) -> list[bytes]:
    odd: list[bytes] = []
    plaintexts = list(records.open_batch(memoryview(datagram), max(len(datagram), 1), odd))
    return plaintexts + [plaintext for one in odd for plaintext in records.open(one)]


def alone(records: Records, datagram: bytes) -> list[bytes]:
    plaintext = records.open_next(datagram)
    return list(records.open(datagram)) if plaintext is None else [plaintext]


def as_it_comes(records: Records, datagram: bytes) -> list[bytes]:
    return list(records.open(datagram))


WAYS = (as_it_comes, alone, in_a_batch)


def changed(record: bytes, position: int, mask: int) -> bytes:
    return record[:position] + bytes([record[position] ^ mask]) + record[position + 1 :]


def damaged(record: bytes, numbers: random.Random) -> Iterator[bytes]:
    """With every byte changed, in one bit and in several."""
    for position in range(len(record)):
        for mask in (0x01, 0x80, 0xFF, numbers.randint(1, 255), numbers.randint(1, 255)):
            yield changed(record, position, mask)


@both_ends
@every_suite
def test_the_third_hand_seals_as_both_do(suite: Suite, server: bool) -> None:
    """Else the others would prove that both refuse nonsense."""
    peer = Peer(suite, server=server)
    buffer, state = ends(suite)[not server]
    other_end = buffer.restored(state)
    keys = key_takeover.read_keys(state["connection"], suite)
    ours = AeadRecords(keys, server=not server)
    for sequence, size in enumerate((1, 15, 16, 17, 1387, 16384), start=keys.sequence):
        record = peer.seal(sequence, bytes(size))
        assert record == other_end.write(bytes(size)) == ours.seal(bytes(size))
        assert peer.take(record) == [bytes(size)]


@both_ends
@every_suite
def test_no_byte_of_a_record_can_be_changed(suite: Suite, server: bool) -> None:
    peer, numbers = Peer(suite, server=server), random.Random(suite.code)
    for sequence, size in enumerate((1, 16, 33, 84), start=START):
        record = peer.seal(sequence, numbers.randbytes(size))
        for other in damaged(record, numbers):
            assert peer.take(other) == [], other.hex()
        assert len(peer.take(record)) == 1, "and the right one is still taken"
        for other in damaged(record, numbers):
            assert peer.take(other) == [], other.hex()


@both_ends
@every_suite
def test_no_byte_of_a_header_can_have_any_other_value(suite: Suite, server: bool) -> None:
    peer = Peer(suite, server=server)
    record = peer.seal(START, b"sixteen letters.")
    for position in range(13):
        for mask in range(1, 256):
            assert peer.take(changed(record, position, mask)) == []
    assert len(peer.take(record)) == 1


@both_ends
@every_suite
def test_no_part_of_a_record_is_one_and_nothing_can_be_added(suite: Suite, server: bool) -> None:
    peer, numbers = Peer(suite, server=server), random.Random(1)
    record = peer.seal(START, b"payload" * 9)
    for end in range(len(record)):
        assert peer.take(record[:end]) == []
        body = record[13:end]
        assert peer.take(record[:11] + len(body).to_bytes(2) + body) == []
    for size in (1, 8, 16, 100):
        body = record[13:] + numbers.randbytes(size)
        assert peer.take(record[:11] + len(body).to_bytes(2) + body) == []
    assert len(peer.take(record)) == 1


@both_ends
@every_suite
def test_no_other_epoch_passes_even_if_whoever_has_the_key_sends_it(suite: Suite, server: bool) -> None:
    peer = Peer(suite, server=server)
    for epoch in (0, 2, 3, 255, 256, 257, 65535):
        for kind in (APPLICATION_DATA, ALERT):
            assert peer.take(peer.seal(START, b"\2\x28", epoch=epoch, kind=kind)) == []
        called = peer.seal(START, b"right", epoch=1)
        assert peer.take(called[:3] + epoch.to_bytes(2) + called[5:]) == []
    assert peer.take(peer.seal(START, b"right")) == [b"right"]


@both_ends
@every_suite
def test_each_number_of_the_window_is_taken_once(suite: Suite, server: bool) -> None:
    """From the front: gaps, their ends, leaps by as much as the window of Mbed TLS has, and the last number of all."""
    top = MAX_SEQUENCE
    for highest in (START, START + 62, START + 63, START + 64, START + 65, top - 1, top):
        peer = Peer(suite, server=server)
        assert peer.take(peer.seal(START, b"first")) == [b"first"]
        assert bool(peer.take(peer.seal(highest, b"leap"))) is (highest != START)
        behind = [highest - age for age in range(64)]
        random.Random(highest).shuffle(behind)
        taken = [number for number in behind if peer.take(peer.seal(number, b"late"))]
        assert set(taken) == set(behind) - {START, highest}
        assert not any(peer.take(peer.seal(number, b"late")) for number in behind)
        assert [records.highest for records in peer.offloaded] == [highest] * 3


@both_ends
@every_suite
def test_ours_goes_on_where_the_window_of_mbed_tls_ends(suite: Suite, server: bool) -> None:
    peer = Peer(suite, server=server)
    assert peer.take(peer.seal(START, b"first")) == [b"first"]
    at_the_edge, behind_it = peer.seal(START - 63, b"late"), peer.seal(START - 64, b"later")
    assert peer.take(at_the_edge) == [b"late"]
    assert peer.mbed.open(behind_it) == ()
    for records in peer.offloaded:
        assert records.open(behind_it) == (b"later",)
        assert records.open(behind_it) == ()


Step = tuple[int, str, int, int]
steps = st.tuples(
    st.one_of(st.just(1), st.integers(-63, 3), st.sampled_from((-63, -62, 0, 62, 63, 64, 65, 1000))),
    st.sampled_from(("good", "good", "good", "twice", "damaged", "epoch 0", "epoch 2", "cut")),
    st.integers(0, 10_000),
    st.integers(1, 255),
)


@settings(max_examples=300)
@given(st.sampled_from(ALL_SUITES), st.booleans(), st.lists(steps, min_size=1, max_size=40))
def test_whatever_comes_in_whatever_order_both_agree(suite: Suite, server: bool, moves: list[Step]) -> None:
    peer, highest, seen = Peer(suite, server=server), START, set[int]()
    for move, fault, position, mask in moves:
        sequence = highest + move
        record = peer.seal(sequence, bytes([mask]) * (position % 200 + 1))
        if fault in ("good", "twice"):
            assert bool(peer.take(record)) is (sequence not in seen)
            seen.add(sequence)
            highest = max(highest, sequence)
            if fault == "twice":
                assert peer.take(record) == []
            continue
        other = {
            "damaged": changed(record, position % len(record), mask),
            "epoch 0": record[:3] + b"\0\0" + record[5:],
            "epoch 2": peer.seal(sequence, b"of another epoch", epoch=2),
            "cut": record[: position % len(record)],
        }
        assert peer.take(other[fault]) == []


@both_ends
def test_both_are_closed_by_the_same_alerts(server: bool) -> None:
    for level in (1, 2):
        for description in range(256):
            peer = Peer(DEFAULT_SUITES[0], server=server)
            assert peer.take(peer.seal(START, bytes((level, description)), kind=ALERT)) == []
            assert peer.mbed.closed is (level == 2 or description == 0)
