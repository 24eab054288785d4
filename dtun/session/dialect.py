"""How a session exchanges messages: the native dialect here, the Go dtun's in `dtun.session.go`.

Both carry the same messages, so that neither the server nor the client has to know which one is used. A dialect is
pure: plaintexts and `now` in, plaintexts and messages out.
"""

from collections.abc import Callable, MutableSequence, Sequence
from typing import Protocol

from dtun.pacing import RateLimiter
from dtun.protocol import frames, messages
from dtun.protocol.channel import Channel
from dtun.protocol.frames import MAX_FRAGMENTS, Ack, Control, Echo, Notice, Probe
from dtun.protocol.messages import Goodbye, Message
from dtun.session.liveness import Liveness
from dtun.session.pmtud import FIRST_TOKEN, PathMtu

FRAMES_PER_SECOND = 256.0
"""Frames of the conversation that one peer may send in a second, and at once. A busy one sends some twenty."""

FRAGMENT_BURST, FRAGMENTS_PER_SECOND = 2 * MAX_FRAGMENTS, 32.0
"""Fragments of control messages that one peer may send at once and in a second: its largest message (64 KiB, some
milliseconds of work) every two seconds. The others are not acknowledged, so an honest peer sends them again."""

Count = Callable[[str], None]
"""Counts a drop by its reason."""


class Dialect(Protocol):
    """One end of the control conversation, from the end of the handshake on.

    `path` gets the echoes of its probes; None without path MTU discovery.
    """

    path: PathMtu | None

    @property
    def opening(self) -> bool:
        """Whether every record belongs to the conversation, even one that looks like an IP packet."""
        ...

    @property
    def liveness(self) -> Liveness | None:
        """Keepalive and dead-peer detection; None if the peer answers no probes."""
        ...

    def send(self, message: Message, now: float) -> None:
        """Send this message, if the dialect can express it."""
        ...

    def receive(self, plaintext: bytes, now: float) -> Message | None:
        """Process a plaintext that is not an IP packet; returns the message that it completes."""
        ...

    def poll(self, received: int, now: float) -> None:
        """Do what is due by now; `received` grows with each authentic record."""
        ...

    def next_timer(self) -> float | None: ...

    def take_outgoing(self) -> list[bytes]: ...


class NativeDialect:
    """Control messages, probes and echoes (dtun.protocol.frames)."""

    opening = False

    def __init__(
        self, count: Count, keepalive: float, timeout: float, now: float, numbers: Sequence[int] = (0, 0)
    ) -> None:
        """`numbers` are those of a conversation that is resumed, see `Channel`."""
        self._count = count
        self._channel = Channel(*numbers)
        self._outgoing: list[bytes] = []
        self._frames = RateLimiter(burst=FRAMES_PER_SECOND, per_seconds=1)
        self._fragments = RateLimiter(burst=FRAGMENT_BURST, per_seconds=FRAGMENT_BURST / FRAGMENTS_PER_SECOND)
        self.liveness = Liveness(keepalive, timeout, now)
        self.path: PathMtu | None = None

    def attach_ledger(self, ledger: MutableSequence[int]) -> None:
        """See `Channel.attach_ledger`."""
        self._channel.attach_ledger(ledger)

    def send(self, message: Message, now: float) -> None:
        data = messages.encode(message)
        if isinstance(message, Goodbye):
            self._outgoing.append(Notice(data).encode())
        else:
            self._channel.send(data, now)

    def receive(self, plaintext: bytes, now: float) -> Message | None:
        if self._frames.allow(now) is None:
            self._count("too many frames")
            return None
        match frames.decode(plaintext):
            case Control() | Notice() if self._fragments.allow(now) is None:
                self._count("too many control messages")
            case Control() as fragment:
                return self._decode(self._channel.receive(fragment))
            case Notice(data):
                return self._decode(data)
            case Ack() as ack:
                self._channel.acknowledged(ack, now)
            case Probe(token):
                self._outgoing.append(Echo(token).encode())
            case Echo(token) if token < FIRST_TOKEN:
                self.liveness.echo(token, now)
            case Echo(token):
                if self.path is not None:
                    self.path.echo(token, now)
            case _:
                self._count("unknown frame")
        return None

    def poll(self, received: int, now: float) -> None:
        self._channel.poll(now)
        token = self.liveness.poll(received, now)
        if token is not None:
            self._outgoing.append(Probe(token).encode())

    def next_timer(self) -> float | None:
        resend = self._channel.next_timer()
        alive = self.liveness.next_timer()
        return alive if resend is None else min(alive, resend)

    def take_outgoing(self) -> list[bytes]:
        outgoing, self._outgoing = self._outgoing, []
        return self._channel.take_outgoing() + outgoing

    def _decode(self, data: bytes | None) -> Message | None:
        message = None if data is None else messages.decode(data)
        if data is not None and message is None:
            self._count("unknown control message")
        return message
