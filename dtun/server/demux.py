"""Delivers the datagrams that arrive at a server's listening sockets.

    listening socket -+-> path of a session -----------> that session
                      +-> handshake record ------------> dtun.dtls.listener: cookie, handshake, key proven
                      +-> record from an unknown path -> a session whose keys open it: its client has moved
                                                    `--> else a HelloRequest: make a new session

Without a valid key, a sender can cause no more work than a cookie exchange or a few trial decryptions.
"""

import asyncio
import socket
from collections import Counter
from collections.abc import Callable, Iterable

from dtun.config import Endpoint, Key
from dtun.dtls.listener import Failed, Listener, Path, Verified
from dtun.handover.fdstore import FdStore, listener_name
from dtun.pacing import RateLimiter
from dtun.protocol.record import hello_request, is_client_hello, sequence_of
from dtun.server.roaming import Trials
from dtun.session import udp
from dtun.session.link import Link
from dtun.session.udp import Arrival

NOT_LISTENING = "the server does not listen on this address any more"
"""Why a session ends."""

BATCH = 64
"""Datagrams taken from a listening socket in one turn at most."""

TURN = 0.001
"""Seconds after which a turn ends: sessions must not wait for strangers. The last datagram may take as long again."""

HINTS_PER_SECOND = 100.0
"""Limit for HelloRequests to addresses without a session. They are not larger than the datagrams that they answer."""

_HINT = hello_request(0)


class Demux:
    """The listening sockets of a server, and the sessions by their paths.

    `make_link` is called for a client that has proven its key, `failed` for a failed handshake with a valid cookie.
    """

    def __init__(
        self,
        listener: Listener[Key],
        *,
        make_link: Callable[[Verified[Key], socket.socket], Link],
        failed: Callable[[Failed[Key]], None],
        loop: asyncio.AbstractEventLoop,
        fdstore: FdStore,
    ) -> None:
        self._listener = listener
        self._make_link = make_link
        self._failed = failed
        self._loop = loop
        self._fdstore = fdstore
        self._drops: Counter[str] = Counter()
        # By a number that is never used again, unlike a descriptor: the paths of sessions contain it.
        self._sockets: dict[int, socket.socket] = {}
        self._numbers: dict[Endpoint, int] = {}
        self._opened = 0
        self._links: dict[Path, Link] = {}
        self._paths: dict[Link, Path] = {}
        self._trials = Trials(self._paths.keys)
        self._hints = RateLimiter(burst=HINTS_PER_SECOND, per_seconds=1)
        self._timer: asyncio.TimerHandle | None = None

    @property
    def half_open(self) -> int:
        """Handshakes under way."""
        return self._listener.half_open

    def handshake_budget(self, now: float) -> dict[str, float]:
        """How much of the budget for handshakes is used up, and by how many sources their own part of it."""
        budget = self._listener.budget
        return {
            "percent used": round(100 * budget.used(now)),
            "sources at their limit": budget.exhausted(now),
        }

    @property
    def drops(self) -> Counter[str]:
        """Dropped datagrams by reason, those of the cookie exchange included."""
        return self._drops + self._listener.drops

    @property
    def links(self) -> Iterable[Link]:
        return self._paths.keys()

    def open(self, endpoint: Endpoint, listener: socket.socket, *, keep: bool = True) -> None:
        """Receive from this listening socket, and close it in the end. With `keep`, the fd store gets a copy."""
        self._opened += 1
        self._numbers[endpoint] = self._opened
        self._sockets[self._opened] = listener
        if keep:
            self._fdstore.keep(listener_name(endpoint), listener.fileno())
        self._loop.add_reader(listener, self._readable, self._opened, listener)

    def adopt(self, link: Link) -> bool:
        """Add a session of the process before this one. False if its address is not listened on any more."""
        host, port = link.local_address, link.local_port
        for endpoint, number in self._numbers.items():
            if endpoint.port == port and (endpoint.address.is_unspecified or str(endpoint.address) == host):
                self._enter(link, Path(number, link.peer, host))
                return True
        return False

    def has_port(self, port: int) -> bool:
        """Whether a socket of this server uses this UDP port: a listening one, or that of a session."""
        return any(endpoint.port == port for endpoint in self._numbers) or any(
            link.local_port == port for link in self._paths
        )

    def listens_on(self, endpoint: Endpoint) -> bool:
        """Whether there is a listening socket for this address."""
        return endpoint in self._numbers

    def close_endpoint(self, endpoint: Endpoint) -> list[Link]:
        """Stop listening there. Returns the sessions that were made there, which stay."""
        number = self._numbers.pop(endpoint)
        listener = self._sockets.pop(number)
        self._loop.remove_reader(listener)
        self._fdstore.forget(listener_name(endpoint))
        listener.close()
        return [link for link, path in self._paths.items() if path.socket == number]

    def is_open_for(self, link: Link) -> bool:
        """Whether the server still listens on the address at which this session was made."""
        path = self._paths.get(link)
        return path is not None and path.socket in self._sockets

    def close(self) -> None:
        """Stop listening. Sessions stay until they are closed."""
        if self._timer is not None:
            self._timer.cancel()
        for listener in self._sockets.values():
            self._loop.remove_reader(listener)
            listener.close()
        self._sockets.clear()
        self._numbers.clear()

    def remove(self, link: Link) -> None:
        """Forget a session that has ended."""
        path = self._paths.pop(link, None)
        self._trials.forget()
        if path is not None and self._links.get(path) is link:
            del self._links[path]

    def receive(self, number: int, arrival: Arrival) -> None:
        """Take a datagram that has arrived at the listening socket with this number."""
        path = Path(number, arrival.peer, arrival.local)
        now = self._loop.time()
        link = self._links.get(path)
        if link is not None:
            link.receive(arrival.datagram)
        elif self._listener.receive(arrival.datagram, path, now):
            self._flush()
        else:
            self._receive_from_unknown_path(arrival.datagram, path, now)

    def receive_handshake(self, link: Link, datagram: bytes) -> None:
        """Take a handshake record on the path of a session: the client may have restarted (RFC 6347, section 4.2.8)."""
        path = self._paths.get(link)
        if path is None or path.socket not in self._sockets:
            return
        if is_client_hello(datagram) or path in self._listener:
            self._listener.receive(datagram, path, self._loop.time())
            self._flush()

    def _readable(self, number: int, listener: socket.socket) -> None:
        end = self._loop.time() + TURN
        for _ in range(BATCH):
            arrival = udp.receive(listener)
            if arrival is None:
                return
            self.receive(number, arrival)
            if self._loop.time() >= end:
                return

    def _flush(self) -> None:
        """Send the listener's answers, handle its events, set the timer."""
        for datagram, path in self._listener.take_outgoing():
            listener = self._sockets.get(path.socket)
            if listener is not None:
                udp.answer(listener, datagram, path.peer, path.local)
        # After the listener's last flight, since the session may send at once.
        for event in self._listener.take_events():
            if isinstance(event, Verified):
                self._verified(event)
            else:
                self._failed(event)
        when = self._listener.next_timer()
        if self._timer is not None and self._timer.when() == when:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if when is None else self._loop.call_at(when, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._listener.poll(self._loop.time())
        self._flush()

    def _verified(self, event: Verified[Key]) -> None:
        path = event.path
        before = self._links.get(path)
        if before is not None:
            # The same address and port, but a new association: the client does not have the old one any more.
            before.close("replaced", "the client has restarted", tell=False)
        listener = self._sockets.get(path.socket)
        if listener is None:
            return
        try:
            connected, strays = udp.accept(listener, path.peer, path.local)
        except OSError:
            self._drops["no socket for a session"] += 1
            return
        link = self._make_link(event, connected)
        self._enter(link, path)
        link.start(event.early)
        for stray in strays:
            self.receive(path.socket, stray)

    def _receive_from_unknown_path(self, datagram: bytes, path: Path, now: float) -> None:
        sequence = sequence_of(datagram)
        if sequence < 0:
            self._drops["unexpected record"] += 1
            return
        # A client that has moved still sends to the same address of the server.
        ours = (path.socket, path.local)
        for link in self._trials.candidates(sequence, now):
            known = self._paths.get(link)
            if known is None or not link.attached or (known.socket, known.local) != ours:
                continue
            before = link.highest
            link.receive(datagram)
            if link.highest > before:
                self._move(link, path, len(datagram))
                return
        self._drops["record of no session"] += 1
        # Every real record is longer. The answer must not be larger than the datagram, whose source may be forged.
        if len(datagram) >= len(_HINT):
            self._hint(path, now)

    def _enter(self, link: Link, path: Path) -> None:
        self._links[path] = link
        self._paths[link] = path
        self._trials.forget()

    def _move(self, link: Link, path: Path, received: int) -> None:
        try:
            link.move(path.peer, received)
        except OSError:
            self._drops["no route to a moved client"] += 1
            return
        self.remove(link)
        self._enter(link, path)

    def _hint(self, path: Path, now: float) -> None:
        """Tell a client whose session this server does not know, after its own restart, to make a new one."""
        listener = self._sockets.get(path.socket)
        if listener is not None and self._hints.allow(now) is not None:
            udp.answer(listener, _HINT, path.peer, path.local)
