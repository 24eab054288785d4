"""A thousand handshakes, side by side, over a network that loses, doubles, delays and reorders."""

import heapq
import random
import time
from dataclasses import dataclass, field
from itertools import count

import pytest

from dtun.config import Key
from dtun.dtls.association import Association, AssociationState
from dtun.dtls.engine import ClientEngine, ServerEngine
from dtun.dtls.listener import Listener, Path, Verified
from dtun.protocol.record import is_client_hello

KEY = b"k" * 32
HANDSHAKES = 1000
SIDE_BY_SIDE = 250


@dataclass
class Network:
    """Delivers to the server (True) or to the client of a path, out of a seeded mess."""

    numbers: random.Random
    loss: float
    queue: list[tuple[float, int, bool, Path, bytes]] = field(default_factory=list)
    order: "count[int]" = field(default_factory=count)

    def send(self, now: float, datagram: bytes, path: Path, *, to_server: bool) -> None:
        while self.numbers.random() >= self.loss:
            arrival = now + self.numbers.uniform(0, 0.02)
            heapq.heappush(self.queue, (arrival, next(self.order), to_server, path, datagram))
            if self.numbers.random() >= 0.1:
                return

    def arrived(self, now: float) -> list[tuple[bool, Path, bytes]]:
        arrived = []
        while self.queue and self.queue[0][0] <= now:
            _, _, to_server, path, datagram = heapq.heappop(self.queue)
            arrived.append((to_server, path, datagram))
        return arrived


class World:
    """A server, its clients, and what lies between them. Each client asks "ping" until it hears "pong"."""

    def __init__(self) -> None:
        retransmit = (0.05, 20.0)  # on Mbed TLS's own clock: the real one, hence the real one here
        server = ServerEngine(retransmit=retransmit)
        self.network = Network(random.Random(20), loss=0.1)
        self.listener = Listener(server, lambda *_: Key(KEY), max_per_source=2 * SIDE_BY_SIDE, timeout=30.0)
        self.engine = ClientEngine("demo", KEY, native=True, retransmit=retransmit)
        self.clients: dict[Path, Association] = {}
        self.servers: dict[Path, Association] = {}
        self.next_ping: dict[Path, float] = {}
        self.ports = iter(range(1, HANDSHAKES + 1))
        self.done = 0

    def turn(self, now: float) -> None:
        while len(self.clients) < SIDE_BY_SIDE and (port := next(self.ports, None)) is not None:
            self.clients[Path(1, ("192.0.2.1", port), "")] = self.engine.associate(now)
        for to_server, path, datagram in self.network.arrived(now):
            (self.server_receives if to_server else self.client_receives)(datagram, path, now)
        self.listener.poll(now)
        for event in self.listener.take_events():
            assert isinstance(event, Verified), event
            assert event.path not in self.servers, "one handshake made two sessions"
            self.servers[event.path] = event.association
        for datagram, path in self.listener.take_outgoing():
            self.network.send(now, datagram, path, to_server=False)
        for path, client in self.clients.items():
            self.client_sends(client, path, now)

    def server_receives(self, datagram: bytes, path: Path, now: float) -> None:
        server = self.servers.get(path)
        if server is None or is_client_hello(datagram):
            self.listener.receive(datagram, path, now)
            return
        for _ping in server.receive(datagram, now):
            self.network.send(now, server.seal(b"pong"), path, to_server=False)
        for reply in server.take_outgoing():
            self.network.send(now, reply, path, to_server=False)

    def client_receives(self, datagram: bytes, path: Path, now: float) -> None:
        client = self.clients.get(path)
        if client is not None and b"pong" in client.receive(datagram, now):
            assert client.takeover_done
            assert client.records.offloaded
            assert self.servers[path].records.offloaded
            self.done += 1
            del self.clients[path]

    def client_sends(self, client: Association, path: Path, now: float) -> None:
        timer = client.next_timer()
        if timer is not None and now >= timer:
            client.poll(now)
        assert client.state is not AssociationState.FAILED, client.failure
        if client.state is AssociationState.ESTABLISHED and now >= self.next_ping.get(path, now):
            self.next_ping[path] = now + 0.05
            self.network.send(now, client.seal(b"ping"), path, to_server=True)
        for datagram in client.take_outgoing():
            self.network.send(now, datagram, path, to_server=True)


@pytest.mark.timeout(60)
def test_a_thousand_handshakes_over_a_terrible_network_all_complete() -> None:
    world = World()
    while world.done < HANDSHAKES:
        world.turn(time.monotonic())
        time.sleep(0.001)  # the network's delays are real time, too
