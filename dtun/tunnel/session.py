"""A session: one DTLS association that currently serves an identity. Pure, with no socket and no clock.

    handshake --> opening --> open --> closed
        |            |          |
        +------------+----------+--> closed, with a reason

Datagrams and `now` go in, datagrams and events come out. Once it is open and its record layer is
settled, the data plane takes records past this core and hands over only what is not an IP packet.
"""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from dtun.dtls.association import Association, AssociationState
from dtun.protocol.frames import is_packet
from dtun.protocol.messages import Goodbye, Hello, Message, Welcome
from dtun.tunnel.dialect import Dialect
from dtun.tunnel.text import harmless

OPENING_TIME = 10.0
"""Seconds from the end of the handshake until the peer must have said what it is."""

EARLY_PACKETS = 256
"""IP packets kept that arrive before the data plane is attached; more than a round trip brings."""

WEAR_CHECK = 10.0
"""Seconds between two looks at the key's wear, of which the record layer tells nobody by itself."""

FAREWELL = 200
"""Characters of a goodbye's text: in whatever script, it fits into one fragment."""

Reason = Literal["handshake", "no answer", "stopped", "replaced", "renewed", "refused", "timeout", "other"]


@dataclass(frozen=True, slots=True)
class Established:
    """The handshake is over and both sides have proven the key."""


@dataclass(frozen=True, slots=True)
class Received:
    """The peer said something."""

    message: Message


@dataclass(frozen=True, slots=True)
class Closed:
    """The session is over. `text` is for a person; `by_peer` if the peer said so."""

    reason: Reason
    text: str
    by_peer: bool = False


@dataclass(frozen=True, slots=True)
class WornOut:
    """The key has come near the limits of its cipher; a new session is due."""


Event = Established | Received | WornOut | Closed


class Session:
    """One association with its conversation. `drops` counts what was not understood, by reason."""

    def __init__(
        self,
        association: Association,
        make_dialect: Callable[[Association, Callable[[str], None], float], Dialect],
        now: float,
        *,
        handshake_deadline: float,
    ) -> None:
        self.association = association
        self.dialect: Dialect | None = None
        self.closed: Closed | None = None
        self.drops: Counter[str] = Counter()
        self._make_dialect = make_dialect
        self._deadline: float | None = handshake_deadline
        self._events: deque[Event] = deque()
        self._early: list[bytes] = []
        self._outgoing: list[bytes] = []
        self._worn_out = False
        self._polled_at = now
        self._advance(now)

    @property
    def open(self) -> bool:
        """Whether the data plane may take over: nothing of the opening is left, and the record layer is final."""
        return (
            self.closed is None
            and self.dialect is not None
            and not self.dialect.opening
            and self.association.settled
        )

    def send(self, message: Message, now: float) -> None:
        """Say something to the peer; nothing once the session is closed.

        A peer that acknowledges nothing, however much is said, is given up.
        """
        if self.closed is not None or self.dialect is None:
            return
        try:
            self.dialect.send(message, now)
        except ValueError as error:
            self._end(Closed("other", str(error)))
        self._collect()

    def receive(self, datagram: bytes, now: float) -> None:
        """Take in a datagram, in any state."""
        if self.closed is not None:
            return
        plaintexts = self.association.receive(datagram, now)
        self._establish(now)
        for plaintext in plaintexts:
            self.receive_plaintext(plaintext, now)
        self._advance(now)

    def receive_plaintext(self, plaintext: bytes, now: float) -> None:
        """Take in what a record held: all of them until the data plane has taken over, its left-overs later."""
        if self.closed is not None or self.dialect is None:
            return
        if not self.dialect.opening and is_packet(plaintext):
            if len(self._early) < EARLY_PACKETS:
                self._early.append(plaintext)
            else:
                self._count("early packet")
            return
        message = self.dialect.receive(plaintext, now)
        if isinstance(message, Goodbye):
            self._end(Closed(message.reason, message.text, by_peer=True))
        elif isinstance(message, Hello | Welcome) and self._deadline is None:
            # Each costs a round through the kernel. Who has something new to say makes a new session.
            self._count("repeated greeting")
        elif message is not None:
            if isinstance(message, Hello | Welcome):
                self._deadline = None
            self._events.append(Received(message))
        self._collect()

    def poll(self, now: float) -> None:
        """Do what time demands: resend, keep alive, give up."""
        if self.closed is not None:
            return
        self._polled_at = now
        self.association.poll(now)
        self._advance(now)
        if self.closed is None and self.dialect is not None:
            self.dialect.poll(self.association.records.highest, now)
            if self.association.records.exhausted and not self._worn_out:
                self._worn_out = True
                self._events.append(WornOut())
            liveness = self.dialect.liveness
            if liveness is not None and liveness.dead(now):
                self.close("timeout", f"nothing was heard for {liveness.timeout:g} s", now)
        if self.closed is None and self._deadline is not None and now >= self._deadline:
            self._give_up()
        self._collect()

    def next_timer(self) -> float | None:
        """When to `poll` next, in seconds on the caller's clock."""
        if self.closed is not None:
            return None
        timers = [self._deadline, self.association.next_timer()]
        if self.dialect is not None:
            timers.append(self.dialect.next_timer())
            timers.append(None if self._worn_out else self._polled_at + WEAR_CHECK)
        return min((timer for timer in timers if timer is not None), default=None)

    def close(self, reason: Reason, text: str, now: float, *, tell: bool = True) -> None:
        """End the session from this side. The peer is told with a goodbye and close_notify if `tell`."""
        if self.closed is not None:
            return
        if tell and self.dialect is not None and reason not in ("handshake", "no answer"):
            self.dialect.send(Goodbye(reason=reason, text=harmless(text, FAREWELL)), now)
            self._collect()
        self._end(Closed(reason, text), tell=tell)

    def take_outgoing(self) -> list[bytes]:
        """The datagrams to send now, in this order."""
        outgoing, self._outgoing = self.association.take_outgoing() + self._outgoing, []
        return outgoing

    def take_events(self) -> list[Event]:
        events = list(self._events)
        self._events.clear()
        return events

    def look(self, now: float) -> None:
        """See whether the record layer, which the data plane drives, has met the end of the session."""
        self._advance(now)

    def take_early_packets(self) -> list[bytes]:
        """IP packets that came before the data plane took over."""
        early, self._early = self._early, []
        return early

    def _advance(self, now: float) -> None:
        """Follow the association's state."""
        association = self.association
        if self.closed is not None:
            return
        if association.state is AssociationState.FAILED:
            self._end(Closed("handshake", association.failure))
        elif association.state is not AssociationState.HANDSHAKING:
            self._establish(now)
            if association.records.closed:
                self._end(Closed("other", "the other side closed the session", by_peer=True))

    def _establish(self, now: float) -> None:
        """Begin the conversation, once the handshake is over."""
        over = (AssociationState.ESTABLISHED, AssociationState.CLOSED)
        if self.dialect is None and self.association.state in over:
            self.dialect = self._make_dialect(self.association, self._count, now)
            self._deadline = now + OPENING_TIME
            self._events.append(Established())

    def _give_up(self) -> None:
        if self.dialect is not None:
            self._end(Closed("timeout", f"the other side did not introduce itself within {OPENING_TIME:g} s"))
        elif self.association.answered:
            self._end(Closed("refused", "the server does not accept the id or the key"))
        else:
            self._end(Closed("no answer", "no answer"))

    def _collect(self) -> None:
        """Seal what the dialect wants to say."""
        if self.dialect is not None and self.closed is None:
            self._outgoing.extend(self.association.seal(text) for text in self.dialect.take_outgoing())

    def _end(self, closed: Closed, *, tell: bool = True) -> None:
        self.closed = closed
        farewell = self.association.close()
        if farewell is not None and tell:
            self._outgoing.append(farewell)
        self._events.append(closed)

    def _count(self, reason: str) -> None:
        self.drops[reason] += 1
