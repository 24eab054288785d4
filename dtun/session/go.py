"""The Go dtun's conversation (`compat: go`): its greeting, both ends of it, and how to find out that it is gone. Pure.

After the handshake each side sends one application record, then both send bare IP packets. Neither record is repeated.

    server -> client   client's IPv4 address 4 | server's IPv4 address 4 | anything
    client -> server   text: one CIDR such as 10.0.0.0/16, or "empty"
"""

from ipaddress import IPv4Address, IPv4Network

from dtun.protocol.messages import Goodbye, Hello, Message, Welcome
from dtun.session.dialect import Count
from dtun.session.pmtud import PathMtu

GREETING_RESEND = 2.0
"""Seconds after which the greeting to a client that stays silent is sent again."""

TIMEOUT = 60.0
"""Seconds of unanswered packets after which a Go server counts as dead."""

NO_SUBNET = b"empty"


def encode_greeting(client: IPv4Address, server: IPv4Address) -> bytes:
    return client.packed + server.packed


def decode_greeting(record: bytes) -> tuple[IPv4Address, IPv4Address] | None:
    """The client's and the server's address; None if the record is too short for a greeting."""
    if len(record) < 8:
        return None
    return IPv4Address(record[:4]), IPv4Address(record[4:8])


def encode_answer(subnet: IPv4Network | None) -> bytes:
    return NO_SUBNET if subnet is None else str(subnet).encode()


def decode_answer(record: bytes) -> tuple[IPv4Network, ...] | None:
    """The subnets behind the client (none or one); None if the record is not an answer.

    The Go dtun parses with Go's net.ParseCIDR, which accepts host bits and clears them; so does this.
    """
    if record == NO_SUBNET:
        return ()
    try:
        text = record.decode("ascii")
        # IPv4Network also accepts a mask in place of the prefix length, or neither.
        if not text.partition("/")[2].isdigit() or len(text) > len("255.255.255.255/32"):
            return None
        return (IPv4Network(text, strict=False),)
    except ValueError:
        return None


class GoServerDialect:
    """The server's side, a Dialect: sends the greeting and waits for the client's answer.

    A Go client never repeats its answer, so a lost one would hang it for good. While the client is silent, it may not
    have received the greeting, which is sent again. If it sends packets first, its answer was lost: the session is
    closed, and the client makes a new one.
    """

    liveness = None
    path: PathMtu | None = None

    def __init__(self, count: Count) -> None:
        self._count = count
        self._greeting: bytes | None = None
        self._resend_at: float | None = None
        self._outgoing: list[bytes] = []
        self.opening = True

    def send(self, message: Message, now: float) -> None:
        if isinstance(message, Welcome) and self._greeting is None:
            self._greeting = encode_greeting(message.address, message.peer)
            self._outgoing.append(self._greeting)
            self._resend_at = now + GREETING_RESEND

    def receive(self, plaintext: bytes, now: float) -> Message | None:  # noqa: ARG002 - see Dialect
        if not self.opening or self._greeting is None:
            self._count("unknown frame")
            return None
        self.opening = False
        self._resend_at = None
        subnets = decode_answer(plaintext)
        if subnets is None:
            return Goodbye(reason="other", text="the client did not name the IPv4 subnet behind it")
        return Hello(subnets=subnets)

    def poll(self, received: int, now: float) -> None:  # noqa: ARG002 - see Dialect
        if self._greeting is not None and self._resend_at is not None and now >= self._resend_at:
            self._outgoing.append(self._greeting)
            self._resend_at = now + GREETING_RESEND

    def next_timer(self) -> float | None:
        return self._resend_at

    def take_outgoing(self) -> list[bytes]:
        outgoing, self._outgoing = self._outgoing, []
        return outgoing


class GoClientDialect:
    """The client's side, a Dialect: answers the greeting with the first IPv4 subnet of its Hello."""

    liveness = None
    path: PathMtu | None = None

    def __init__(self, count: Count) -> None:
        self._count = count
        self._answer: bytes | None = None
        self._outgoing: list[bytes] = []
        self.opening = True

    def send(self, message: Message, now: float) -> None:  # noqa: ARG002 - see Dialect
        if isinstance(message, Hello) and self._answer is None:
            subnet = next((net for net in message.subnets if isinstance(net, IPv4Network)), None)
            self._answer = encode_answer(subnet)
            if not self.opening:  # the greeting arrived with the end of the handshake
                self._outgoing.append(self._answer)

    def receive(self, plaintext: bytes, now: float) -> Message | None:  # noqa: ARG002 - see Dialect
        greeting = decode_greeting(plaintext) if self.opening else None
        if greeting is None:
            self._count("unknown frame")
            return None
        self.opening = False
        if self._answer is not None:
            self._outgoing.append(self._answer)
        return Welcome(address=greeting[0], peer=greeting[1])

    def poll(self, received: int, now: float) -> None:
        """Nothing is timed."""

    def next_timer(self) -> float | None:
        return None

    def take_outgoing(self) -> list[bytes]:
        outgoing, self._outgoing = self._outgoing, []
        return outgoing


class GoLiveness:
    """A Go server answers no probes: it is dead `timeout` seconds after a packet that got no record in return."""

    def __init__(self, timeout: float = TIMEOUT) -> None:
        self.timeout = timeout
        self._sent = -1
        self._received = -1
        self._unanswered_since: float | None = None

    def dead(self, sent: int, received: int, now: float) -> bool:
        """`sent` and `received` grow with each packet sent and each record received."""
        if received != self._received:
            self._received = received
            self._unanswered_since = None
        elif sent != self._sent and self._unanswered_since is None:
            self._unanswered_since = now
        self._sent = sent
        return self._unanswered_since is not None and now - self._unanswered_since >= self.timeout
