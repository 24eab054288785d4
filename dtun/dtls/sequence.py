"""The sequence numbers of a session: which number is sent next, and which may still be received.

Both are entered in the session's ledger, two numbers in memory that may outlive this process:

      next number to send | next number expected (highest received + 1)

A successor process that resumes the session starts from these, so it neither reuses a number nor accepts a replay.
"""

from collections.abc import Iterable, MutableSequence
from typing import Final

from dtun.protocol.record import MAX_SEQUENCE

_END: Final = MAX_SEQUENCE + 1

# How far behind the highest number a record may arrive. At 100,000 records a second: 40 ms of reordering.
WINDOW_SIZE: Final = 4096
_WINDOW: Final = (1 << WINDOW_SIZE) - 1


class SendSequence:
    """Gives out each sequence number once. An AEAD nonce is made of it, so a second use would break the cipher."""

    __slots__ = ("_ledger", "_next")

    def __init__(self, first: int) -> None:
        self._next = first
        self._ledger: MutableSequence[int] = [0]

    @property
    def next(self) -> int:
        """The number that `reserve` returns next."""
        return self._next

    def attach_ledger(self, ledger: MutableSequence[int]) -> None:
        """Enter the next number in `ledger[0]`, now and before each later use."""
        self._ledger = ledger
        ledger[0] = self._next

    def reserve(self, count: int) -> int:
        """Take `count` consecutive numbers; returns the first. The ledger has them before they can be used.

        Raises:
            OverflowError: fewer numbers are left (RFC 6347, section 4.1: they must not wrap).
        """
        first = self._next
        after = first + count
        if after > _END:
            raise OverflowError("the sequence numbers of this session are used up")
        self._ledger[0] = self._next = after
        return first


class ReplayWindow:
    """The replay window (RFC 6347, section 4.1.2.6). Remembers the numbers that are missing, not those that came.

    They are the bits of one integer, which is 0 while records come in order, the usual case. However far a peer's
    numbers leap, it is one shift.
    """

    __slots__ = ("_ledger", "_missing", "highest")

    def __init__(self, highest: int = -1, missing: Iterable[int] = ()) -> None:
        self.highest = highest
        # Bit n: the number `highest` - n may still come.
        self._missing = 0
        for number in missing:
            if 0 < highest - number < WINDOW_SIZE:
                self._missing |= 1 << (highest - number)
        self._ledger: MutableSequence[int] = [0, 0]

    @property
    def missing(self) -> int:
        """How many numbers are remembered as missing."""
        return self._missing.bit_count()

    def attach_ledger(self, ledger: MutableSequence[int]) -> None:
        """Enter the next expected number in `ledger[1]`, now and with each accepted record."""
        self._ledger = ledger
        ledger[1] = self.highest + 1

    def is_fresh(self, sequence: int) -> bool:
        """Whether a record with this number may be accepted; changes nothing."""
        behind = self.highest - sequence
        return behind < 0 or (behind < WINDOW_SIZE and bool(self._missing >> behind & 1))

    def accept_next(self) -> None:
        """`accept` for `highest + 1`, the usual case, in fewer steps."""
        if self._missing:
            self._missing = self._missing << 1 & _WINDOW
        self.highest = sequence = self.highest + 1
        self._ledger[1] = sequence + 1

    def accept(self, first: int, count: int = 1) -> None:
        """Mark `count` consecutive fresh numbers, whose records are authentic, as received.

        More than one only above `highest`.
        """
        ahead = first - self.highest
        if ahead > 0:
            if ahead > 1 or self._missing:
                self._leap(ahead - 1, count)
            self.highest = highest = first + count - 1
            self._ledger[1] = highest + 1
        else:
            self._missing &= ~(1 << -ahead)

    def _leap(self, skipped: int, count: int) -> None:
        """Move the window over `skipped` numbers that are missing now, and `count` that are not."""
        shift = skipped + count
        # Only if something of it stays: a shift by what a peer may choose would need as much memory.
        before = self._missing << shift if shift < WINDOW_SIZE else 0
        between = ((1 << min(skipped, WINDOW_SIZE)) - 1) << count
        self._missing = (before | between) & _WINDOW
