"""An association that a previous process made: no handshake, only its keys and sequence numbers.

It has the interface of `Association` after the handshake, without Mbed TLS.
"""

from collections.abc import Sequence
from dataclasses import replace

from dtun.dtls.association import AssociationState
from dtun.dtls.records import AeadRecords, SessionKeys
from dtun.dtls.suites import Suite


class ResumedAssociation:
    """One resumed DTLS session with one peer."""

    takeover_done = True
    answered = True
    native = True
    failure = ""
    fallback_reason = ""

    def __init__(
        self, keys: SessionKeys, identity: str, *, server: bool, sequence: int, highest: int
    ) -> None:
        """`sequence` is the next number to send; all numbers up to `highest` count as received."""
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
        """Process a datagram; returns the application plaintexts in it."""
        del now
        return self.records.open(datagram)

    def poll(self, now: float) -> None:
        """There is no flight to resend."""

    def next_timer(self) -> float | None:
        return None

    def take_outgoing(self) -> list[bytes]:
        return []

    def seal(self, plaintext: bytes) -> bytes:
        """One application data record, alone in its datagram."""
        return self.records.seal(plaintext)

    def close(self) -> bytes | None:
        """End the association. Returns the close_notify to send, unless the peer has ended it already."""
        established = self.state is AssociationState.ESTABLISHED
        self._closed = True
        return self.records.seal_close() if established else None
