"""The record layer of a session inside Mbed TLS: before the key takeover, or where that failed. Slow but correct."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from dtun.protocol.record import (
    ALERT,
    CHANGE_CIPHER_SPEC,
    CLIENT_HELLO,
    HANDSHAKE,
    HEADER_SIZE,
    MAX_PLAINTEXT,
    sequence_of,
    split,
)

if TYPE_CHECKING:
    from dtun.dtls.mbed import MbedBuffer
    from dtun.dtls.suites import Suite

_EPOCH_0: Final = b"\x00\x00"
_CLIENT_HELLO: Final = bytes([CLIENT_HELLO])


class MbedRecords:
    """`Records` of a connection whose handshake is complete.

    Mbed TLS does not say why it dropped a record. So replays and forgeries are both counted as "refused" and as
    forgeries against the key.
    """

    offloaded = False

    def __init__(self, buffer: "MbedBuffer", suite: "Suite") -> None:
        self.buffer = buffer
        self._sealed = 0
        self.forgeries = 0
        self._seal_limit = suite.seal_limit
        self._forgery_limit = suite.forgery_limit
        self._close_sent = False
        self.overhead = suite.overhead
        self.highest = -1
        self.drops: Counter[str] = Counter()

    @property
    def closed(self) -> bool:
        return self.buffer.is_broken() and not self._close_sent

    @property
    def wear(self) -> float:
        return max(self._sealed / self._seal_limit, self.forgeries / self._forgery_limit)

    def seal(self, plaintext: bytes, /) -> bytes:
        """One application_data record; b"" once the session is closed."""
        if len(plaintext) > MAX_PLAINTEXT:
            raise ValueError(f"a record holds at most {MAX_PLAINTEXT} bytes, not {len(plaintext)}")
        self._sealed += 1
        return self.buffer.write(plaintext)

    def seal_close(self) -> bytes:
        self._close_sent = not self.buffer.is_broken()
        return self.buffer.close()

    def open(self, datagram: bytes) -> Sequence[bytes]:
        records = split(datagram)
        if sum(map(len, records)) != len(datagram) or not datagram:
            self.drops["malformed"] += 1
        return tuple(plaintext for record in records for plaintext in self._open(record))

    def open_next(self, datagram: bytes, /) -> bytes | None:
        """Mbed TLS does not say which record is the next one: `open` takes them all."""
        del datagram
        return None

    def seal_batch(self, plaintexts: Sequence[bytes]) -> list[bytes]:
        # Once the session is closed there is nothing to send; an empty record would be an empty datagram.
        return [record for record in map(self.seal, plaintexts) if record]

    def open_batch(self, datagrams: memoryview, size: int, odd: list[bytes]) -> list[bytes]:
        plaintexts: list[bytes] = []
        for start in range(0, len(datagrams), size):
            datagram = bytes(datagrams[start : start + size])
            if sequence_of(datagram) < 0:
                odd.append(datagram)
            else:
                plaintexts += self.open(datagram)
        return plaintexts

    def read(self) -> Sequence[bytes]:
        """The application data that arrived together with the end of the handshake."""
        return tuple(self.buffer.read())

    def _open(self, record: bytes) -> Sequence[bytes]:
        if (
            record[0] == HANDSHAKE
            and record[3:5] == _EPOCH_0
            and record[HEADER_SIZE : HEADER_SIZE + 1] == _CLIENT_HELLO
        ):
            # Mbed TLS would start a new handshake on this connection, or end the connection if the message is
            # malformed, and anyone can send one. New handshakes belong to the listener.
            self.drops["handshake"] += 1
            return ()
        self.buffer.feed(record)
        plaintexts = self.buffer.read()
        if plaintexts:
            self.highest = max(self.highest, sequence_of(record))
        elif record[0] in (HANDSHAKE, CHANGE_CIPHER_SPEC):
            self.drops["handshake"] += 1
        elif record[0] == ALERT:
            self.drops["alert"] += 1
        else:
            self.drops["refused"] += 1
            self.forgeries += 1
        return plaintexts
