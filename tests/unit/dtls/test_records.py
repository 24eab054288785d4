"""The offloaded record layer, mostly against Mbed TLS at the other end."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from unittest import mock

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given, strategies as st

from dtun.dtls import records as records_module
from dtun.dtls.association import Association
from dtun.dtls.records import ALERT_RECORD, AeadRecords, Records, SessionKeys
from dtun.dtls.sequence import WINDOW_SIZE
from dtun.dtls.suites import ALL_SUITES, DEFAULT_SUITES, LEGACY_SUITE, Suite, by_code, by_name
from dtun.protocol.record import MAX_SEQUENCE, hello_request, sequence_of

Connect = Callable[..., tuple[Association, Association]]
Take = Callable[[Records, bytes], Sequence[bytes]]
every_suite = pytest.mark.parametrize("suite", ALL_SUITES, ids=lambda suite: suite.name)


def keys(suite: Suite = DEFAULT_SUITES[0], sequence: int = 1) -> SessionKeys:
    key, iv = suite.key_length, suite.fixed_iv_length
    return SessionKeys(suite, (b"c" * key, b"1" * iv), (b"s" * key, b"2" * iv), sequence, 0, frozenset())


def pair(suite: Suite = DEFAULT_SUITES[0]) -> tuple[AeadRecords, AeadRecords]:
    return AeadRecords(keys(suite), server=False), AeadRecords(keys(suite), server=True)


def take_any(records: Records, datagram: bytes) -> Sequence[bytes]:
    return records.open(datagram)


def take_single(records: Records, datagram: bytes) -> Sequence[bytes]:
    """What the data plane does with a single packet."""
    plaintext = records.open_next(datagram)
    return records.open(datagram) if plaintext is None else (plaintext,)


either_way = pytest.mark.parametrize("take", [take_any, take_single])


@either_way
@every_suite
def test_thousands_of_records_pass_between_aead_and_mbed_tls(
    suite: Suite, connect: Connect, take: Take
) -> None:
    client, server = connect(suite)
    numbers = random.Random(suite.code)
    assert client.takeover_done
    for _ in range(1000):
        # The server stays inside Mbed TLS: its `receive` is never called, only the records below it.
        assert not server.records.offloaded
        up, down = numbers.randbytes(numbers.randint(1, 1500)), numbers.randbytes(numbers.randint(1, 1500))
        record = client.seal(up)
        assert len(record) == len(up) + suite.overhead
        assert tuple(take(server.records, record)) == (up,)
        assert server.records.highest == sequence_of(record)
        record = server.seal(down)
        assert len(record) == len(down) + suite.overhead
        assert tuple(take(client.records, record)) == (down,)
        assert client.records.highest == sequence_of(record)
    largest = bytes(16384)
    assert tuple(take(server.records, client.seal(largest))) == (largest,)
    assert tuple(take(client.records, server.seal(largest))) == (largest,)
    assert not client.records.drops
    assert not server.records.drops


@either_way
@every_suite
def test_a_record_changed_anywhere_is_dropped(suite: Suite, take: Take) -> None:
    sender, receiver = pair(suite)
    record = sender.seal(b"four score")
    for position in range(len(record)):
        changed = bytearray(record)
        changed[position] ^= 0x01
        assert take(receiver, bytes(changed)) == ()
    assert sum(receiver.drops.values()) == len(record)
    assert receiver.highest == 0
    assert take(receiver, record) == (b"four score",)


@either_way
@every_suite
def test_replays_are_dropped_whatever_the_order(suite: Suite, take: Take) -> None:
    sender, receiver = pair(suite)
    sent = [sender.seal(bytes([n])) for n in range(100)]
    random.Random(3).shuffle(sent)
    assert sorted(take(receiver, record)[0] for record in sent) == [bytes([n]) for n in range(100)]
    assert not any(take(receiver, record) for record in sent)
    assert receiver.drops == {"replayed": 100}


def test_a_record_at_the_edge_of_the_window_is_opened_and_one_behind_it_is_not() -> None:
    sender, receiver = pair()
    sent = [sender.seal(b"x") for _ in range(WINDOW_SIZE + 1)]
    assert receiver.open(sent[-1])
    assert receiver.open(sent[0]) == ()
    assert receiver.open(sent[1])


@either_way
@every_suite
def test_a_record_2047_behind_the_newest_is_taken_once_and_one_of_long_ago_never(
    suite: Suite, take: Take
) -> None:
    sender, receiver = pair(suite)
    sent = [sender.seal(b"x") for _ in range(10_000)]
    assert take(receiver, sent[-1])
    assert take(receiver, sent[-1 - 2047])
    assert take(receiver, sent[-1 - 2047]) == ()
    assert take(receiver, sent[0]) == ()
    assert receiver.drops == {"replayed": 2}


@every_suite
def test_only_the_next_record_alone_opens_as_such_and_nothing_else_leaves_a_trace(suite: Suite) -> None:
    sender, receiver = pair(suite)
    receiver.attach_ledger(ledger := [0, 0])
    first, second, third = (sender.seal(text) for text in (b"one", b"two", b"three"))
    for other in (
        second,
        first + second,
        first[:-1],
        first[:-1] + b"?",
        sender.seal_close(),
        b"",
        first[:13],
    ):
        assert receiver.open_next(other) is None
    assert not receiver.drops
    assert receiver.wear < 1
    assert ledger == [1, 1]
    assert receiver.open_next(first) == b"one"
    assert ledger == [1, 2]
    assert receiver.open_next(first) is None
    assert receiver.open(third) == (b"three",)
    assert receiver.open_next(second) is None
    assert receiver.open(second) == (b"two",)
    assert receiver.open_next(sender.seal(b"")) is None, "the farewell before it is missing"
    assert receiver.highest == 3
    assert ledger == [1, 4]


def test_several_records_share_a_datagram_and_a_cut_one_costs_only_itself() -> None:
    sender, receiver = pair()
    datagram = sender.seal(b"one") + sender.seal(b"two") + sender.seal(b"three")
    assert receiver.open(datagram[:-1]) == (b"one", b"two")
    assert receiver.drops == {"malformed": 1}


def test_other_epochs_are_counted_apart() -> None:
    sender, receiver = pair()
    record = sender.seal(b"x")
    for epoch in (0, 2, 0xFFFF):
        assert receiver.open(record[:3] + epoch.to_bytes(2) + record[5:]) == ()
    assert receiver.drops == {"epoch": 3}


@either_way
def test_the_epoch_ends_with_its_last_number(take: Take) -> None:
    """What would be the next number belongs to another epoch, even if whoever has the key sends it."""
    suite = DEFAULT_SUITES[0]
    at_the_end = replace(keys(suite), highest=MAX_SEQUENCE)
    receiver = AeadRecords(at_the_end, server=False)
    key, iv = at_the_end.server
    number = 2 << 48
    nonce = (int.from_bytes(iv) ^ number).to_bytes(12)
    start, end = b"\x17\xfe\xfd", number.to_bytes(8)
    sealed = suite.aead(key).encrypt(nonce, b"past", end + start + b"\x00\x04")
    assert take(receiver, start + end + len(sealed).to_bytes(2) + sealed) == ()
    assert receiver.drops == {"epoch": 1}
    assert receiver.highest == MAX_SEQUENCE


def test_late_handshake_records_are_counted_apart() -> None:
    _, receiver = pair()
    assert receiver.open(hello_request(1)) == ()
    assert receiver.drops == {"handshake": 1}


def test_close_notify_closes_and_a_forged_one_does_not() -> None:
    sender, receiver = pair()
    goodbye = sender.seal_close()
    assert receiver.open(goodbye[:-1] + bytes([goodbye[-1] ^ 1])) == ()
    assert receiver.open(b"\x15\xfe\xfd\x00\x00" + bytes(6) + b"\x00\x02\x02\x28") == ()
    assert not receiver.closed
    assert receiver.open(goodbye) == ()
    assert receiver.closed


def sealed_alert(suite: Suite, alert: bytes) -> bytes:
    """An alert from a client that has the key."""
    return AeadRecords(keys(suite), server=False).seal(alert, ALERT_RECORD)


@every_suite
def test_a_fatal_alert_of_whatever_description_closes(suite: Suite) -> None:
    for description in range(256):
        receiver = AeadRecords(keys(suite), server=True)
        assert receiver.open(sealed_alert(suite, bytes((2, description)))) == ()
        assert receiver.closed
        assert receiver.drops == {"alert": 1}


@every_suite
def test_of_warnings_only_close_notify_closes(suite: Suite) -> None:
    sender, receiver = pair(suite)
    for description in range(1, 256):
        assert receiver.open(sender.seal(bytes((1, description)), ALERT_RECORD)) == ()
        assert not receiver.closed
    assert receiver.drops == {"alert": 255}
    assert receiver.open(sender.seal(bytes((1, 0)), ALERT_RECORD)) == ()
    assert receiver.closed


@pytest.mark.parametrize("alert", [b"", b"\0", b"\2", b"\2\x28\0", b"\1\0\0", b"\1\0\1\0", bytes(100)])
@every_suite
def test_an_authentic_alert_that_is_malformed_is_counted_and_dropped(suite: Suite, alert: bytes) -> None:
    sender, receiver = pair(suite)
    malformed = sender.seal(alert, ALERT_RECORD)
    for _ in range(2):
        assert receiver.open(malformed) == ()
    assert not receiver.closed
    assert receiver.drops == {"alert": 1, "replayed": 1}
    assert receiver.open(sender.seal(b"goes on")) == (b"goes on",)


@every_suite
def test_an_alert_works_once_and_only_with_the_key_and_in_its_epoch(suite: Suite) -> None:
    fatal = sealed_alert(suite, b"\2\x28")
    others = {
        "unauthenticated": fatal[:-1] + bytes([fatal[-1] ^ 1]),
        "epoch": fatal[:3] + b"\0\2" + fatal[5:],
        "malformed": fatal[:1] + b"\xfe\xff" + fatal[3:],
    }
    for reason, other in others.items():
        receiver = AeadRecords(keys(suite), server=True)
        assert receiver.open(other) == ()
        assert receiver.drops == {reason: 1}
        assert not receiver.closed
    receiver = AeadRecords(replace(keys(suite), highest=1), server=True)
    assert receiver.open(fatal) == ()
    assert receiver.drops == {"replayed": 1}
    assert not receiver.closed


@either_way
@every_suite
def test_more_than_a_record_holds_is_malformed_even_with_the_key(suite: Suite, take: Take) -> None:
    with mock.patch.object(records_module, "MAX_PLAINTEXT", 20_000):
        too_large = pair(suite)[0].seal(bytes(16385))
    receiver = AeadRecords(keys(suite), server=True)
    assert take(receiver, too_large) == ()
    assert receiver.drops == {"malformed": 1}
    assert receiver.highest == 0


def test_each_number_is_in_the_ledger_before_the_cipher_uses_it() -> None:
    ledger = [0, 0]
    used: list[int] = []

    class Watched:
        def __init__(self, key: bytes) -> None:
            self.cipher = ChaCha20Poly1305(key)
            self.decrypt = self.cipher.decrypt

        def encrypt(self, nonce: bytes, data: bytes, associated: bytes | None, /) -> bytes:
            assert associated is not None
            used.append(int.from_bytes(associated[2:8]))
            assert ledger[0] > used[-1]
            return self.cipher.encrypt(nonce, data, associated)

    records = pair(replace(DEFAULT_SUITES[0], aead=Watched))[0]
    records.attach_ledger(ledger)
    records.seal(b"one")
    records.seal_batch([b"few"] * 3)
    records.seal_batch([b"block"] * 44 + [b"other lengths", b""])
    records.seal_close()
    assert used == list(range(1, 52)), "each once"
    assert ledger == [52, 1]


def test_the_key_is_exhausted_after_so_many_records() -> None:
    suite = replace(LEGACY_SUITE, seal_limit=10)
    sender = AeadRecords(keys(suite), server=False)
    seal = sender.seal
    for _ in range(8):
        seal(b"")
    assert sender.wear < 1
    seal(b"")
    assert sender.wear >= 1


def test_the_key_is_exhausted_after_so_many_forgeries_but_not_by_replays() -> None:
    suite = replace(LEGACY_SUITE, forgery_limit=3)
    sender, receiver = AeadRecords(keys(suite), server=False), AeadRecords(keys(suite), server=True)
    record = sender.seal(b"x")
    receiver.open(record)
    forged = sender.seal(b"y")[:-1] + b"?"
    for _ in range(2):
        receiver.open(record)
        receiver.open(forged)
    assert receiver.wear < 1
    receiver.open(forged)
    assert receiver.wear >= 1


def test_a_number_is_never_used_twice_even_at_the_end() -> None:
    sender = AeadRecords(keys(sequence=MAX_SEQUENCE), server=False)
    seal = sender.seal
    assert sequence_of(seal(b"last")) == MAX_SEQUENCE
    assert sender.wear >= 1
    with pytest.raises(OverflowError):
        seal(b"one more")


def test_too_much_for_one_record_is_refused_before_a_number_is_spent() -> None:
    sender, receiver = pair()
    with pytest.raises(ValueError, match="16384"):
        sender.seal(bytes(16385))
    receiver.open(sender.seal(b""))
    assert receiver.highest == 1


@given(
    st.one_of(st.binary(max_size=80), st.binary(max_size=60).map(lambda tail: b"\x17\xfe\xfd\x00\x01" + tail))
)
def test_no_bytes_make_open_raise_or_pass(datagram: bytes) -> None:
    for suite in (DEFAULT_SUITES[0], LEGACY_SUITE):
        for take in (take_any, take_single):
            receiver = AeadRecords(keys(suite), server=True)
            assert take(receiver, datagram) == ()
            assert receiver.drops
            assert receiver.highest == 0


def test_secrets_do_not_show() -> None:
    secret = keys()
    text = repr(secret) + repr(AeadRecords(secret, server=True)) + repr(secret.suite)
    assert "cccc" not in text
    assert "ssss" not in text
    assert b"c".hex() * 4 not in text


@pytest.mark.parametrize(
    ("cipher", "seals", "forgeries"),
    [
        ("CHACHA20-POLY1305", 2**47, 2**36),
        ("GCM", 23_726_566, 2**36),
        ("CCM", 8_388_608, 11_863_283),
        ("CCM-8", 8_388_608, 11_863_283),
    ],
)
def test_a_key_lasts_as_long_as_its_cipher_allows(cipher: str, seals: int, forgeries: int) -> None:
    """RFC 9147, section 4.5.3: 2^24.5 and 2^23 records; 2^36 and 2^23.5 forgeries, and suites.py says why for CCM-8."""
    of_this_cipher = [suite for suite in ALL_SUITES if suite.label.endswith(cipher)]
    assert len(of_this_cipher) == 2
    for suite in of_this_cipher:
        assert (suite.seal_limit, suite.forgery_limit) == (seals, forgeries)


def test_suites_are_found_by_name_label_and_code() -> None:
    for suite in ALL_SUITES:
        assert by_name(suite.name) is suite
        assert by_name(suite.label) is suite
        assert by_code(suite.code) is suite
    assert by_code(0x1301) is None
    with pytest.raises(KeyError):
        by_name("TLS-PSK-WITH-NULL-SHA")
