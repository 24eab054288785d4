"""The record layer after the handshake: seals and opens records with the AEADs of `cryptography`.

As with kernel TLS, Mbed TLS makes the handshake, then its keys are taken over (key_takeover.py). The wire format is
plain DTLS 1.2 (RFC 6347, section 4.1; RFC 5246, section 6.2.3.3 for AEAD ciphers). Every record is of epoch 1,
because there is no renegotiation.

     0      1         3                  11       13
    +------+---------+------------------+--------+------------------+------------+-----+
    | type | version | epoch 2 | seq. 6 | length | explicit nonce 8 | ciphertext | tag |
    +------+---------+------------------+--------+------------------+------------+-----+

GCM and CCM (RFC 5288, RFC 6655): nonce = 4 bytes of IV, then epoch and sequence number, sent as explicit nonce.
ChaCha20-Poly1305 (RFC 7905): nonce = 12 bytes of IV xor epoch and sequence number; there is no explicit nonce.
Associated data = epoch and sequence number 8, type 1, version 2, length of the plaintext 2.
"""

from collections import Counter
from collections.abc import MutableSequence, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import add
from typing import Final, Protocol

from cryptography.exceptions import InvalidTag

from dtun.dtls.consecutive import DATA, VERSION, Consecutive, rows
from dtun.dtls.sequence import ReplayWindow, SendSequence
from dtun.dtls.suites import Suite
from dtun.protocol.record import (
    ALERT,
    APPLICATION_DATA,
    CHANGE_CIPHER_SPEC,
    HANDSHAKE,
    HEADER_SIZE,
    MAX_PLAINTEXT,
    MAX_SEQUENCE,
    sequence_of,
    split,
)

ALERT_RECORD: Final = bytes([ALERT]) + VERSION
"""How an alert record begins."""

_EPOCH_1: Final = 1 << 48
_EPOCH_2: Final = 2 << 48
_WARNING: Final = 1
_FATAL: Final = 2
_CLOSE_NOTIFY: Final = 0

_BLOCK: Final = 6
"""Records of one length in a row from which on they are sealed or opened as one block."""


@dataclass(frozen=True, slots=True)
class SessionKeys:
    """What the record layer of one session needs: (key, IV) of the client's and of the server's direction.

    `sequence`: number of the next record to send. `highest`: highest number received, -1 if none. `missing`: the
    numbers below it that may still arrive.
    """

    suite: Suite
    client: tuple[bytes, bytes] = field(repr=False)
    server: tuple[bytes, bytes] = field(repr=False)
    sequence: int
    highest: int
    missing: frozenset[int]


class Records(Protocol):
    """Seals the records of one session and opens those of the peer."""

    drops: Counter[str]

    forgeries: int
    """Records that failed authentication."""

    @property
    def overhead(self) -> int:
        """Bytes that a record adds to its plaintext."""

    @property
    def offloaded(self) -> bool:
        """Whether the records bypass Mbed TLS."""

    @property
    def highest(self) -> int:
        """The highest authenticated sequence number received, -1 if none."""

    @property
    def closed(self) -> bool:
        """Whether the peer has ended the session by an authentic close_notify or fatal alert."""

    @property
    def wear(self) -> float:
        """The used share of what the cipher permits for one key; 1 is the limit."""

    def seal(self, plaintext: bytes, /) -> bytes:
        """Make one application_data record.

        Raises:
            ValueError: the plaintext has more than 16,384 bytes.
            OverflowError: the sequence numbers are used up.
        """

    def seal_batch(self, plaintexts: Sequence[bytes]) -> list[bytes]:
        """`seal` for many."""

    def seal_close(self) -> bytes:
        """Make a close_notify alert record."""

    def open(self, datagram: bytes) -> Sequence[bytes]:
        """The application plaintexts of a datagram; () if it was dropped, which is counted in `drops`."""

    def open_next(self, datagram: bytes, /) -> bytes | None:
        """The plaintext, if this is the next application_data record in order, alone in its datagram.

        None, without any effect, for every other datagram: use `open` for that.
        """

    def open_batch(self, datagrams: memoryview, size: int, odd: list[bytes]) -> list[bytes]:
        """`open` for consecutive datagrams of `size` bytes each; the last may be shorter.

        Every datagram that is not one application_data record is appended to `odd`, for `open`.
        """


class AeadRecords:
    """The offloaded record layer.

    A record that cannot be opened changes nothing but two counters, so `open` may be tried with a datagram of unknown
    origin (NAT rebinding). Each failure counts as a forgery against the key (RFC 9147, section 4.5.3), whoever sent
    it. An attacker can imitate a roaming client, so callers limit their attempts: only if
    `highest < sequence_of(datagram)`, and with a rate limit.

    Every nonce comes from `SendSequence.reserve`, and every received number goes to `ReplayWindow`.

    There are two ways to seal, one record and a block, and two to open. `open_next` is the short form of `open` for the
    usual case.
    """

    offloaded = True

    def __init__(self, keys: SessionKeys, *, server: bool) -> None:
        self.keys = keys
        suite = keys.suite
        write_key, write_iv = keys.server if server else keys.client
        read_key, read_iv = keys.client if server else keys.server
        # A 4-byte IV is filled up with zeros: xor then puts epoch and sequence number behind it.
        write_iv, read_iv = write_iv.ljust(12, b"\x00"), read_iv.ljust(12, b"\x00")
        explicit = bool(suite.explicit_nonce_length)
        self._body = HEADER_SIZE + suite.explicit_nonce_length
        self._added = suite.explicit_nonce_length + suite.tag_length
        self._encrypt = suite.aead(write_key).encrypt
        self._decrypt = suite.aead(read_key).decrypt
        self._write_iv = int.from_bytes(write_iv)
        self._read_iv = int.from_bytes(read_iv)
        self._explicit = explicit
        self.sending = SendSequence(keys.sequence)
        self._window = ReplayWindow(keys.highest, keys.missing)
        self._sealing = Consecutive(write_iv, explicit=explicit, added=self._added)
        self._opening = Consecutive(read_iv, explicit=explicit, added=self._added)
        self.forgeries = 0
        self.overhead = suite.overhead
        self.closed = False
        self.drops: Counter[str] = Counter()

    def attach_ledger(self, ledger: MutableSequence[int]) -> None:
        """Enter the next number to send and the next expected in `ledger`, from now on: see sequence.py."""
        self.sending.attach_ledger(ledger)
        self._window.attach_ledger(ledger)

    def __repr__(self) -> str:
        return f"AeadRecords(next={self.sending.next}, highest={self.highest})"

    @property
    def highest(self) -> int:
        return self._window.highest

    @property
    def wear(self) -> float:
        suite = self.keys.suite
        return max(self.sending.next / suite.seal_limit, self.forgeries / suite.forgery_limit)

    def seal(self, plaintext: bytes, start: bytes = DATA, /) -> bytes:
        """See `Records.seal`. `start`: type and version of the record."""
        length = len(plaintext)
        if length > MAX_PLAINTEXT:
            _check_length(length)
        number = _EPOCH_1 | self.sending.reserve(1)
        nonce, counter = (self._write_iv ^ number).to_bytes(12), number.to_bytes(8)
        sealed = self._encrypt(nonce, plaintext, counter + start + length.to_bytes(2))
        header = start + counter + (length + self._added).to_bytes(2)
        return header + nonce[4:] + sealed if self._explicit else header + sealed

    def seal_batch(self, plaintexts: Sequence[bytes]) -> list[bytes]:
        if len(plaintexts) < _BLOCK:
            return list(map(self.seal, plaintexts))
        records: list[bytes] = []
        for length, group in groupby(plaintexts, len):
            block = list(group)
            records += map(self.seal, block) if len(block) < _BLOCK else self._seal_block(block, length)
        return records

    def seal_close(self) -> bytes:
        return self.seal(bytes([_WARNING, _CLOSE_NOTIFY]), ALERT_RECORD)

    def open(self, datagram: bytes) -> Sequence[bytes]:
        if len(datagram) < HEADER_SIZE:
            self.drops["malformed"] += 1
            return ()
        if not _is_one_record(datagram):
            return self._open_many(datagram)
        if datagram[0] != APPLICATION_DATA:
            self._open_other(datagram)
            return ()
        plaintext = self._open(datagram)
        return () if plaintext is None else (plaintext,)

    def open_next(self, datagram: bytes, /) -> bytes | None:
        # One comparison covers the whole header. After a pause (cold caches) this takes 56 us, `open` 66 us.
        size = len(datagram)
        length = size - self.overhead
        window = self._window
        if not 0 <= length <= MAX_PLAINTEXT:
            return None
        number = _EPOCH_1 + window.highest + 1
        nonce, counter = (self._read_iv ^ number).to_bytes(12), number.to_bytes(8)
        header = DATA + counter + (size - HEADER_SIZE).to_bytes(2)
        if self._explicit:
            header += nonce[4:]
        body = self._body
        if datagram[:body] != header or number >= _EPOCH_2:
            return None
        try:
            plaintext = self._decrypt(nonce, datagram[body:], counter + DATA + length.to_bytes(2))
        except InvalidTag:
            return None  # `open` tries again and counts it
        window.accept_next()
        return plaintext

    def open_batch(self, datagrams: memoryview, size: int, odd: list[bytes]) -> list[bytes]:
        count = len(datagrams) // size
        plaintexts: list[bytes] = []
        if count >= _BLOCK and size >= self.overhead:
            plaintexts = self._open_block(datagrams[: count * size], size, count)
            if plaintexts:
                datagrams = datagrams[count * size :]
        open_next = self.open_next
        for start in range(0, len(datagrams), size):
            datagram = bytes(datagrams[start : start + size])
            plaintext = open_next(datagram)
            if plaintext is None:
                if datagram[0] != APPLICATION_DATA or not _is_one_record(datagram):
                    odd.append(datagram)
                    continue
                plaintext = self._open(datagram)
            if plaintext is not None:
                plaintexts.append(plaintext)
        return plaintexts

    def _seal_block(self, plaintexts: list[bytes], length: int) -> list[bytes]:
        _check_length(length)
        count, numbers = len(plaintexts), self._sealing
        number = _EPOCH_1 | self.sending.reserve(count)
        nonces, associated = numbers.nonces(number, count), numbers.associated(number, count, length)
        sealed = map(self._encrypt, nonces, plaintexts, associated)
        return list(map(add, numbers.headers(number, count, length), sealed))

    def _open_block(self, datagrams: memoryview, size: int, count: int) -> list[bytes]:
        """The plaintexts, if all of these are authentic and in order, the usual case; else [], without any effect."""
        headers, sealed = zip(*rows(size, self._body).iter_unpack(datagrams), strict=True)
        numbers, length = self._opening, size - self.overhead
        sequence = sequence_of(headers[0])
        number = _EPOCH_1 | sequence
        # One comparison covers every field of every header.
        if (
            not self._window.highest < sequence <= MAX_SEQUENCE - count
            or length > MAX_PLAINTEXT
            or list(headers) != numbers.headers(number, count, length)
        ):
            return []
        nonces, associated = numbers.nonces(number, count), numbers.associated(number, count, length)
        try:
            plaintexts = list(map(self._decrypt, nonces, sealed, associated))
        except InvalidTag:
            return []
        self._window.accept(sequence, count)
        return plaintexts

    def _open(self, record: bytes) -> bytes | None:
        """The plaintext of one whole record of any type and any order; None if it was dropped and counted."""
        length = len(record) - self.overhead
        if record[1:3] != VERSION or not 0 <= length <= MAX_PLAINTEXT:
            self.drops["malformed"] += 1
            return None
        counter = record[3:11]
        number = int.from_bytes(counter)
        if not _EPOCH_1 <= number < _EPOCH_2:
            self.drops["epoch"] += 1
            return None
        sequence = number ^ _EPOCH_1
        if not self._window.is_fresh(sequence):
            self.drops["replayed"] += 1
            return None
        # The sender may choose the explicit nonce freely (RFC 5288, section 3); most, but not all, use the number.
        explicit = record[HEADER_SIZE : self._body]
        xored = int.from_bytes(explicit or counter) ^ self._read_iv
        try:
            plaintext = self._decrypt(
                xored.to_bytes(12), record[self._body :], counter + record[:3] + length.to_bytes(2)
            )
        except InvalidTag:
            self.forgeries += 1
            self.drops["unauthenticated"] += 1
            return None
        self._window.accept(sequence)
        return plaintext

    def _open_many(self, datagram: bytes) -> Sequence[bytes]:
        """The plaintexts of a datagram of several records, or of a record that was cut off."""
        records = split(datagram)
        if sum(map(len, records)) != len(datagram):
            self.drops["malformed"] += 1
        return tuple(plaintext for record in records for plaintext in self.open(record))

    def _open_other(self, record: bytes) -> None:
        if record[0] in (HANDSHAKE, CHANGE_CIPHER_SPEC):
            # The peer's last flight, late or resent. Mbed TLS has processed it before the keys were taken over.
            self.drops["handshake"] += 1
            return
        if record[0] != ALERT:
            self.drops["malformed"] += 1
            return
        alert = self._open(record)
        if alert is None:
            return
        self.drops["alert"] += 1
        if len(alert) == 2 and (alert[0] == _FATAL or alert[1] == _CLOSE_NOTIFY):
            self.closed = True


def _check_length(length: int) -> None:
    if length > MAX_PLAINTEXT:
        raise ValueError(f"a record holds at most {MAX_PLAINTEXT} bytes, not {length}")


def _is_one_record(datagram: bytes) -> bool:
    """Whether the length in the first header covers the rest of the datagram exactly."""
    return HEADER_SIZE + int.from_bytes(datagram[11:HEADER_SIZE]) == len(datagram)
