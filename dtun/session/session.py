"""A session: one DTLS association that currently serves an identity. Pure, with no socket and no clock.

    handshake --> opening --> open --> closed
        |            |          |
        +------------+----------+--> closed, with a reason

Datagrams and `now` go in, datagrams and events come out. Once it is open and its record layer is
settled, the data plane takes records past this core and hands over only what is not an IP packet.
"""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from dtun.dtls.association import Association, AssociationState
from dtun.dtls.resumed import ResumedAssociation
from dtun.protocol.frames import Kind, Piece, Probe, decode, is_packet
from dtun.protocol.messages import Goodbye, Hello, Message, Welcome
from dtun.protocol.pieces import Cutter, Joiner
from dtun.protocol.record import MAX_PLAINTEXT
from dtun.session.dialect import Dialect
from dtun.session.pmtud import PathMtu
from dtun.text import printable

OPENING_TIME = 10.0
"""Seconds from the end of the handshake until the peer must have said what it is."""

EARLY_PACKETS = 256
"""IP packets kept that arrive before the data plane is attached; more than a round trip brings."""

WEAR_CHECK = 10.0
"""Seconds between two looks at the key's wear, of which the record layer tells nobody by itself."""

WORN_CHECK = 1.0
"""The same, once it is worn out."""

WORN_OUT = 1 / 2
"""The wear at which a new session is due. At 3 Gbit/s AES-GCM wears by a tenth in the time between two looks."""

END_OF_WEAR = 15 / 16
"""The wear at which a session ends that nothing has replaced. The rest is more than is sealed until the next look."""

FAREWELL = 200
"""Characters of a goodbye's text: in whatever script, it fits into one fragment."""

_PIECE = bytes([Kind.PIECE])

AnyAssociation = Association | ResumedAssociation
"""A session neither knows nor cares who has shaken hands."""

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
    """The key has done half of what its cipher allows; a new session is due."""


@dataclass(frozen=True, slots=True)
class PathMtuChanged:
    """The path takes larger or only smaller packets now: the link's `inner_mtu` and `agreed_mtu` have new values."""


Event = Established | Received | WornOut | PathMtuChanged | Closed


class Session:
    """One association with its conversation. `drops` counts what was not understood, by reason."""

    def __init__(
        self,
        association: AnyAssociation,
        make_dialect: Callable[[AnyAssociation, Callable[[str], None], float], Dialect],
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
        self._probes: list[bytes] = []
        self._around = 0
        self._told_mtu = 0
        self._cutter = Cutter()
        self._joiner = Joiner()
        self._worn_out = False
        self._polled_at = now
        self._advance(now)

    @classmethod
    def resumed(
        cls,
        association: ResumedAssociation,
        make_dialect: Callable[[AnyAssociation, Callable[[str], None], float], Dialect],
        now: float,
    ) -> "Session":
        """One that a process before this one has opened: nothing of the opening is left."""
        session = cls(association, make_dialect, now, handshake_deadline=now)
        session.take_events()
        session._deadline = None
        return session

    @property
    def open(self) -> bool:
        """Whether the data plane may take over: nothing of the opening is left, and the record layer is final."""
        return (
            self.closed is None
            and self.dialect is not None
            and not self.dialect.opening
            and self.association.settled
        )

    @property
    def path(self) -> PathMtu | None:
        """What is known of the path's MTU; None while nobody looks for it."""
        return self.dialect.path if self.dialect is not None else None

    def discover(self, estimate: int, outer_headers: int, *, smallest: int, now: float) -> None:
        """Look for the path's MTU from now on, if the peer answers probes. Once the session is open.

        `estimate` is the MTU to begin with, `smallest` the least of interest, with `outer_headers` of IP and UDP.
        """
        if self.dialect is None or self.dialect.liveness is None:
            return
        self._around = outer_headers + self.association.records.overhead
        largest = self._around + MAX_PLAINTEXT
        self.dialect.path = PathMtu(estimate, smallest=smallest, largest=largest, now=now)
        self._told_mtu = self.dialect.path.current

    @property
    def room(self) -> int:
        """Bytes of plaintext in a record that the path takes, as far as is known."""
        return self.path.current - self._around if self.path is not None else MAX_PLAINTEXT

    def cut(self, plaintexts: Sequence[bytes]) -> Sequence[bytes]:
        """The same, with those in pieces that the path does not take whole."""
        return self._cutter.cut(plaintexts, self.room)

    def refused(self, size: int, now: float) -> None:
        """The host's own interface does not take a probe that makes a packet of `size` bytes."""
        if self.path is not None:
            self.path.refused(size, now)
            self._tell_mtu()

    def doubt(self, kernel_mtu: int, now: float) -> None:
        """The kernel, or ICMP, says that something was too large for the path."""
        if self.path is not None:
            self.path.doubt(kernel_mtu, now)

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
        if plaintext[:1] == _PIECE and self.association.native:
            piece = decode(plaintext)
            whole = self._joiner.join(piece) if isinstance(piece, Piece) else b""
            if whole is None:
                return
            plaintext = whole  # a piece of a piece is nothing that the dialect knows
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

    def poll(self, now: float, *, sent: int = 0, kernel_mtu: int | None = None) -> None:
        """Do what time demands: resend, keep alive, look for the path's MTU, give up.

        `sent` grows with each packet of the data plane, `kernel_mtu` is the kernel's estimate of the path's MTU.
        """
        if self.closed is not None:
            return
        self._polled_at = now
        self.association.poll(now)
        self._advance(now)
        if self.closed is None and self.dialect is not None:
            self.dialect.poll(self.association.records.highest, now)
            self._look_at_wear(now)
            liveness = self.dialect.liveness
            if self.closed is None and liveness is not None and liveness.dead(now):
                self.close("timeout", f"nothing was heard for {liveness.timeout:g} s", now)
        if self.closed is None:
            self._probe(sent, kernel_mtu, now)
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
            timers.append(self._polled_at + (WORN_CHECK if self._worn_out else WEAR_CHECK))
        if self.path is not None:
            timers.append(self.path.next_timer())
        return min((timer for timer in timers if timer is not None), default=None)

    def close(self, reason: Reason, text: str, now: float, *, tell: bool = True) -> None:
        """End the session from this side. The peer is told with a goodbye and close_notify if `tell`."""
        if self.closed is not None:
            return
        if tell and self.dialect is not None and reason not in ("handshake", "no answer"):
            self.dialect.send(Goodbye(reason=reason, text=printable(text, FAREWELL)), now)
            self._collect()
        self._end(Closed(reason, text), tell=tell)

    def take_outgoing(self) -> list[bytes]:
        """The datagrams to send now, in this order."""
        outgoing, self._outgoing = self.association.take_outgoing() + self._outgoing, []
        return outgoing

    def take_probes(self) -> list[bytes]:
        """The datagrams that must go out whole, for they look for the path's MTU."""
        probes, self._probes = self._probes, []
        return probes

    def take_events(self) -> list[Event]:
        events = list(self._events)
        self._events.clear()
        return events

    def look(self, now: float) -> None:
        """See whether the record layer, which the data plane drives, has met the end of the session."""
        self._advance(now)

    def take_early_packets(self) -> list[bytes]:
        """IP packets that came before the data plane took over, or in pieces."""
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

    def _look_at_wear(self, now: float) -> None:
        wear = self.association.records.wear
        # An original Go dtun, whom nobody can ask for a new one, would not come back from the end of its session.
        if wear >= END_OF_WEAR and self.association.native:
            self.close("other", "the key has done what its cipher allows, and no new session has come", now)
        elif wear >= WORN_OUT and not self._worn_out:
            self._worn_out = True
            self._events.append(WornOut())

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
            texts = self.cut(self.dialect.take_outgoing())
            self._outgoing.extend(self.association.seal(text) for text in texts)
            self._tell_mtu()

    def _probe(self, sent: int, kernel_mtu: int | None, now: float) -> None:
        path = self.path
        if path is None:
            return
        empty = self._around + len(Probe(0).encode())
        for token, size in path.poll(sent, kernel_mtu or path.current, now):
            self._probes.append(self.association.seal(Probe(token, max(size - empty, 0)).encode()))

    def _tell_mtu(self) -> None:
        if self.path is not None and self.path.current != self._told_mtu:
            self._told_mtu = self.path.current
            self._events.append(PathMtuChanged())

    def _end(self, closed: Closed, *, tell: bool = True) -> None:
        self.closed = closed
        farewell = self.association.close()
        if farewell is not None and tell:
            self._outgoing.append(farewell)
        self._events.append(closed)

    def _count(self, reason: str) -> None:
        self.drops[reason] += 1
