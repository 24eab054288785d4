"""Clients and a server as pure cores, joined by a network without sockets.

The sessions run on a clock of the test's own. Only Mbed TLS resends lost handshake messages by the real one;
so a handshake over a bad network has to be carried in real time (`carry_in_real_time`).
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from dtun.config import Key
from dtun.dtls.engine import ClientEngine, ServerEngine
from dtun.dtls.listener import Failed, Listener, Path, Verified
from dtun.dtls.suites import DEFAULT_SUITES, LEGACY_SUITE, Suite
from dtun.protocol.messages import AnyNetwork, Hello, Message, Welcome
from dtun.protocol.record import is_client_hello
from dtun.session.dialect import Count, Dialect, NativeDialect
from dtun.session.go import GoClientDialect, GoServerDialect
from dtun.session.session import AnyAssociation, Closed, Established, Event, Received, Session
from tests.unit.protocol.terrible_network import TerribleNetwork

KEY = bytes(range(32))
KEEPALIVE, TIMEOUT = 10.0, 30.0
QUICK = (0.05, 6.4)  # Mbed TLS gives up once it has waited for the longest time
WELCOME_FIELDS = {"address": "10.86.0.2", "peer": "10.86.0.1"}
WELCOME = Welcome.model_validate(WELCOME_FIELDS)

Place = tuple[bool, Path]
"""Where a datagram goes: to the server's side or the client's side of a path."""


@dataclass(eq=False)
class End:
    """One side of a session and what it has told its owner."""

    session: Session
    events: list[Event] = field(default_factory=list)

    @property
    def heard(self) -> list[Message]:
        return [event.message for event in self.events if isinstance(event, Received)]

    @property
    def closed(self) -> Closed | None:
        found = [event for event in self.events if isinstance(event, Closed)]
        assert len(found) <= 1, "a session ends once"
        return found[0] if found else None


class World:
    """One server and any number of clients. The server welcomes whoever says hello."""

    def __init__(
        self,
        network: TerribleNetwork[Place] | None = None,
        *,
        go: bool = False,
        server_key: bytes = KEY,
        suites: tuple[Suite, ...] = DEFAULT_SUITES,
        retransmit: tuple[float, float] = QUICK,
    ) -> None:
        self.go = go
        self.network = network or TerribleNetwork()
        self.now = 1000.0
        self.subnets: tuple[AnyNetwork, ...] = ()
        self.welcomes = True
        used = (LEGACY_SUITE,) if go else suites
        self._client_engine = ClientEngine("demo", KEY, used, native=not go, retransmit=retransmit)
        engine = ServerEngine(used, retransmit=retransmit)
        self.listener = Listener(
            engine, lambda *_: Key(server_key), max_half_open=10_000, max_per_source=10_000
        )
        self.clients: dict[Path, End] = {}
        self.servers: dict[Path, End] = {}
        self.failed: list[Failed[Key]] = []

    def connect(self, *, deadline: float = 5.0) -> Path:
        """Start a client; returns its path."""
        path = Path(1, ("192.0.2.1", 1024 + len(self.clients)), "198.51.100.1")
        association = self._client_engine.associate(self.now)
        session = Session(association, self._client_dialect, self.now, handshake_deadline=self.now + deadline)
        self.clients[path] = End(session)
        return path

    def pair(self) -> tuple[End, End]:
        """A client and its server, both open, over the network as it is."""
        path = self.connect()
        self.settle()
        assert self.clients[path].session.open
        assert self.servers[path].session.open
        return self.clients[path], self.servers[path]

    def settle(self) -> None:
        """Carry what is under way until nothing moves without time passing."""
        moved = True
        while moved:
            moved = self.collect()
            for (to_server, path), datagram in self.network.arrivals(self.now):
                moved = True
                self._deliver(path, datagram, to_server=to_server)

    def advance(self, seconds: float) -> None:
        """Let this much time pass, from timer to timer and arrival to arrival."""
        end = self.now + seconds
        self.settle()
        while (upcoming := self._upcoming()) is not None and upcoming <= end:
            self.now = max(self.now, upcoming)
            self._poll()
            self.settle()
        self.now = end

    def carry_in_real_time(self, until: Callable[[], bool], *, longest: float) -> None:
        start, began = time.monotonic(), self.now
        while not until():
            self.now = began + time.monotonic() - start
            assert self.now - began < longest, "not everybody got there"
            self._poll()
            self.settle()
            upcoming = self._upcoming()
            if upcoming is not None and not until():
                time.sleep(min(max(upcoming - self.now, 0), 0.01))

    def ends(self) -> Iterable[End]:
        return [*self.clients.values(), *self.servers.values()]

    def _upcoming(self) -> float | None:
        timers = [end.session.next_timer() for end in self.ends()]
        times = [*timers, self.listener.next_timer(), self.network.next_arrival()]
        return min((one for one in times if one is not None), default=None)

    def _poll(self) -> None:
        for end in self.ends():
            timer = end.session.next_timer()
            if timer is not None and self.now >= timer:
                end.session.poll(self.now)
        timer = self.listener.next_timer()
        if timer is not None and self.now >= timer:
            self.listener.poll(self.now)

    def _deliver(self, path: Path, datagram: bytes, *, to_server: bool) -> None:
        if not to_server:
            self.clients[path].session.receive(datagram, self.now)
        elif path not in self.servers or is_client_hello(datagram):
            self.listener.receive(datagram, path, self.now)
        else:
            self.servers[path].session.receive(datagram, self.now)

    def collect(self) -> bool:
        """Act on events and put what is to be sent on its way; whether there was anything."""
        moved = False
        for outcome in self.listener.take_events():
            moved = True
            if isinstance(outcome, Failed):
                self.failed.append(outcome)
            else:
                self._verified(outcome)
        for datagram, path in self.listener.take_outgoing():
            moved = True
            self.network.send((False, path), datagram, self.now)
        for to_server, ends in ((True, self.clients), (False, self.servers)):
            for path, end in ends.items():
                for event in end.session.take_events():
                    end.events.append(event)
                    self._react(end, event, client=to_server)
                for datagram in (*end.session.take_outgoing(), *end.session.take_probes()):
                    moved = True
                    self.network.send((to_server, path), datagram, self.now)
        return moved

    def _verified(self, event: Verified[Key]) -> None:
        assert event.path not in self.servers, "one handshake made two sessions"
        session = Session(event.association, self._server_dialect, self.now, handshake_deadline=self.now)
        self.servers[event.path] = End(session)
        for plaintext in event.early:
            session.receive_plaintext(plaintext, self.now)

    def _react(self, end: End, event: Event, *, client: bool) -> None:
        match event:
            case Established() if client:
                end.session.send(Hello(subnets=self.subnets), self.now)
            case Established() if self.go and self.welcomes:
                end.session.send(WELCOME, self.now)
            case Received(Hello()) if self.welcomes:
                end.session.send(WELCOME, self.now)

    def _client_dialect(self, _association: AnyAssociation, count: Count, now: float) -> Dialect:
        return GoClientDialect(count) if self.go else NativeDialect(count, KEEPALIVE, TIMEOUT, now)

    def _server_dialect(self, _association: AnyAssociation, count: Count, now: float) -> Dialect:
        return GoServerDialect(count) if self.go else NativeDialect(count, KEEPALIVE, TIMEOUT, now)
