"""Records in batches: the data plane's way of sealing and opening does what the way of one by one does."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings, strategies as st

from dtun.dtls.association import Association
from dtun.dtls.mbed_records import MbedRecords
from dtun.dtls.records import AeadRecords, Records, SessionKeys
from dtun.dtls.sequence import WINDOW_SIZE
from dtun.dtls.suites import ALL_SUITES, DEFAULT_SUITES, LEGACY_SUITE, Suite
from dtun.protocol.record import MAX_SEQUENCE, hello_request, sequence_of
from tests.unit.dtls.wire import staying_in_mbed_tls

Connect = Callable[..., tuple[Association, Association]]
every_suite = pytest.mark.parametrize("suite", ALL_SUITES, ids=lambda suite: suite.name)


def keys(suite: Suite, *, highest: int = 0, key: bytes = b"k") -> SessionKeys:
    """Both directions are alike, so that one end can seal for itself."""
    pair = (key * suite.key_length, b"i" * suite.fixed_iv_length)
    return SessionKeys(suite, pair, pair, highest + 1, highest, frozenset())


class Network:
    """Makes datagrams out of records that `sender` seals: good ones, and everything that can come in their place."""

    def __init__(self, sender: Records, seed: int) -> None:
        self.sender = sender
        self.random = random.Random(seed)
        self.sent: list[bytes] = []
        self.held: list[bytes] = []

    def seal(self) -> bytes:
        record = self.sender.seal(self.random.randbytes(self.random.choice((40, 40, 40, 40, 39, 20, 1))))
        self.sent.append(record)
        return record

    def datagram(self, fault: str) -> bytes:
        return FAULTS[fault](self, self.seal())

    def late(self, record: bytes) -> bytes:
        """One that was held back a while ago."""
        self.held.append(record)
        return self.held.pop(self.random.randrange(len(self.held))) if len(self.held) > 2 else self.seal()

    def after_some_lost(self) -> bytes:
        return [self.seal() for _ in range(self.random.choice((2, 6)))][-1]

    def tampered(self, record: bytes) -> bytes:
        position = self.random.randrange(len(record))
        return record[:position] + bytes([record[position] ^ 1]) + record[position + 1 :]

    def empty(self) -> bytes:
        self.sent.append(self.sender.seal(b""))
        return self.sent[-1]

    def of_size(self, record: bytes, size: int) -> bytes:
        return record[:11] + size.to_bytes(2) + bytes(size)


FAULTS: dict[str, Callable[[Network, bytes], bytes]] = {
    "none": lambda _, record: record,
    "late": lambda network, record: network.late(record),
    "some lost": lambda network, _: network.after_some_lost(),
    "replayed": lambda network, _: network.random.choice(network.sent),
    "tampered": lambda network, record: network.tampered(record),
    "foreign": lambda network, record: record[:-8] + network.random.randbytes(8),
    "two in one": lambda network, record: record + network.seal(),
    "cut": lambda network, record: record[: network.random.randrange(1, len(record))],
    "called an alert": lambda _, record: b"\x15" + record[1:],
    "forged alert": lambda network, _: (
        b"\x15\xfe\xfd\x00\x01" + network.random.randbytes(6) + b"\x00\x1a" + bytes(26)
    ),
    "handshake": lambda network, _: hello_request(network.random.randrange(100)),
    "old epoch": lambda _, record: record[:3] + b"\0\0" + record[5:],
    "new epoch": lambda _, record: record[:3] + b"\0\2" + record[5:],
    "other version": lambda _, record: record[:1] + b"\xfe\xff" + record[3:],
    "other type": lambda _, record: b"\x19" + record[1:],
    "noise": lambda network, _: network.random.randbytes(network.random.randrange(1, 60)),
    "empty": lambda network, _: network.empty(),
    "too short": lambda network, record: network.of_size(record, network.random.randrange(24)),
    "too long": lambda network, record: network.of_size(record, 20000),
}


def batches(datagrams: Sequence[bytes], most: int) -> list[list[bytes]]:
    """As UDP_GRO hands them out: of one size, of which the last may be shorter."""
    made: list[list[bytes]] = []
    for datagram in datagrams:
        last = made[-1] if made else []
        if last and len(last) < most and len(last[-1]) == len(last[0]) >= len(datagram) > 0:
            last.append(datagram)
        else:
            made.append([datagram])
    return made


def open_in_batch(records: Records, batch: list[bytes]) -> list[bytes]:
    odd: list[bytes] = []
    plaintexts = list(records.open_batch(memoryview(b"".join(batch)), len(batch[0]), odd))
    return plaintexts + [plaintext for datagram in odd for plaintext in records.open(datagram)]


def open_one_by_one(records: Records, batch: list[bytes], is_odd: Callable[[bytes], bool]) -> list[bytes]:
    """The same; odd ones come last there, too."""
    ordered = [one for one in batch if not is_odd(one)] + [one for one in batch if is_odd(one)]
    return [plaintext for datagram in ordered for plaintext in records.open(datagram)]


def is_no_single_record(datagram: bytes) -> bool:
    return len(datagram) < 13 or datagram[0] != 23 or len(datagram) != 13 + int.from_bytes(datagram[11:13])


def state(records: Records) -> tuple[object, ...]:
    counts = dict(records.drops)
    return counts, records.forgeries, records.highest, records.closed, records.wear


@given(
    st.sampled_from(ALL_SUITES),
    st.lists(st.one_of(st.just("none"), st.sampled_from(sorted(FAULTS))), min_size=1, max_size=60),
    st.integers(0, 1000),
    st.sampled_from((1, 2, 64)),
    st.sampled_from((-1, 0, 5000)),
)
def test_a_batch_is_opened_as_its_datagrams_are_one_by_one(
    suite: Suite, faults: list[str], seed: int, most: int, highest: int
) -> None:
    sender = AeadRecords(keys(suite, highest=max(highest, 0)), server=False)
    network = Network(sender, seed)
    start = keys(suite, highest=highest)
    batching, single = AeadRecords(start, server=True), AeadRecords(start, server=True)
    for batch in batches([network.datagram(fault) for fault in faults], most):
        assert open_in_batch(batching, batch) == open_one_by_one(single, batch, is_no_single_record)
        assert state(batching) == state(single)
    for record in network.sent:
        assert batching.open(record) == single.open(record), "the same numbers are missing"


@given(
    st.sampled_from(ALL_SUITES),
    st.lists(st.one_of(st.sampled_from((0, 1, 1400, 1400, 16384)), st.integers(0, 1500)), max_size=70),
    st.integers(0, MAX_SEQUENCE - 100),
)
def test_a_batch_is_sealed_as_its_plaintexts_are_one_by_one(
    suite: Suite, sizes: list[int], highest: int
) -> None:
    plaintexts = [bytes([number]) * size for number, size in enumerate(sizes)]
    batching, single = (AeadRecords(keys(suite, highest=highest), server=False) for _ in range(2))
    records = batching.seal_batch(plaintexts)
    assert records == [single.seal(plaintext) for plaintext in plaintexts]
    assert batching.seal_close() == single.seal_close()
    assert batching.wear == single.wear
    receiver = AeadRecords(keys(suite, highest=highest), server=True)
    opened = [one for batch in batches(records, 64) for one in open_in_batch(receiver, batch)]
    assert opened == plaintexts


@every_suite
def test_thousands_of_records_in_batches_with_faults_between_them(suite: Suite) -> None:
    network = Network(AeadRecords(keys(suite), server=False), suite.code)
    batching, single = (AeadRecords(keys(suite), server=True) for _ in range(2))
    faults = [
        network.random.choice(sorted(FAULTS)) if network.random.random() < 0.1 else "none"
        for _ in range(3000)
    ]
    came = 0
    for batch in batches([network.datagram(fault) for fault in faults], 64):
        plaintexts = open_in_batch(batching, batch)
        came += len(plaintexts)
        assert plaintexts == open_one_by_one(single, batch, is_no_single_record)
    assert state(batching) == state(single)
    assert came > 2700
    assert batching.drops.keys() >= {"replayed", "unauthenticated", "malformed", "epoch", "handshake"}


@every_suite
def test_a_batch_that_jumps_over_the_window_forgets_what_is_behind_it(suite: Suite) -> None:
    sender, receiver = AeadRecords(keys(suite), server=False), AeadRecords(keys(suite), server=True)
    sent = sender.seal_batch([b"x"] * (WINDOW_SIZE + 2))
    assert open_in_batch(receiver, [sent[0], sent[-1], sent[1], sent[2], sent[3], sent[3]]) == [b"x"] * 4
    assert receiver.drops == {"replayed": 2}


@every_suite
@pytest.mark.parametrize("damage", [None, 0, 7, 15])
def test_a_block_of_one_length_is_taken_once(suite: Suite, damage: int | None) -> None:
    """Whole blocks take a short way of their own: in order, after a gap, again, with one record forged, too late."""
    sender = AeadRecords(keys(suite, highest=240), server=False)
    receiver = AeadRecords(keys(suite, highest=240), server=True)
    blocks = [[bytes([block, number]) * 20 for number in range(16)] for block in range(4)]
    first, lost, third, fourth = (sender.seal_batch(block) for block in blocks)
    assert open_in_batch(receiver, first) == blocks[0]
    assert open_in_batch(receiver, first) == []
    assert receiver.drops == {"replayed": 16}
    if damage is not None:
        third[damage] = third[damage][:-1] + bytes([third[damage][-1] ^ 1])
    good = [text for number, text in enumerate(blocks[2]) if number != damage]
    assert open_in_batch(receiver, third) == good
    assert receiver.drops["unauthenticated"] == (0 if damage is None else 1)
    assert open_in_batch(receiver, lost) == blocks[1]
    assert open_in_batch(receiver, lost + third) == []
    assert receiver.drops["replayed"] == 16 + len(lost) + len(good)
    assert open_in_batch(receiver, fourth) == blocks[3]


def test_the_last_number_of_all_is_sealed_and_none_after_it() -> None:
    sender = AeadRecords(keys(LEGACY_SUITE, highest=MAX_SEQUENCE - 2), server=False)
    assert [sequence_of(record) for record in sender.seal_batch([b"a", b"b"])] == [
        MAX_SEQUENCE - 1,
        MAX_SEQUENCE,
    ]
    for plaintexts in ([b"c"], [b"c", b"d"], [b"c"] * 44):
        with pytest.raises(OverflowError):
            sender.seal_batch(plaintexts)
        assert sender.sending.next == MAX_SEQUENCE + 1
    with pytest.raises(OverflowError):
        sender.seal(b"c")


def test_after_a_batch_that_was_too_large_no_number_is_used_again() -> None:
    sender = AeadRecords(keys(DEFAULT_SUITES[0]), server=False)
    with pytest.raises(ValueError, match="16384"):
        sender.seal_batch([b"sealed, and then lost", bytes(16385)])
    assert sequence_of(sender.seal(b"x")) > 1


def test_forgeries_in_batches_wear_out_the_key() -> None:
    suite = replace(DEFAULT_SUITES[0], forgery_limit=64)
    sender, receiver = AeadRecords(keys(suite), server=False), AeadRecords(keys(suite), server=True)
    # The number that is expected next, which takes the short way, and one that does not.
    for record in sender.seal_batch([b"x", b"y"]):
        assert open_in_batch(receiver, [record[:-1] + bytes([record[-1] ^ 1])] * 31) == []
        assert receiver.wear < 1
    assert open_in_batch(receiver, [sender.seal(b"x")[:-1] + b"?"] * 2) == []
    assert receiver.wear >= 1
    assert receiver.highest == 0


def twins(connect: Connect, suite: Suite) -> tuple[MbedRecords, MbedRecords, MbedRecords]:
    """A client, and two copies of the server's end of one and the same session, all inside Mbed TLS."""
    with staying_in_mbed_tls():
        client, server = connect(suite)
        assert server.receive(client.seal(b"hello"), 0.0)
    assert isinstance(client.records, MbedRecords)
    assert isinstance(server.records, MbedRecords)
    buffer = server.records.buffer
    server_state = buffer.export()
    assert server_state is not None
    one, other = (MbedRecords(buffer.restored(server_state), suite) for _ in range(2))
    return client.records, one, other


@every_suite
def test_mbed_tls_opens_a_batch_as_it_opens_one_by_one(suite: Suite, connect: Connect) -> None:
    sender, batching, single = twins(connect, suite)
    network = Network(sender, suite.code)
    # Mbed TLS ends a session at a record that is authentic but makes no sense; those are tested elsewhere.
    usual = sorted(FAULTS.keys() - {"empty", "too long", "too short"})
    faults = [network.random.choice(usual) if network.random.random() < 0.3 else "none" for _ in range(400)]
    came = 0

    def comes_last(datagram: bytes) -> bool:
        return sequence_of(datagram) < 0

    for batch in batches([network.datagram(fault) for fault in faults], 64):
        plaintexts = open_in_batch(batching, batch)
        came += len(plaintexts)
        assert plaintexts == open_one_by_one(single, batch, comes_last)
        assert state(batching) == state(single)
    assert came > 300
    assert batching.drops.keys() >= {"refused", "malformed", "handshake"}


@every_suite
def test_mbed_tls_seals_a_batch_as_it_seals_one_by_one(suite: Suite, connect: Connect) -> None:
    client, batching, single = twins(connect, suite)
    plaintexts = [bytes([number]) * size for number, size in enumerate((1, 1400, 1400, 5, 16384, 1400))]
    records = batching.seal_batch(plaintexts)
    assert records == [single.seal(plaintext) for plaintext in plaintexts]
    assert [one for record in records for one in client.open(record)] == plaintexts


def test_a_closed_session_seals_no_empty_datagrams(connect: Connect) -> None:
    _, records, _ = twins(connect, DEFAULT_SUITES[0])
    assert records.seal_close()
    assert records.seal_batch([b"too", b"late"]) == []


@settings(max_examples=200)
@given(st.binary(max_size=400), st.integers(1, 80), st.sampled_from((DEFAULT_SUITES[0], LEGACY_SUITE)))
def test_no_bytes_make_open_batch_raise_or_pass(datagrams: bytes, size: int, suite: Suite) -> None:
    receiver = AeadRecords(keys(suite), server=True)
    odd: list[bytes] = []
    assert receiver.open_batch(memoryview(datagrams), size, odd) == []
    count = -(-len(datagrams) // size)
    assert len(odd) + sum(receiver.drops.values()) == count
    assert receiver.highest == 0


def test_before_the_first_record_none_of_another_epoch_is_expected() -> None:
    """Number 0 of epoch 0 is what comes before number 0 of epoch 1 for nobody."""
    receiver = AeadRecords(keys(DEFAULT_SUITES[0], highest=-1), server=True)
    sender = AeadRecords(keys(DEFAULT_SUITES[0], highest=-1), server=False)
    first = sender.seal(b"first")
    assert open_in_batch(receiver, [first[:3] + bytes(8) + first[11:]]) == []
    assert receiver.drops == {"epoch": 1}
    assert not receiver.forgeries
    assert open_in_batch(receiver, [first]) == [b"first"]


def test_nothing_is_a_batch_too() -> None:
    receiver = AeadRecords(keys(DEFAULT_SUITES[0]), server=True)
    odd: list[bytes] = []
    assert receiver.open_batch(memoryview(b""), 1, odd) == odd == []
    assert receiver.seal_batch([]) == []
