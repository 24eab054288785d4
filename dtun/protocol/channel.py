"""Control messages over records that may be lost: numbered, split into fragments, acknowledged, resent.

One message is in flight at a time, and arrives once and in order; a session has only a few.
"""

from collections import deque
from collections.abc import Iterator, MutableSequence

from dtun.protocol.frames import FRAGMENT_SIZE, MAX_FRAGMENTS, Ack, Control

FIRST_RESEND = 0.25
"""Seconds until an unacknowledged fragment is resent; doubled each time."""

LONGEST_RESEND = 4.0
"""Seconds between two resends at most."""

MAX_MESSAGE = FRAGMENT_SIZE * MAX_FRAGMENTS
"""Bytes of one message at most."""

MAX_QUEUED = 32
"""Messages that may wait. A peer that acknowledges nothing must not fill the memory."""


class Channel:
    """Both directions of one conversation of control messages. Pure: `take_outgoing` returns what to send."""

    def __init__(self, sending: int = 0, expected: int = 0) -> None:
        """`sending` and `expected`: the numbers at which a previous channel is continued."""
        self._queue: deque[bytes] = deque()
        self._ledger: MutableSequence[int] = [0, 0]
        self._sending = sending & 0xFFFF
        self._unacknowledged: dict[int, Control] = {}
        self._resend_at = 0.0
        self._interval = FIRST_RESEND
        self._expected = expected & 0xFFFF
        self._fragments: dict[int, bytes] = {}
        self._outgoing: list[bytes] = []

    def attach_ledger(self, ledger: MutableSequence[int]) -> None:
        """Enter the number of the next message to send and of the next one expected in `ledger`, from now on."""
        self._ledger = ledger
        ledger[0], ledger[1] = self._sending, self._expected

    def send(self, message: bytes, now: float) -> None:
        """Queue one message.

        Raises:
            ValueError: it is empty, longer than `MAX_MESSAGE`, or too many are waiting.
        """
        if not 0 < len(message) <= MAX_MESSAGE:
            raise ValueError(f"a control message has 1 to {MAX_MESSAGE} bytes, not {len(message)}")
        if len(self._queue) >= MAX_QUEUED:
            raise ValueError("the peer has not acknowledged any control message for too long")
        self._queue.append(message)
        self._send_next(now)

    def acknowledged(self, ack: Ack, now: float) -> None:
        """Note that the peer has received a fragment; anything unexpected is a late duplicate."""
        if ack.message == self._sending and self._unacknowledged.pop(ack.index, None) is not None:
            if not self._unacknowledged:
                self._ledger[0] = self._sending = (self._sending + 1) & 0xFFFF
            self._send_next(now)

    def receive(self, fragment: Control) -> bytes | None:
        """Process a fragment; returns the message if this completes it.

        A fragment of the previous message is acknowledged again, since the acknowledgement may have been lost; any
        other unexpected fragment is ignored.
        """
        if not fragment.payload:
            return None
        behind = (self._expected - fragment.message) & 0xFFFF
        if behind == 0:
            known = self._fragments
            if known and len(known) != fragment.count:
                return None
            if not known:
                known.update(dict.fromkeys(range(fragment.count), b""))
            known[fragment.index] = fragment.payload
        elif behind > 1:
            return None
        self._outgoing.append(Ack(fragment.message, fragment.index).encode())
        if behind == 0 and all(self._fragments.values()):
            message = b"".join(payload for _, payload in sorted(self._fragments.items()))
            self._fragments.clear()
            self._ledger[1] = self._expected = (self._expected + 1) & 0xFFFF
            return message
        return None

    def poll(self, now: float) -> None:
        """Resend what was not acknowledged in time."""
        if self._unacknowledged and now >= self._resend_at:
            self._interval = min(self._interval * 2, LONGEST_RESEND)
            self._resend_at = now + self._interval
            self._outgoing.extend(fragment.encode() for fragment in self._unacknowledged.values())

    def next_timer(self) -> float | None:
        """When to call `poll`, on the clock of `now`; None if nothing waits for an acknowledgement."""
        return self._resend_at if self._unacknowledged else None

    def take_outgoing(self) -> list[bytes]:
        """The frames to send now, which are then forgotten."""
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    def _send_next(self, now: float) -> None:
        if self._unacknowledged or not self._queue:
            return
        self._unacknowledged = {
            fragment.index: fragment for fragment in _split(self._queue.popleft(), self._sending)
        }
        self._interval = FIRST_RESEND
        self._resend_at = now + self._interval
        self._outgoing.extend(fragment.encode() for fragment in self._unacknowledged.values())


def _split(message: bytes, number: int) -> Iterator[Control]:
    count = -(-len(message) // FRAGMENT_SIZE)
    for index in range(count):
        yield Control(number, index, count, message[index * FRAGMENT_SIZE : (index + 1) * FRAGMENT_SIZE])
