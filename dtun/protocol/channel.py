"""Control messages over records that may get lost: numbered, cut into fragments, acknowledged, resent.

One message is in flight at a time and arrives once and in order; there are only a handful in a session.
"""

from collections import deque
from collections.abc import Iterator, MutableSequence

from dtun.protocol.frames import FRAGMENT_SIZE, MAX_FRAGMENTS, Ack, Control

FIRST_RESEND = 0.25
"""Seconds until a fragment that was not acknowledged is sent again; doubled each time."""

LONGEST_RESEND = 4.0
"""Seconds between two resends at most."""

MAX_MESSAGE = FRAGMENT_SIZE * MAX_FRAGMENTS
"""Bytes of one message at most."""

MAX_QUEUED = 32
"""Messages that may wait. A peer that acknowledges nothing must not make this side hoard."""


class Channel:
    """One direction-pair of control messages. Pure: `take_outgoing` holds what is to be sent."""

    def __init__(self, sending: int = 0, expected: int = 0) -> None:
        """`sending` and `expected` are the numbers at which a channel that was there before goes on."""
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
            ValueError: it is empty, longer than `MAX_MESSAGE`, or too many wait already.
        """
        if not 0 < len(message) <= MAX_MESSAGE:
            raise ValueError(f"a control message has 1 to {MAX_MESSAGE} bytes, not {len(message)}")
        if len(self._queue) >= MAX_QUEUED:
            raise ValueError("the peer has not acknowledged any control message for too long")
        self._queue.append(message)
        self._send_next(now)

    def acknowledged(self, ack: Ack, now: float) -> None:
        """Note that a fragment has arrived at the peer; anything unexpected is a late duplicate."""
        if ack.message == self._sending and self._unacknowledged.pop(ack.index, None) is not None:
            if not self._unacknowledged:
                self._ledger[0] = self._sending = (self._sending + 1) & 0xFFFF
            self._send_next(now)

    def receive(self, fragment: Control) -> bytes | None:
        """Take a fragment in; returns the message if this made it whole.

        The previous message is acknowledged again, since the acknowledgement may have got lost; anything
        else that is not expected is ignored.
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
        """Send again what has waited long enough for its acknowledgement."""
        if self._unacknowledged and now >= self._resend_at:
            self._interval = min(self._interval * 2, LONGEST_RESEND)
            self._resend_at = now + self._interval
            self._outgoing.extend(fragment.encode() for fragment in self._unacknowledged.values())

    def next_timer(self) -> float | None:
        """When `poll` has something to do, in seconds on the caller's clock."""
        return self._resend_at if self._unacknowledged else None

    def take_outgoing(self) -> list[bytes]:
        """The frames to send now."""
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    def _send_next(self, now: float) -> None:
        if self._unacknowledged or not self._queue:
            return
        self._unacknowledged = {
            fragment.index: fragment for fragment in _cut(self._queue.popleft(), self._sending)
        }
        self._interval = FIRST_RESEND
        self._resend_at = now + self._interval
        self._outgoing.extend(fragment.encode() for fragment in self._unacknowledged.values())


def _cut(message: bytes, number: int) -> Iterator[Control]:
    count = -(-len(message) // FRAGMENT_SIZE)
    for index in range(count):
        yield Control(number, index, count, message[index * FRAGMENT_SIZE : (index + 1) * FRAGMENT_SIZE])
