"""A session: one DTLS association with its control conversation, which serves an identity for a while. Pure.

    handshake --> opening --> open --> closed
        |            |          |
        +------------+----------+--> closed, with a reason

Datagrams and `now` go in, datagrams and events come out. Once the session is open, the data plane seals and opens the
records itself and passes on only what is not an IP packet.
"""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from dtun.dtls.association import KEY_REFUSED, Association, AssociationState
from dtun.dtls.resumed import ResumedAssociation
from dtun.protocol.frames import Kind, Piece, Probe, decode, is_packet
from dtun.protocol.messages import Goodbye, Hello, Message, Welcome
from dtun.protocol.pieces import Cutter, Joiner
from dtun.protocol.record import MAX_PLAINTEXT
from dtun.session.dialect import Dialect
from dtun.session.new_address import NewAddress
from dtun.session.pmtud import PathMtu
from dtun.text import printable

OPENING_TIME = 10.0
"""Seconds from the end of the handshake until the peer must have sent its Hello or Welcome."""

EARLY_PACKETS = 256
"""IP packets kept that arrive before the data plane is attached; more than a round trip brings."""

# A key's wear is the used share of what its cipher allows (RFC 9147, section 4.5.3).
WEAR_CHECK = 10.0
"""Seconds between two checks of the key's wear, which the record layer does not report by itself."""

WORN_CHECK = 1.0
"""The same, once the key is worn out."""

WORN_OUT = 1 / 2
"""The wear at which a new session is due. At 3 Gbit/s AES-GCM wears by a tenth between two checks."""

MAX_WEAR = 15 / 16
"""The wear at which a session ends if no new one replaced it. The rest is more than is sealed until the next check."""

GOODBYE_TEXT = 200
"""Characters of a goodbye's text, at most: in any script they fit into one fragment."""

_PIECE = bytes([Kind.PIECE])

AnyAssociation = Association | ResumedAssociation
"""One whose handshake was made here, or by the process before this one."""

Reason = Literal["handshake", "no answer", "stopped", "replaced", "renewed", "refused", "timeout", "other"]


@dataclass(frozen=True, slots=True)
class Established:
    """The handshake is complete and both sides have proven the key."""


@dataclass(frozen=True, slots=True)
class Received:
    """The peer sent a message."""

    message: Message


@dataclass(frozen=True, slots=True)
class Closed:
    """The session has ended. `text` is for people; `by_peer` if the peer ended it."""

    reason: Reason
    text: str
    by_peer: bool = False


@dataclass(frozen=True, slots=True)
class WornOut:
    """The key has reached half of its cipher's usage limit; a new session is due."""


@dataclass(frozen=True, slots=True)
class PathMtuChanged:
    """The path's MTU is another: the link's `inner_mtu` has a new value, and `agree_mtu` is to be called."""


@dataclass(frozen=True, slots=True)
class AddressProven:
    """The peer has answered at the address that it moved to."""


Event = Established | Received | WornOut | PathMtuChanged | AddressProven | Closed


class Session:
    """One association with its conversation. `drops` counts by reason what was dropped."""

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
        self._overhead = 0
        self._reported_mtu = 0
        self.new_address: NewAddress | None = None
        """Where the peer has moved, until it is proven that it is there."""
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
        """A session that the process before this one opened, for `association`'s keys."""
        session = cls(association, make_dialect, now, handshake_deadline=now)
        session.take_events()
        session._deadline = None
        return session

    @property
    def open(self) -> bool:
        """Whether the data plane may take over: the opening is complete and the record layer final."""
        return (
            self.closed is None
            and self.dialect is not None
            and not self.dialect.opening
            and self.association.takeover_done
        )

    @property
    def path(self) -> PathMtu | None:
        """The path MTU discovery; None if it has not been started."""
        return self.dialect.path if self.dialect is not None else None

    def start_discovery(self, estimate: int, outer_headers: int, *, smallest: int, now: float) -> None:
        """Start path MTU discovery if the peer answers probes. To be called once the session is open.

        All in bytes: `estimate` is the MTU to begin with, `smallest` the least of interest, both with the
        `outer_headers` of IP and UDP.
        """
        if self.dialect is None or self.dialect.liveness is None:
            return
        self._overhead = outer_headers + self.association.records.overhead
        largest = self._overhead + MAX_PLAINTEXT
        self.dialect.path = PathMtu(estimate, smallest=smallest, largest=largest, now=now)
        self._reported_mtu = self.dialect.path.current

    @property
    def room(self) -> int:
        """Bytes of plaintext in the largest record that the path carries, as far as is known."""
        return self.path.current - self._overhead if self.path is not None else MAX_PLAINTEXT

    def moved(self, received: int, now: float) -> None:
        """A datagram of `received` bytes has moved the peer to another address, which it has not proven yet."""
        self.new_address = NewAddress.after(
            received, highest=self.association.records.highest, native=self.association.native, now=now
        )
        self._prove(now)

    def back(self) -> None:
        """The peer is where it has proven to be."""
        self.new_address = None

    def may_send(self, size: int) -> bool:
        """Whether a datagram of `size` bytes may be sent now, to an address that may not be proven."""
        if self.new_address is None:
            return True
        self.new_address.heard(self.association.records.highest)
        return self.new_address.may_send(size)

    def cut(self, plaintexts: Sequence[bytes]) -> Sequence[bytes]:
        """The same plaintexts, with those in pieces that are too large for the path."""
        return self._cutter.cut(plaintexts, self.room)

    def probe_refused(self, size: int, now: float) -> None:
        """A probe that makes a packet of `size` bytes is too large for this host's own interface."""
        if self.path is not None:
            self.path.refused(size, now)
            self._report_mtu()

    def packet_too_big(self, kernel_mtu: int, now: float) -> None:
        """The kernel, or ICMP, says that a packet was too large for the path."""
        if self.path is not None:
            self.path.packet_too_big(kernel_mtu, now)

    def send(self, message: Message, now: float) -> None:
        """Send a message to the peer; nothing once the session is closed.

        The session ends if too many messages wait for their acknowledgement.
        """
        if self.closed is not None or self.dialect is None:
            return
        try:
            self.dialect.send(message, now)
        except ValueError as error:
            self._end(Closed("other", str(error)))
        self._collect()

    def receive(self, datagram: bytes, now: float) -> None:
        """Process a datagram, in any state."""
        if self.closed is not None:
            return
        plaintexts = self.association.receive(datagram, now)
        self._establish(now)
        for plaintext in plaintexts:
            self.receive_plaintext(plaintext, now)
        self._advance(now)

    def receive_plaintext(self, plaintext: bytes, now: float) -> None:
        """Process a plaintext: any before the data plane is attached, afterwards those that are not IP packets."""
        if self.closed is not None or self.dialect is None or self._is_proof(plaintext, now):
            return
        if plaintext[:1] == _PIECE and self.association.native:
            piece = decode(plaintext)
            whole = self._joiner.join(piece) if isinstance(piece, Piece) else b""
            if whole is None:
                return
            plaintext = whole  # the dialect drops a piece within a piece
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
            # Each would cost changes in the kernel. A peer with something new to send makes a new session.
            self._count("repeated greeting")
        elif message is not None:
            if isinstance(message, Hello | Welcome):
                self._deadline = None
            self._events.append(Received(message))
        self._collect()

    def poll(self, now: float, *, sent: int = 0, kernel_mtu: int | None = None) -> None:
        """Do what is due: resend, keep alive, probe the path's MTU, time out.

        `sent` grows with each packet of the data plane, `kernel_mtu` is the kernel's estimate of the path's MTU.
        """
        if self.closed is not None:
            return
        self._polled_at = now
        self.association.poll(now)
        self._advance(now)
        if self.closed is None and self.dialect is not None:
            self.dialect.poll(self.association.records.highest, now)
            self._check_wear(now)
            liveness = self.dialect.liveness
            if self.closed is None and liveness is not None and liveness.dead(now):
                self.close("timeout", f"nothing was received for {liveness.timeout:g} s", now)
        if self.closed is None:
            self._prove(now)
            self._probe(sent, kernel_mtu, now)
        if self.closed is None and self._deadline is not None and now >= self._deadline:
            self._give_up()
        self._collect()

    def next_timer(self) -> float | None:
        """When to call `poll` next, in seconds on the caller's clock; None once closed."""
        if self.closed is not None:
            return None
        timers = [self._deadline, self.association.next_timer()]
        if self.dialect is not None:
            timers.append(self.dialect.next_timer())
            timers.append(self._polled_at + (WORN_CHECK if self._worn_out else WEAR_CHECK))
        if self.path is not None:
            timers.append(self.path.next_timer())
        if self.new_address is not None:
            timers.append(self.new_address.probe_at)
        return min((timer for timer in timers if timer is not None), default=None)

    def close(self, reason: Reason, text: str, now: float, *, tell: bool = True) -> None:
        """End the session from this side, with a Goodbye and close_notify to the peer if `tell`."""
        if self.closed is not None:
            return
        if tell and self.dialect is not None and reason not in ("handshake", "no answer"):
            self.dialect.send(Goodbye(reason=reason, text=printable(text, GOODBYE_TEXT)), now)
            self._collect()
        self._end(Closed(reason, text), tell=tell)

    def take_outgoing(self) -> list[bytes]:
        """The datagrams to send now, in this order."""
        outgoing, self._outgoing = self.association.take_outgoing() + self._outgoing, []
        return outgoing

    def take_probes(self) -> list[bytes]:
        """The datagrams that probe the path's MTU; they must not be fragmented."""
        probes, self._probes = self._probes, []
        return probes

    def take_events(self) -> list[Event]:
        events = list(self._events)
        self._events.clear()
        return events

    def check_closed(self, now: float) -> None:
        """End the session if the record layer, which the data plane drives, has received a close_notify or an alert."""
        self._advance(now)

    def take_early_packets(self) -> list[bytes]:
        """IP packets that arrived before the data plane was attached, or in pieces."""
        early, self._early = self._early, []
        return early

    def _advance(self, now: float) -> None:
        """Act on the association's state."""
        association = self.association
        if self.closed is not None:
            return
        if association.state is AssociationState.FAILED:
            self._end(Closed("handshake", association.failure))
        elif association.state is not AssociationState.HANDSHAKING:
            self._establish(now)
            if association.records.closed:
                self._end(Closed("other", "the peer closed the session", by_peer=True))

    def _establish(self, now: float) -> None:
        """Start the conversation once the handshake is complete."""
        over = (AssociationState.ESTABLISHED, AssociationState.CLOSED)
        if self.dialect is None and self.association.state in over:
            self.dialect = self._make_dialect(self.association, self._count, now)
            self._deadline = now + OPENING_TIME
            self._events.append(Established())

    def _check_wear(self, now: float) -> None:
        wear = self.association.records.wear
        # A Go dtun cannot be asked to renew, and does not reconnect after the end of its session.
        if wear >= MAX_WEAR and self.association.native:
            self.close("other", "the session key reached its usage limit and no new session replaced it", now)
        elif wear >= WORN_OUT and not self._worn_out:
            self._worn_out = True
            self._events.append(WornOut())

    def _give_up(self) -> None:
        if self.dialect is not None:
            self._end(Closed("timeout", f"the peer sent no Hello or Welcome within {OPENING_TIME:g} s"))
        elif self.association.answered:
            self._end(Closed("refused", KEY_REFUSED))
        else:
            self._end(Closed("no answer", "no answer"))

    def _collect(self) -> None:
        """Seal what the dialect has to send."""
        if self.dialect is not None and self.closed is None:
            texts = self.cut(self.dialect.take_outgoing())
            self._outgoing.extend(self.association.seal(text) for text in texts)
            self._report_mtu()

    def _is_proof(self, plaintext: bytes, now: float) -> bool:
        """Whether the peer has just proven its new address."""
        if self.new_address is None or not self.new_address.answered(plaintext):
            return False
        self._prove(now)
        return True

    def _prove(self, now: float) -> None:
        """Ask for a proof of the new address, or be content with what has come."""
        if self.new_address is None:
            return
        self.new_address.heard(self.association.records.highest)
        if self.new_address.proven:
            self.new_address = None
            self._events.append(AddressProven())
            return
        probe = self.new_address.poll(now)
        if probe is not None:
            self._outgoing.append(self.association.seal(probe))

    def _probe(self, sent: int, kernel_mtu: int | None, now: float) -> None:
        path = self.path
        if path is None:
            return
        empty = self._overhead + len(Probe(0).encode())
        for token, size in path.poll(sent, kernel_mtu or path.current, now):
            self._probes.append(self.association.seal(Probe(token, max(size - empty, 0)).encode()))

    def _report_mtu(self) -> None:
        if self.path is not None and self.path.current != self._reported_mtu:
            self._reported_mtu = self.path.current
            self._events.append(PathMtuChanged())

    def _end(self, closed: Closed, *, tell: bool = True) -> None:
        self.closed = closed
        close_notify = self.association.close()
        if close_notify is not None and tell:
            self._outgoing.append(close_notify)
        self._events.append(closed)

    def _count(self, reason: str) -> None:
        self.drops[reason] += 1
