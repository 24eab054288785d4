"""A session's memory: its successor goes on with the same keys, and with no number twice."""

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address

import pytest

from dtun.dtls.records import AeadRecords, SessionKeys
from dtun.dtls.suites import DEFAULT_SUITES
from dtun.handover.saved_session import SavedSession, describe
from dtun.protocol.messages import Welcome

SUITE = DEFAULT_SUITES[0]
WELCOME = Welcome(address=IPv4Address("10.86.0.2"), peer=IPv4Address("10.86.0.1"))


def keys() -> SessionKeys:
    return SessionKeys(
        SUITE,
        client=(b"\x01" * SUITE.key_length, b"\x02" * SUITE.fixed_iv_length),
        server=(b"\x03" * SUITE.key_length, b"\x04" * SUITE.fixed_iv_length),
        sequence=5,
        highest=-1,
        missing=frozenset(),
    )


@contextmanager
def saved() -> Iterator[SavedSession]:
    made = SavedSession.make(describe(keys(), "demo", WELCOME, server=False, key="present"))
    try:
        yield made
    finally:
        made.close()


def successor(made: SavedSession) -> SavedSession:
    """What the next process finds: the same memory, through a descriptor of its own."""
    return SavedSession(os.dup(made.descriptor))


def test_the_successor_goes_on_where_the_first_was_killed() -> None:
    peer = AeadRecords(keys(), server=True)
    with saved() as made:
        first = AeadRecords(keys(), server=False)
        first.attach_ledger(made.record_ledger)
        sent = [*first.seal_batch([b"one", b"two"]), first.seal(b"three")]
        first.open(peer.seal(b"answer"))

        second = successor(made).association()
        sent.append(second.seal(b"four"))
        assert [plaintext for record in sent for plaintext in peer.open(record)] == [
            b"one",
            b"two",
            b"three",
            b"four",
        ]
        assert second.receive(peer.seal(b"more"), 0.0) == (b"more",)


def test_no_record_is_taken_twice_by_the_two() -> None:
    peer = AeadRecords(keys(), server=True)
    record, later = peer.seal(b"once"), peer.seal(b"late")
    with saved() as made:
        first = AeadRecords(keys(), server=False)
        first.attach_ledger(made.record_ledger)
        assert first.open_batch(memoryview(later), len(later), []) == [b"late"]
        second = successor(made).association()
        assert second.receive(later, 0.0) == ()
        assert second.receive(record, 0.0) == ()  # it may have come: nobody knows any more
        assert second.records.drops["replayed"] == 2


@pytest.mark.parametrize("size", [1, 3])
def test_what_came_is_on_record_before_it_is_passed_on(size: int) -> None:
    peer = AeadRecords(keys(), server=True)
    with saved() as made:
        first = AeadRecords(keys(), server=False)
        first.attach_ledger(made.record_ledger)
        records = [peer.seal(b"once") for _ in range(size)]
        assert len(first.open(b"".join(records))) == size
        second = successor(made).association()
        assert [second.receive(record, 0.0) for record in records] == [()] * size


def test_what_the_peer_said_is_there_again() -> None:
    with saved() as made:
        found = successor(made).description
        assert (found.greeting, found.identity, found.notes) == (WELCOME, "demo", {"key": "present"})


def test_its_size_is_sealed() -> None:
    with saved() as made, pytest.raises(PermissionError):
        os.ftruncate(made.descriptor, 0)


def test_nothing_is_left_in_it_after_the_session() -> None:
    with saved() as made:
        other = os.dup(made.descriptor)
        made.close()
        with mmap.mmap(other, os.fstat(other).st_size, prot=mmap.PROT_READ) as memory:
            assert memory[:] == bytes(len(memory))
        os.close(other)


@pytest.mark.parametrize(
    "content", [b"", b"short", bytes(4096), b"dtun-ks9" + bytes(4096), b"dtun-ks1" + bytes(4096)]
)
def test_what_is_not_of_this_layout_is_refused(content: bytes) -> None:
    descriptor = os.memfd_create("test")
    os.write(descriptor, content)
    with pytest.raises(ValueError, match=r"it is|its description"):
        SavedSession(descriptor)
    os.close(descriptor)


def test_its_words_hold_no_secret() -> None:
    with saved() as made:
        broken = bytearray(os.pread(made.descriptor, 4096, 0))
        broken[60] ^= 0xFF
        descriptor = os.memfd_create("test")
        os.write(descriptor, broken)
        with pytest.raises(ValueError, match="another version") as caught:
            SavedSession(descriptor)
        assert "AQEB" not in str(caught.value)
        os.close(descriptor)


def test_a_suite_that_only_another_version_knows_is_refused_at_once() -> None:
    with saved() as made:
        other = made.description.model_copy(update={"suite": 0xFFFF})
        with pytest.raises(ValueError, match="suite 0xffff is unknown"):
            SavedSession.make(other)
