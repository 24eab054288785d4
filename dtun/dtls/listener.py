"""The server's side of handshakes: from the first ClientHello to a client that has proven its key.

The server keeps no state until a client has returned a valid cookie from its address (RFC 6347, section 4.2.1): one
spare connection serves that exchange for all. Random bytes and first ClientHellos cost at most one reply, which is
never larger than the datagram that caused it. A cookie is good for one path and one client random, and handshakes are
paid for from a budget (`dtun.dtls.budget`). The number of half-open handshakes is limited, per source and in all:
where there is one too many, the oldest ends, since honest ones are over after two round trips.
"""

import ipaddress
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

from dtun.dtls.association import POLL_INTERVAL, Association, AssociationState
from dtun.dtls.budget import HandshakeBudget
from dtun.dtls.engine import ServerEngine
from dtun.dtls.status import Status
from dtun.dtls.suites import Suite
from dtun.protocol.record import HANDSHAKE, HEADER_SIZE, client_random, has_cookie, is_client_hello, split

# A ClientHello that the server could accept has a few hundred bytes.
_HELLO_MAX: Final = 2048
_IPV6_HOST: Final = 64
_IPV6_SITE: Final = 48
_SUCCEEDED_MAX: Final = 1024

SHARE_WITHOUT_CHEAP_CURVES: Final = 0.2
"""Of the budget's numbers, where clients choose the curve: a handshake with P-521 costs four times as much and more."""


@dataclass(frozen=True, slots=True)
class Path:
    """Where a datagram came from and where it arrived.

    `socket` is the key of the listening socket, `peer` the sender's sockaddr, `local` the address that the
    sender used for this server.
    """

    socket: int
    peer: tuple[Any, ...]
    local: str

    @property
    def source(self) -> str:
        """What limits apply to: an IPv4 address, or the /64 of an IPv6 address, which one host can fill."""
        return self._source(_IPV6_HOST)

    @property
    def site(self) -> str:
        """What the budget applies to: an IPv4 address, or the /48 of an IPv6 address, which one customer may have."""
        return self._source(_IPV6_SITE)

    def _source(self, prefix: int) -> str:
        address = ipaddress.ip_address(str(self.peer[0]).partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address):
            if address.ipv4_mapped is None:
                return str(ipaddress.ip_network((address, prefix), strict=False))
            address = address.ipv4_mapped
        return str(address)


class PreSharedKey(Protocol):
    """A key that a look-up has found."""

    def secret(self) -> bytes:
        """1 to 32 bytes."""
        ...


K = TypeVar("K", bound=PreSharedKey)

FindKey = Callable[[Path, str, Suite], K | None]
"""The key of the identity that was presented on this path, or None if it is unknown or may not use this suite.

From outside, None looks the same as a wrong key.
"""


@dataclass(frozen=True, slots=True)
class Verified(Generic[K]):
    """The client has proven `key`. `early`: application data that came together with the proof."""

    path: Path
    association: Association
    key: K
    early: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Failed(Generic[K]):
    """A half-open handshake ended without success.

    `identity` is what the client presented, unproven, `key` the one that was tried with it; None if there was none.
    """

    path: Path
    identity: str | None
    reason: str
    key: K | None = None


@dataclass(slots=True)
class _KeySearch(Generic[K]):
    """The look-up of one handshake's key.

    It is separate from _HalfOpen, since the buffer refers to it: a reference cycle would keep the memory of Mbed TLS
    (33 KiB) until the garbage collector runs.
    """

    path: Path
    find: FindKey[K]
    found: K | None = None

    def secret(self, identity: str, suite: Suite) -> bytes | None:
        self.found = self.find(self.path, identity, suite)
        return None if self.found is None else self.found.secret()


@dataclass(frozen=True, slots=True)
class _HalfOpen(Generic[K]):
    """A handshake under way."""

    path: Path
    source: str
    random: bytes
    association: Association
    expires: float
    search: _KeySearch[K]


class Listener(Generic[K]):
    """Everything that happens between a client's first datagram and a `Verified` event.

    After `Verified` the path is forgotten, and the caller delivers its datagrams. The server's last flight is in
    `take_outgoing()` here; if it gets lost, the association resends it, in its own `take_outgoing()`, when
    the client asks again.

    A path may have a running session and a new handshake at once (a client that restarted on its old port).
    So on a path with a session, a caller hands over ClientHellos, and while `path in listener` everything but
    application data.
    """

    def __init__(
        self,
        engine: ServerEngine,
        find_key: FindKey[K],
        *,
        max_half_open: int = 512,
        max_per_source: int = 64,
        timeout: float = 10.0,
    ) -> None:
        """`timeout`: seconds from a valid cookie to the proof of the key."""
        self.budget = HandshakeBudget(1.0 if engine.cheap_curves else SHARE_WITHOUT_CHEAP_CURVES)
        self._poll_at = 0.0
        self._engine = engine
        self._find_key = find_key
        self._max_half_open = max_half_open
        self._max_per_source = max_per_source
        self._timeout = timeout
        self._spare = engine.new_buffer()
        self._half_open: dict[Path, _HalfOpen[K]] = {}  # the oldest first
        self._per_source: Counter[str] = Counter()
        # Client randoms of the latest handshakes that succeeded, the oldest first. A late copy of such a ClientHello
        # would open a useless handshake, which could swallow what the client sends to its session.
        self._succeeded: dict[bytes, None] = {}
        self._outgoing: list[tuple[bytes, Path]] = []
        self._events: list[Verified[K] | Failed[K]] = []
        self.drops: Counter[str] = Counter()

    def use(self, engine: ServerEngine) -> None:
        """Use this engine for new handshakes. It asks for cookies of its own."""
        self._engine = engine
        self._spare = engine.new_buffer()

    def __contains__(self, path: Path) -> bool:
        return path in self._half_open

    @property
    def half_open(self) -> int:
        """How many handshakes are under way."""
        return len(self._half_open)

    def receive(self, datagram: bytes, path: Path, now: float) -> bool:
        """Take a datagram. False if it is not a handshake record, and no handshake is under way on this path."""
        half_open = self._half_open.get(path)
        if is_client_hello(datagram) and (half_open is None or half_open.random != client_random(datagram)):
            if client_random(datagram) in self._succeeded:
                self.drops["late"] += 1
            else:
                self._hello(datagram, path, now)
            return True
        if half_open is not None:
            early = half_open.association.receive(datagram, now)
            self._update(half_open, tuple(early))
            return True
        if datagram[:1] != bytes([HANDSHAKE]):
            return False
        self.drops["stray" if split(datagram) else "malformed"] += 1
        return True

    def poll(self, now: float) -> None:
        """Resend what clients have not answered, and forget those that took too long."""
        self._poll_at = now + POLL_INTERVAL
        for half_open in list(self._half_open.values()):
            if now >= half_open.expires:
                self._end(half_open, "the client stopped answering")
                continue
            timer = half_open.association.next_timer()
            if timer is not None and now >= timer:
                half_open.association.poll(now)
                self._update(half_open)

    def next_timer(self) -> float | None:
        """When to call `poll`, in the time of `now`; None without handshakes."""
        oldest = next(iter(self._half_open.values()), None)
        return None if oldest is None else min(self._poll_at, oldest.expires)

    def take_outgoing(self) -> list[tuple[bytes, Path]]:
        """Datagrams to send, each back along the path of its client, from that path's local address."""
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    def take_events(self) -> list[Verified[K] | Failed[K]]:
        """What has happened since the last call, in order."""
        events, self._events = self._events, []
        return events

    def _hello(self, datagram: bytes, path: Path, now: float) -> None:
        """Answer a new ClientHello: with a cookie, or, if it has a valid one, with a handshake."""
        record = datagram[: HEADER_SIZE + int.from_bytes(datagram[11:13])]
        if len(record) > _HELLO_MAX:
            self.drops["malformed"] += 1
            return
        site = path.site if has_cookie(record) else ""
        refusal = self.budget.refusal(site, now) if site else None
        if refusal is not None:
            self.drops[refusal] += 1
            return
        spare = self._spare
        # For one random (RFC 6347, section 4.2.1): the client sends the same hello again, so it is one handshake's.
        spare.expect_cookie_for(repr((path.socket, path.peer, path.local, client_random(record))).encode())
        spare.feed(record)
        status = spare.handshake()
        if status is Status.WAITING and spare.chosen_suite() is not None:
            self.budget.charge(site, now)
            self._spare = self._engine.new_buffer()
            search = _KeySearch(path, self._find_key)
            spare.use_keys(search.secret)
            association = Association(spare, now, identity=None, server=True)
            expires = now + self._timeout
            half_open = _HalfOpen(path, path.source, client_random(record), association, expires, search)
            if not self._half_open:
                self._poll_at = now + POLL_INTERVAL
            self._admit(half_open)
            return
        reply = b"".join(spare.take_records())
        if status is not Status.COOKIE_SENT:
            # An alert at most, and a connection in an unknown state.
            self._spare = self._engine.new_buffer()
            self.drops["refused"] += 1
        if reply and len(reply) <= len(datagram):
            self._outgoing.append((reply, path))

    def _admit(self, newcomer: _HalfOpen[K]) -> None:
        """Keep a handshake whose cookie was valid, in place of an older one where there is one too many."""
        previous = self._half_open.get(newcomer.path)
        if previous is not None:
            self._end(previous, "the client started another handshake")
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
        self._update(newcomer)

    def _update(self, half_open: _HalfOpen[K], early: tuple[bytes, ...] = ()) -> None:
        """Take over what a handshake has to send, and check whether it is over."""
        association, path, key = half_open.association, half_open.path, half_open.search.found
        self._outgoing += [(datagram, path) for datagram in association.take_outgoing()]
        match association.state:
            case AssociationState.ESTABLISHED if key is not None:
                self._forget(half_open)
                self._succeeded[half_open.random] = None
                if len(self._succeeded) > _SUCCEEDED_MAX:
                    del self._succeeded[next(iter(self._succeeded))]
                self._events.append(Verified(path, association, key, early))
            case AssociationState.FAILED | AssociationState.CLOSED:
                self._end(half_open, association.failure or "the client closed the connection")

    def _end(self, half_open: _HalfOpen[K], reason: str) -> None:
        self._forget(half_open)
        self._events.append(
            Failed(half_open.path, half_open.association.identity, reason, half_open.search.found)
        )

    def _forget(self, half_open: _HalfOpen[K]) -> None:
        del self._half_open[half_open.path]
        self._per_source[half_open.source] -= 1
        if not self._per_source[half_open.source]:
            del self._per_source[half_open.source]
