"""A server, and clients, on loopback sockets: only the kernel's devices and routes are made up."""

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from fakes import FakeKernel, FakeTun

from dtun.config import ClientConfig, Hook, ServerConfig
from dtun.dtls.engine import ClientEngine
from dtun.dtls.suites import LEGACY_SUITE
from dtun.network.state import Route
from dtun.protocol.messages import Hello, Welcome
from dtun.protocol.record import hello_request
from dtun.tunnel import client as client_module, frontdoor
from dtun.tunnel.client import Client
from dtun.tunnel.dialect import GoClientDialect, NativeDialect
from dtun.tunnel.server import Server
from dtun.tunnel.session import Closed, Event, Received, Session

KEY = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
LAN = IPv4Network("10.0.0.0/16")


def packet(source: str, destination: str = "192.0.2.9", number: int = 0) -> bytes:
    addresses = IPv4Address(source).packed + IPv4Address(destination).packed
    return b"\x45" + bytes(11) + addresses + number.to_bytes(2)


async def wait_for(condition: Callable[[], bool], what: str, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        await asyncio.sleep(0.002)


def waiting_at(sock: socket.socket) -> list[bytes]:
    found = []
    with suppress(BlockingIOError):
        while True:
            found.append(sock.recv(65535))
    return found


class HookLog:
    """Runs no hook, but notes which one would have been."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    async def __call__(self, hook: Hook, variables: Mapping[str, str], what: str) -> bool:
        self.ran.append(f"{hook.command[0]} {variables['ID']} {variables['REASON']} {what}")
        return True


class Site:
    """A server on a port of its own, with the clients "demo" (native) and "old" (an original one)."""

    def __init__(self, directory: Path) -> None:
        self.kernel = FakeKernel()
        self.hooks = HookLog()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.config = ServerConfig.model_validate(
            {
                "listen": f"127.0.0.1:{self.port}",
                "state_directory": str(directory),
                "runtime_directory": str(directory),
                "up": "/up",
                "down": "/down",
                "clients": {
                    "demo": {"key": KEY, "subnets": [str(LAN)]},
                    "old": {"key": "original", "compat": "go", "subnets": ["10.9.0.0/16"]},
                },
            }
        )
        for name, entry in self.config.clients.items():
            assert entry.read_key(directory, ("server", "clients", name)) == []
        self.server = self.make_server()

    def make_server(self) -> Server:
        return Server(self.config, self.kernel, self.hooks, asyncio.get_running_loop())

    async def restart(self) -> None:
        """As after a power failure: nobody is told."""
        for link in list(self.server._door.links):
            link.close("stopped", "", tell=False)
        await self.server.stop()
        self.server = self.make_server()
        await self.server.start()

    def tun(self, name: str = "dtun-demo") -> FakeTun:
        return self.kernel.tuns[name]

    def drops(self) -> Mapping[str, int]:
        return self.server._door.all_drops


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    made = Site(tmp_path)
    await made.server.start()
    yield made
    await made.server.stop()
    assert made.kernel.state.links == frozenset()
    assert all(tun.closed for tun in made.kernel.tuns.values())


class RawClient:
    """A client's session whose socket the test holds in its hands."""

    def __init__(self, site: Site, name: str = "demo", *, go: bool = False, subnets: bool = True) -> None:
        self.target = ("127.0.0.1", site.port)
        self.socket = self.new_socket()
        self.events: list[Event] = []
        key = b"original" if go else bytes(range(32))
        suites = {"suites": [LEGACY_SUITE]} if go else {}
        engine = ClientEngine(name, key, native=not go, **suites)  # type: ignore[arg-type]
        now = time.monotonic()
        self.session = Session(
            engine.associate(now),
            lambda _, count, at: GoClientDialect(count) if go else NativeDialect(count, 10, 30, at),
            now,
            handshake_deadline=now + 10,
        )
        self.hello = Hello(
            instance="0a", subnets=(LAN if not go else IPv4Network("10.9.0.0/16"),) if subnets else ()
        )

    def new_socket(self) -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.setblocking(False)
        made.connect(self.target)
        return made

    def turn(self) -> None:
        now = time.monotonic()
        for datagram in waiting_at(self.socket):
            self.session.receive(datagram, now)
        timer = self.session.next_timer()
        if timer is not None and timer <= now:
            self.session.poll(now)
        for event in self.session.take_events():
            if not self.events:
                self.session.send(self.hello, now)
            self.events.append(event)
        for datagram in self.session.take_outgoing():
            self.socket.send(datagram)

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        def turned() -> bool:
            self.turn()
            return condition()

        await wait_for(turned, what)

    async def connect(self) -> Welcome:
        await self.until(lambda: any(isinstance(event, Received) for event in self.events), "a welcome")
        return next(
            event.message
            for event in self.events
            if isinstance(event, Received) and isinstance(event.message, Welcome)
        )

    def packets(self) -> list[bytes]:
        self.turn()
        return self.session.take_early_packets()

    async def next_packets(self) -> list[bytes]:
        found: list[bytes] = []

        def some() -> bool:
            found.extend(self.packets())
            return found != []

        await wait_for(some, "a packet at the client")
        return found

    def send(self, plaintext: bytes) -> None:
        self.socket.send(self.session.association.seal(plaintext))


@pytest.fixture
async def make_client(site: Site) -> AsyncIterator[Callable[..., RawClient]]:
    made: list[RawClient] = []

    def make(name: str = "demo", *, go: bool = False, subnets: bool = True) -> RawClient:
        made.append(RawClient(site, name, go=go, subnets=subnets))
        return made[-1]

    yield make
    for client in made:
        client.socket.close()


async def sees_packet(site: Site, client: RawClient, data: bytes) -> None:
    """The server's host gets this packet from the client."""
    client.send(data)
    await wait_for(lambda: data in waiting_at(site.tun().host), "the packet at the server's host")


async def test_a_client_gets_its_address_and_its_packets_through(
    site: Site, make_client: Callable[..., RawClient]
) -> None:
    client = make_client()
    welcome = await client.connect()
    assert (str(welcome.address), str(welcome.peer)) == ("10.86.0.2", "10.86.0.1")
    assert site.kernel.state.routes == {Route(LAN, "dtun-demo")}
    await sees_packet(site, client, packet("10.0.5.5"))
    site.tun().host.send(packet("192.0.2.9", "10.0.5.5"))
    assert await client.next_packets() == [packet("192.0.2.9", "10.0.5.5")]
    await wait_for(lambda: site.hooks.ran == ["/up demo connected demo: up hook"], "the up hook")


async def test_a_spoofed_source_is_dropped(site: Site, make_client: Callable[..., RawClient]) -> None:
    client = make_client()
    await client.connect()
    client.send(packet("172.16.0.1"))
    await sees_packet(site, client, packet("10.86.0.2"))
    assert waiting_at(site.tun().host) == []
    assert site.server._identities["demo"].counters.drops["source not allowed"] == 1


async def test_a_client_whose_nat_forgets_it_is_found_again_by_its_next_record(
    site: Site, make_client: Callable[..., RawClient]
) -> None:
    client = make_client()
    await client.connect()
    await sees_packet(site, client, packet("10.0.0.1"))
    with client.socket:
        client.socket = client.new_socket()
        await sees_packet(site, client, packet("10.0.0.1", number=1))
        site.tun().host.send(packet("192.0.2.9", "10.0.0.1", number=2))
        await client.next_packets()
    assert not any(isinstance(event, Closed) for event in client.events)


async def test_a_forged_replayed_or_old_record_moves_nothing_and_gets_a_hint(
    site: Site, make_client: Callable[..., RawClient]
) -> None:
    client = make_client()
    await client.connect()
    old = client.session.association.seal(packet("10.0.0.1"))
    await sees_packet(site, client, packet("10.0.0.1", number=1))
    forged = bytearray(client.session.association.seal(packet("10.0.0.1", number=2)))
    forged[-1] ^= 1
    with client.new_socket() as stranger:
        for datagram in (old, bytes(forged)):
            stranger.send(datagram)
            hints: list[bytes] = []
            while not hints:
                await asyncio.sleep(0.002)
                hints += waiting_at(stranger)
            assert hints == [hello_request(0)]
        site.tun().host.send(packet("192.0.2.9", "10.0.0.1"))
        await client.next_packets()
        assert waiting_at(stranger) == []
    assert site.drops()["record of no session"] == 2


async def test_hints_are_rate_limited_and_never_larger_than_what_they_answer(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frontdoor, "HINTS_PER_SECOND", 10.0)
    record = b"\x17\xfe\xfd\x00\x01\x00\x00\x00\x00\x00\x07\x00\x20" + bytes(32)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.setblocking(False)
        stranger.connect(("127.0.0.1", site.port))
        for size in range(13, 25):
            stranger.send(record[:size])
        await wait_for(lambda: site.drops()["record of no session"] == 12, "the short ones")
        assert waiting_at(stranger) == []
        began = time.monotonic()
        for _ in range(60):
            stranger.send(record)
        await wait_for(lambda: site.drops()["record of no session"] == 72, "all records")
        hints = waiting_at(stranger)
        assert 10 <= len(hints) <= 11 + 10 * (time.monotonic() - began)
        assert set(hints) == {hello_request(0)}


async def test_strays_are_counted_and_not_answered(site: Site) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.setblocking(False)
        stranger.connect(("127.0.0.1", site.port))
        for datagram in (b"x", b"\x15\xfe\xfd" + bytes(20), b"\x16" + bytes(40), bytes(1400)):
            stranger.send(datagram)
        await wait_for(lambda: sum(site.drops().values()) == 4, "the count")
        assert waiting_at(stranger) == []
    assert site.server.status()["half_open"] == 0


async def test_a_client_that_starts_anew_takes_its_own_place(
    site: Site, make_client: Callable[..., RawClient]
) -> None:
    first, second = make_client(), make_client()
    await first.connect()
    await second.connect()
    await sees_packet(site, first, packet("10.0.0.1", number=1))
    await sees_packet(site, second, packet("10.0.0.1", number=2))
    site.tun().host.send(packet("192.0.2.9", "10.0.0.1"))
    await second.next_packets()
    assert first.packets() == []


async def test_another_host_with_the_same_id_is_told_to_the_first(
    make_client: Callable[..., RawClient],
) -> None:
    first, second = make_client(), make_client()
    second.hello = second.hello.model_copy(update={"instance": "0b"})
    await first.connect()
    await second.connect()
    await first.until(lambda: any(isinstance(event, Closed) for event in first.events), "the goodbye")
    closed = first.events[-1]
    assert isinstance(closed, Closed)
    assert closed.reason == "replaced"


async def test_a_client_that_asks_for_much_that_it_may_not_have_is_welcome_all_the_same(
    site: Site, make_client: Callable[..., RawClient]
) -> None:
    client = make_client()
    subnets = tuple(IPv4Network((f"172.16.{number >> 8}.{number & 255}", 32)) for number in range(1024))
    client.hello = Hello(instance="0a", subnets=subnets)
    welcome = await client.connect()
    assert 0 < len(welcome.refused) < len(subnets)
    assert site.kernel.state.routes == frozenset()


async def test_a_client_that_says_hello_again_and_again_does_no_harm(
    site: Site, make_client: Callable[..., RawClient], caplog: pytest.LogCaptureFixture
) -> None:
    client = make_client()
    await client.connect()
    (link,) = site.server._door.links
    for _ in range(60):
        site.server._on_event(link, Received(client.hello))
    await wait_for(lambda: link.ended() or not site.server._tasks._running, "all of them to be dealt with")
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_an_original_client_is_greeted_and_served(
    site: Site, make_client: Callable[..., RawClient]
) -> None:
    client = make_client("old", go=True)
    welcome = await client.connect()
    assert str(welcome.peer) == "10.86.0.1"
    await wait_for(lambda: site.server._identities["old"].link is not None, "the answer to the greeting")
    client.send(packet("10.9.0.7"))
    host = site.tun("dtun-old").host
    await wait_for(lambda: packet("10.9.0.7") in waiting_at(host), "its packet")
    assert Route(IPv4Network("10.9.0.0/16"), "dtun-old") in site.kernel.state.routes


class Home:
    """A whole client."""

    def __init__(self, site: Site, directory: Path) -> None:
        self.kernel = FakeKernel()
        self.hooks = HookLog()
        config = ClientConfig.model_validate(
            {
                "servers": f"127.0.0.1:{site.port}",
                "id": "demo",
                "key": KEY,
                "subnets": [str(LAN)],
                "routes": ["192.0.2.0/24"],
                "up": "/up",
                "down": "/down",
                "runtime_directory": str(directory),
            }
        )
        assert config.read_key(directory, ("client",)) == []
        self.client = Client(config, self.kernel, self.hooks, asyncio.get_running_loop())

    def link(self) -> object:
        return self.client._link


@pytest.fixture
async def home(site: Site, tmp_path: Path) -> AsyncIterator[Home]:
    made = Home(site, tmp_path)
    await made.client.start()
    running = asyncio.create_task(made.client.run())
    yield made
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    await made.client.stop()
    assert made.kernel.state.links == frozenset()


async def in_service(home: Home, *, other_than: object = None) -> object:
    await wait_for(lambda: home.link() not in (None, other_than), "a session in service")
    return home.link()


async def through(site: Site, home: Home, number: int) -> None:
    """A packet goes from behind the client to the server's host."""
    data = packet("10.0.0.1", number=number)
    home.kernel.tuns["dtun0"].host.send(data)
    await wait_for(lambda: data in waiting_at(site.tun().host), f"packet {number}")


async def test_a_tunnel_comes_up_and_carries_packets(site: Site, home: Home) -> None:
    await in_service(home)
    await through(site, home, 1)
    assert {str(route.destination) for route in home.kernel.state.routes} == {"192.0.2.0/24"}
    await wait_for(lambda: home.hooks.ran == ["/up demo connected dtun0: up hook"], "the up hook")
    assert home.client.summary().startswith("connected to 127.0.0.1")


async def test_a_renewed_session_takes_over_without_a_gap(site: Site, home: Home) -> None:
    before = await in_service(home)
    home.client._want("renewal")
    await in_service(home, other_than=before)
    await through(site, home, 1)
    assert len(home.hooks.ran) == 1, "the tunnel was up all the time"


async def test_a_server_that_forgot_us_is_found_again_by_its_hint(site: Site, home: Home) -> None:
    before = await in_service(home)
    await site.restart()
    home.kernel.tuns["dtun0"].host.send(packet("10.0.0.1"))
    await in_service(home, other_than=before)
    await through(site, home, 1)


async def test_forged_hints_cause_a_bounded_number_of_new_sessions(
    site: Site, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    del site
    monkeypatch.setattr(client_module, "HINT_INTERVAL", 3600.0)
    link = await in_service(home)
    wanted: list[str] = []
    monkeypatch.setattr(home.client, "_want", wanted.append)
    for _ in range(100):
        home.client._on_handshake(link, hello_request(0))  # type: ignore[arg-type]
    assert wanted == ["hint"]


async def test_a_server_that_stops_says_so_and_the_client_waits_for_the_next(site: Site, home: Home) -> None:
    before = await in_service(home)
    await site.server.stop()
    await wait_for(lambda: home.link() is None, "the goodbye")
    assert home.client.summary().startswith("connecting to")
    site.server = site.make_server()
    await site.server.start()
    await in_service(home, other_than=before)
    await through(site, home, 2)
    await wait_for(
        lambda: [line.split()[0] for line in home.hooks.ran] == ["/up", "/down", "/up"], "the hooks"
    )
