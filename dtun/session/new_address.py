"""Whether a peer's new address is really its own (RFC 9000, sections 8.2 and 9.3, in spirit). Pure.

An authentic record from a new address moves a session there. But somebody on the path may have caught that record and
sent it from an address of their choice, so that everything for the peer would go to a victim. So until a probe that was
sent there has come back, at most three times as many bytes are sent there as have come from there.
"""

import secrets
from dataclasses import dataclass

from dtun.protocol.frames import Echo, Probe
from dtun.session.pmtud import FIRST_TOKEN

FACTOR = 3
"""Bytes that may be sent for each byte that has come."""

SMALLEST_RECORD = 40
"""Bytes that a record has at least, for those that are known by their number only."""

FIRST_PROBE, LAST_PROBE = 0.3, 2.0
"""Seconds between two probes: at first, and at most; doubled in between."""

RECORDS_OF_GO = 16
"""A Go dtun answers no probes: this many times a newer record must have come."""

# Keepalive probes have small tokens, those for the path's MTU the highest bit.
_TOKENS = FIRST_TOKEN >> 1


@dataclass(slots=True)
class NewAddress:
    """What is known about it. `credit`: bytes that may be sent; `native`: the peer answers probes.

    `highest` is the highest sequence number that the peer has used.
    """

    highest: int
    native: bool
    credit: int
    probe_at: float
    token: int
    interval: float = FIRST_PROBE
    newer: int = 0
    proven: bool = False

    @classmethod
    def after(cls, received: int, *, highest: int, native: bool, now: float) -> "NewAddress":
        """A datagram of `received` bytes came from there."""
        return cls(highest, native, FACTOR * received, now, _TOKENS | secrets.randbelow(_TOKENS))

    def heard(self, highest: int) -> None:
        """The peer has used numbers up to this one. At least one record has come if it has changed."""
        if highest > self.highest:
            self.highest = highest
            self.credit += FACTOR * SMALLEST_RECORD
            self.newer += 1
            self.proven = self.proven or (not self.native and self.newer >= RECORDS_OF_GO)

    def may_send(self, size: int) -> bool:
        """Whether a datagram of `size` bytes may be sent there. If so, it counts as sent."""
        if self.proven:
            return True
        if size > self.credit:
            return False
        self.credit -= size
        return True

    def answered(self, plaintext: bytes) -> bool:
        """Whether this plaintext is the echo that proves the address."""
        is_echo = self.native and plaintext == Echo(self.token).encode()
        self.proven = self.proven or is_echo
        return is_echo

    def poll(self, now: float) -> bytes | None:
        """The frame to send now, if one is due."""
        if self.proven or now < self.probe_at:
            return None
        self.probe_at = now + self.interval
        self.interval = min(2 * self.interval, LAST_PROBE)
        return Probe(self.token).encode() if self.native else None
