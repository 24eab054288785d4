"""The server's front door: from the first ClientHello to a client that has proven its key.

No state is kept before a client has returned a valid cookie from its address (RFC 6347, section 4.2.1): one
spare connection serves that exchange for everybody. Random bytes and first hellos cost at most one reply, which
is never larger than what came in. What is kept afterwards is bounded, per source and in all: when there is no
room, the oldest half-open handshake makes way, since honest ones are over after two round trips.
"""

import ipaddress
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from dtun.dtls.association import Association, AssociationState
from dtun.dtls.engine import ServerEngine
from dtun.dtls.status import Status
from dtun.protocol.record import HANDSHAKE, HEADER_SIZE, client_random, is_client_hello, split

# A hello of a peer that we could agree with has a few hundred bytes.
_HELLO_MAX: Final = 2048
_IPV6_SITE: Final = 64
_SUCCEEDED_MAX: Final = 1024


@dataclass(frozen=True, slots=True)
class Path:
    """Where a datagram came from and where it arrived.

    `socket` is the key of the listening socket, `peer` the sender's sockaddr, `local` the address that the
    sender used for us.
    """

    socket: int
    peer: tuple[Any, ...]
    local: str

    @property
    def source(self) -> str:
        """What limits apply to: an IPv4 address, or the /64 of an IPv6 address, which one host can fill."""
        address = ipaddress.ip_address(str(self.peer[0]).partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address):
            if address.ipv4_mapped is None:
                return str(ipaddress.ip_network((address, _IPV6_SITE), strict=False))
            address = address.ipv4_mapped
        return str(address)


@dataclass(frozen=True, slots=True)
class Verified:
    """The client has proven its key. `early`: application data that came together with the proof.

    `note`: what the look-up of the key has left in `HalfOpen.note`.
    """

    path: Path
    association: Association
    early: tuple[bytes, ...] = ()
    note: object = None


@dataclass(frozen=True, slots=True)
class Failed:
    """A half-open handshake ended without success. `identity`: what was presented, unproven, if anything."""

    path: Path
    identity: str | None
    reason: str
    note: object = None


@dataclass(slots=True)
class HalfOpen:
    """A handshake under way. `note` belongs to the look-up of keys, which may leave something there for the events."""

    path: Path
    source: str
    random: bytes
    association: Association
    expires: float
    note: object = None


class Listener:
    """Everything that happens between a stranger's first datagram and a `Verified` event.

    After `Verified` the path is forgotten and the caller routes it. The server's last flight is in
    `take_outgoing()` here; if it gets lost, the association resends it, in its own `take_outgoing()`, when
    the client asks again.

    A path may have a running session and a new handshake at once (a client that restarted on its old port).
    So on a path with a session, a caller hands over ClientHellos, and while `path in listener` everything but
    application data.

    `serving` is the handshake that goes on right now: whose key the engine asks for, in its look-up.
    """

    def __init__(
        self,
        engine: ServerEngine,
        *,
        max_half_open: int = 512,
        max_per_source: int = 64,
        timeout: float = 10.0,
    ) -> None:
        """`timeout`: seconds from a valid cookie to the proof of the key."""
        self._engine = engine
        self._max_half_open = max_half_open
        self._max_per_source = max_per_source
        self._timeout = timeout
        self._spare = engine.new_buffer()
        self._half_open: dict[Path, HalfOpen] = {}  # the oldest first
        self._per_source: Counter[str] = Counter()
        # Client randoms of the latest handshakes that succeeded, the oldest first. A late copy of such a hello would
        # open a handshake that nobody wants, and that could swallow what the client sends to its session.
        self._succeeded: dict[bytes, None] = {}
        self._outgoing: list[tuple[bytes, Path]] = []
        self._events: list[Verified | Failed] = []
        self.drops: Counter[str] = Counter()
        self.serving: HalfOpen | None = None

    def use(self, engine: ServerEngine) -> None:
        """Shake hands with this engine from now on. It does not know cookies of the one before, and asks again."""
        self._engine = engine
        self._spare = engine.new_buffer()

    def __contains__(self, path: Path) -> bool:
        return path in self._half_open

    @property
    def half_open(self) -> int:
        """How many handshakes are under way."""
        return len(self._half_open)

    def receive(self, datagram: bytes, path: Path, now: float) -> bool:
        """Take a datagram. False if it is no handshake record, and no handshake is under way on this path."""
        half_open = self._half_open.get(path)
        if is_client_hello(datagram) and (half_open is None or half_open.random != client_random(datagram)):
            if client_random(datagram) in self._succeeded:
                self.drops["late"] += 1
            else:
                self._hello(datagram, path, now)
            return True
        if half_open is not None:
            with self._serve(half_open):
                early = half_open.association.receive(datagram, now)
            self._follow(half_open, tuple(early))
            return True
        if datagram[:1] != bytes([HANDSHAKE]):
            return False
        self.drops["stray" if split(datagram) else "malformed"] += 1
        return True

    def poll(self, now: float) -> None:
        """Resend what clients have not answered, and forget those that took too long."""
        for half_open in list(self._half_open.values()):
            if now >= half_open.expires:
                self._end(half_open, "the client stopped answering")
                continue
            timer = half_open.association.next_timer()
            if timer is not None and now >= timer:
                with self._serve(half_open):
                    half_open.association.poll(now)
                self._follow(half_open)

    def next_timer(self) -> float | None:
        """When to call `poll`, in the time of `now`; None when nobody is shaking hands."""
        timers = (
            min(half_open.expires, half_open.association.next_timer() or half_open.expires)
            for half_open in self._half_open.values()
        )
        return min(timers, default=None)

    def take_outgoing(self) -> list[tuple[bytes, Path]]:
        """Datagrams to send, each back along the path of its client, from that path's local address."""
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    def take_events(self) -> list[Verified | Failed]:
        """What has happened since the last call, in order."""
        events, self._events = self._events, []
        return events

    @contextmanager
    def _serve(self, half_open: HalfOpen) -> Iterator[None]:
        self.serving = half_open
        try:
            yield
        finally:
            self.serving = None

    def _hello(self, datagram: bytes, path: Path, now: float) -> None:
        """Answer a new ClientHello: with a cookie, or, if it brings a good one, with a handshake."""
        record = datagram[: HEADER_SIZE + int.from_bytes(datagram[11:13])]
        if len(record) > _HELLO_MAX:
            self.drops["malformed"] += 1
            return
        spare = self._spare
        spare.expect_cookie_for(repr((path.socket, path.peer, path.local)).encode())
        spare.feed(record)
        status = spare.handshake()
        if status is Status.WAITING and spare.chosen_suite() is not None:
            self._spare = self._engine.new_buffer()
            self._admit(
                HalfOpen(
                    path,
                    path.source,
                    client_random(record),
                    Association(spare, identity=None, server=True),
                    now + self._timeout,
                )
            )
            return
        reply = b"".join(spare.take_records())
        if status is not Status.COOKIE_SENT:
            # An alert at most, and a connection that nobody knows the state of.
            self._spare = self._engine.new_buffer()
            self.drops["refused"] += 1
        if reply and len(reply) <= len(datagram):
            self._outgoing.append((reply, path))

    def _admit(self, newcomer: HalfOpen) -> None:
        """Keep a handshake whose cookie was good, in place of an older one where there is one too many."""
        previous = self._half_open.get(newcomer.path)
        if previous is not None:
            self._end(previous, "the client started anew")
        if self._per_source[newcomer.source] >= self._max_per_source:
            self.drops["source limit"] += 1
            self._end(
                next(other for other in self._half_open.values() if other.source == newcomer.source),
                "too many handshakes from this address at once",
            )
        elif len(self._half_open) >= self._max_half_open:
            self.drops["half-open limit"] += 1
            self._end(next(iter(self._half_open.values())), "too many handshakes at once")
        self._half_open[newcomer.path] = newcomer
        self._per_source[newcomer.source] += 1
        # Sends the ServerHello, which is waiting in its output.
        self._follow(newcomer)

    def _follow(self, half_open: HalfOpen, early: tuple[bytes, ...] = ()) -> None:
        """Pass on what a handshake has to send, and see whether it is over."""
        association, path = half_open.association, half_open.path
        self._outgoing += [(datagram, path) for datagram in association.take_outgoing()]
        match association.state:
            case AssociationState.ESTABLISHED:
                self._forget(half_open)
                self._succeeded[half_open.random] = None
                if len(self._succeeded) > _SUCCEEDED_MAX:
                    del self._succeeded[next(iter(self._succeeded))]
                self._events.append(Verified(path, association, early, half_open.note))
            case AssociationState.FAILED | AssociationState.CLOSED:
                self._end(half_open, association.failure or "the client closed the connection")

    def _end(self, half_open: HalfOpen, reason: str) -> None:
        self._forget(half_open)
        self._events.append(Failed(half_open.path, half_open.association.identity, reason, half_open.note))

    def _forget(self, half_open: HalfOpen) -> None:
        del self._half_open[half_open.path]
        self._per_source[half_open.source] -= 1
        if not self._per_source[half_open.source]:
            del self._per_source[half_open.source]
