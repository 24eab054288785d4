"""Where datagrams come in at a server: to the session they belong to, to a handshake, or to nobody.

    listening socket -+-> path of a session ----------------> that session
                      +-> handshake record -----------------> dtun.dtls.listener: cookie, handshake, key proven
                      +-> record of an unknown address -----> whose keys open it? that session has moved
                                                        `---> nobody's: a hint to shake hands anew

Nothing here can be made to do more for a stranger than a cookie exchange, or a few trial decryptions.
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

BATCH = 64
"""Datagrams taken from a listening socket in one turn."""

HINTS_PER_SECOND = 100.0
"""HelloRequests that go to addresses without a session, at most. They are no larger than what they answer."""

_HINT = hello_request(0)


class Demux:
    """The listening sockets of a server and what comes in there.

    `welcome` makes a link for a client that has proven its key. `failed` hears of handshakes
    with a valid cookie that came to nothing. `drops` counts what was for nobody, by reason.
    """

    def __init__(
        self,
        listener: Listener[Key],
        *,
        welcome: Callable[[Verified[Key], socket.socket], Link],
        failed: Callable[[Failed[Key]], None],
        loop: asyncio.AbstractEventLoop,
        fdstore: FdStore,
    ) -> None:
        self._fdstore = fdstore
        self.drops: Counter[str] = Counter()
        self._listener = listener
        self._welcome = welcome
        self._failed = failed
        self._loop = loop
        # By a number that is never used again, unlike a descriptor: paths of sessions have it in them.
        self._sockets: dict[int, socket.socket] = {}
        self._numbers: dict[Endpoint, int] = {}
        self._opened = 0
        self._links: dict[Path, Link] = {}
        self._paths: dict[Link, Path] = {}
        self._trials = Trials()
        self._hints = RateLimiter(burst=HINTS_PER_SECOND, per_seconds=1)
        self._timer: asyncio.TimerHandle | None = None

    @property
    def half_open(self) -> int:
        """Handshakes under way."""
        return self._listener.half_open

    @property
    def all_drops(self) -> Counter[str]:
        """Datagrams that led to nothing, by reason, those of the cookie exchange included."""
        return self.drops + self._listener.drops

    @property
    def links(self) -> Iterable[Link]:
        return self._paths.keys()

    def open(self, endpoint: Endpoint, listener: socket.socket, *, keep: bool = True) -> None:
        """Take datagrams from this listening socket; it is closed with the demultiplexer."""
        self._opened += 1
        self._numbers[endpoint] = self._opened
        self._sockets[self._opened] = listener
        if keep:
            self._fdstore.keep(listener_name(endpoint), listener.fileno())
        self._loop.add_reader(listener, self._readable, self._opened, listener)

    def adopt(self, link: Link) -> bool:
        """A session that a process before this one has made. False if nobody listens any more where it was made."""
        host, port = link.local_address, link.local_port
        for endpoint, number in self._numbers.items():
            if endpoint.port == port and (endpoint.address.is_unspecified or str(endpoint.address) == host):
                path = Path(number, link.peer, host)
                self._links[path] = link
                self._paths[link] = path
                return True
        return False

    def shut(self, endpoint: Endpoint) -> list[Link]:
        """Take no more datagrams there. Returns the sessions that were made there, which go on."""
        number = self._numbers.pop(endpoint)
        listener = self._sockets.pop(number)
        self._loop.remove_reader(listener)
        self._fdstore.forget(listener_name(endpoint))
        listener.close()
        return [link for link, path in self._paths.items() if path.socket == number]

    def is_open_for(self, link: Link) -> bool:
        """Whether the address that this session was made at is still listened on."""
        path = self._paths.get(link)
        return path is not None and path.socket in self._sockets

    def close(self) -> None:
        """Take no more datagrams. Sessions go on until they are closed."""
        if self._timer is not None:
            self._timer.cancel()
        for listener in self._sockets.values():
            self._loop.remove_reader(listener)
            listener.close()
        self._sockets.clear()
        self._numbers.clear()

    def forget(self, link: Link) -> None:
        """A session is over."""
        path = self._paths.pop(link, None)
        if path is not None and self._links.get(path) is link:
            del self._links[path]

    def handshake(self, link: Link, datagram: bytes) -> None:
        """A handshake record on the path of a session: perhaps the client has started anew (RFC 6347, 4.2.8)."""
        path = self._paths.get(link)
        if path is None or path.socket not in self._sockets:
            return
        if is_client_hello(datagram) or path in self._listener:
            self._listener.receive(datagram, path, self._loop.time())
            self._flush()

    def _readable(self, number: int, listener: socket.socket) -> None:
        for _ in range(BATCH):
            arrival = udp.receive(listener)
            if arrival is None:
                return
            self._arrived(number, arrival)

    def _arrived(self, number: int, arrival: Arrival) -> None:
        path = Path(number, arrival.peer, arrival.local)
        now = self._loop.time()
        link = self._links.get(path)
        if link is not None:
            link.receive(arrival.datagram)
        elif self._listener.receive(arrival.datagram, path, now):
            self._flush()
        else:
            self._stranger(arrival.datagram, path, now)

    def _flush(self) -> None:
        """Send the listener's answers, act on what has happened, set the timer."""
        for datagram, path in self._listener.take_outgoing():
            listener = self._sockets.get(path.socket)
            if listener is not None:
                udp.answer(listener, datagram, path.peer, path.local)
        # After the listener's last flight, since the session may have something to say at once.
        for event in self._listener.take_events():
            if isinstance(event, Verified):
                self._verified(event)
            else:
                self._failed(event)
        if self._timer is not None:
            self._timer.cancel()
        when = self._listener.next_timer()
        self._timer = None if when is None else self._loop.call_at(when, self._tick)

    def _tick(self) -> None:
        self._listener.poll(self._loop.time())
        self._flush()

    def _verified(self, event: Verified[Key]) -> None:
        path = event.path
        before = self._links.get(path)
        if before is not None:
            # The same address and port, a new association: the old one has no way left to its client.
            before.close("replaced", "the client has started anew", tell=False)
        listener = self._sockets.get(path.socket)
        if listener is None:
            return
        try:
            connected, strays = udp.accept(listener, path.peer, path.local)
        except OSError:
            self.drops["no socket for a session"] += 1
            return
        link = self._welcome(event, connected)
        self._links[path] = link
        self._paths[link] = path
        link.start(event.early)
        for stray in strays:
            self._arrived(path.socket, stray)

    def _stranger(self, datagram: bytes, path: Path, now: float) -> None:
        sequence = sequence_of(datagram)
        if sequence < 0:
            self.drops["unexpected record"] += 1
            return
        # Wherever it is now, it sends to the address of ours that it knows.
        ours = (path.socket, path.local)
        attached = (
            link
            for link, known in self._paths.items()
            if link.attached and (known.socket, known.local) == ours
        )
        for link in self._trials.candidates(attached, sequence, now):
            before = link.highest
            link.receive(datagram)
            if link.highest > before:
                self._moved(link, path)
                return
        self.drops["record of no session"] += 1
        # Every real record is longer; the answer must not exceed the question, whose sender may be forged.
        if len(datagram) >= len(_HINT):
            self._hint(path, now)

    def _moved(self, link: Link, path: Path) -> None:
        try:
            link.move(path.peer)
        except OSError:
            self.drops["no route to a moved client"] += 1
            return
        self.forget(link)
        self._links[path] = link
        self._paths[link] = path

    def _hint(self, path: Path, now: float) -> None:
        """Tell a client whose session this server does not know (it was restarted) to make a new one."""
        listener = self._sockets.get(path.socket)
        if listener is not None and self._hints.allow(now) is not None:
            udp.answer(listener, _HINT, path.peer, path.local)
