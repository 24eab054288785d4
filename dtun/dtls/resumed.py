"""An association that a process before this one has made: no handshake, only its keys and where it stood.

It looks like `Association` after the handshake, and has nothing of Mbed TLS in it.
"""

from collections.abc import Sequence
from dataclasses import replace

from dtun.dtls.association import AssociationState
from dtun.dtls.records import AeadRecords, SessionKeys
from dtun.dtls.suites import Suite


class ResumedAssociation:
    """One DTLS session with one peer, from the middle on."""

    takeover_done = True
    answered = True
    native = True
    failure = ""
    fallback_reason = ""

    def __init__(
        self, keys: SessionKeys, identity: str, *, server: bool, sequence: int, highest: int
    ) -> None:
        """`sequence` is the next number to seal with; all numbers up to `highest` count as received."""
        self.identity: str | None = identity
        self.suite: Suite | None = keys.suite
        self.records = AeadRecords(
            replace(keys, sequence=sequence, highest=highest, missing=frozenset()), server=server
        )
        self._closed = False

    @property
    def state(self) -> AssociationState:
        if self._closed or self.records.closed:
            return AssociationState.CLOSED
        return AssociationState.ESTABLISHED

    def receive(self, datagram: bytes, now: float) -> Sequence[bytes]:
        """Take a datagram; returns the application plaintexts in it."""
        del now
        return self.records.open(datagram)

    def poll(self, now: float) -> None:
        """There is no flight to send again."""

    def next_timer(self) -> float | None:
        return None

    def take_outgoing(self) -> list[bytes]:
        return []

    def seal(self, plaintext: bytes) -> bytes:
        """One application data record, alone in its datagram."""
        return self.records.seal(plaintext)

    def close(self) -> bytes | None:
        """End the association. Returns the close_notify to send, unless the peer has ended it already."""
        open_still = self.state is AssociationState.ESTABLISHED
        self._closed = True
        return self.records.seal_close() if open_still else None
