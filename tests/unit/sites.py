"""A server and clients on loopback sockets; only the kernel's devices and routes are simulated."""

import asyncio
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from dtun.client.client import Client
from dtun.config import ClientConfig, Hook, ServerConfig
from dtun.dtls.engine import ClientEngine
from dtun.dtls.suites import LEGACY_SUITE
from dtun.handover.fdstore import FdStore
from dtun.network.state import Route
from dtun.pacing import Backoff
from dtun.protocol.messages import Hello, Message, Welcome
from dtun.server.server import Server
from dtun.session.dialect import NativeDialect
from dtun.session.go import GoClientDialect
from dtun.session.link import Link
from dtun.session.session import Closed, Event, Received, Session
from tests.unit.fakes import FakeKernel, FakeTun

KEY = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
OTHER_KEY = "H" + KEY[1:]
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
    """Records hooks instead of running them. Each takes until `gate`, if there is one, is open."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.gate: asyncio.Event | None = None

    async def __call__(self, hook: Hook, variables: Mapping[str, str], what: str) -> bool:
        self.ran.append(f"{hook.command[0]} {variables['ID']} {variables['REASON']} {what}")
        if self.gate is not None:
            await self.gate.wait()
        return True


class Site:
    """A server on a port of its own, with the clients "demo" (native) and "old" (an original one), or others."""

    def __init__(self, directory: Path, **settings: object) -> None:
        self.kernel = FakeKernel()
        self.hooks = HookLog()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._directory = directory
        self._settings: dict[str, object] = {
            "listen": f"127.0.0.1:{self.port}",
            "state_directory": str(directory),
            "runtime_directory": str(directory),
            "up": "/up",
            "down": "/down",
            "clients": {
                "demo": {"key": KEY, "subnets": [str(LAN)]},
                "old": {"key": "original", "compat": "go", "subnets": ["10.9.0.0/16"]},
            },
        } | settings
        self.configure()
        self.server = self.make_server()

    def configure(self, **settings: object) -> None:
        """Other settings, for the next server."""
        self._settings |= settings
        self.config = ServerConfig.model_validate(self._settings)
        for name, entry in self.config.clients.items():
            assert entry.read_key(self._directory, ("server", "clients", name)) == []

    def listen(self, *addresses: str) -> None:
        """Other addresses to listen on, for the next server; clients go to the port of the first."""
        self.configure(listen=list(addresses))
        self.port = int(addresses[0].rpartition(":")[2])

    def make_server(self, fdstore: FdStore | None = None) -> Server:
        return Server(self.config, self.kernel, self.hooks, asyncio.get_running_loop(), fdstore)

    async def restart(self) -> None:
        """As after a power failure: the clients are not told."""
        for link in list(self.server.demux.links):
            link.close("stopped", "", tell=False)
        await self.server.stop()
        self.server = self.make_server()
        await self.server.start()

    def tun(self, name: str = "dtun-demo") -> FakeTun:
        return self.kernel.tuns[name]

    def routes(self) -> frozenset[Route]:
        """What its kernel routes to clients: all but the pool, whose other addresses are unreachable."""
        return frozenset(route for route in self.kernel.state.routes if route.kind == "unicast")

    def drops(self) -> Counter[str]:
        drops = self.server.status()["drops"]
        assert isinstance(drops, dict)
        return Counter(drops)

    def row(self, name: str = "demo") -> dict[str, Any]:
        """This client's row in the status."""
        rows = self.server.status()["tunnels"]
        assert isinstance(rows, list)
        return next(row for row in rows if row["id"] == name)


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[Site]:
    """A site that serves, and leaves nothing behind."""
    made = Site(directory)
    await made.server.start()
    yield made
    await made.server.stop()
    assert made.kernel.state.devices == frozenset()
    assert all(tun.closed for tun in made.kernel.tuns.values())


class RawClient:
    """A client's session whose socket the test drives."""

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
        self.hello: Message | None = Hello(
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
            if not self.events and self.hello is not None:
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

    @property
    def closed(self) -> Closed | None:
        return next((event for event in self.events if isinstance(event, Closed)), None)

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


async def sees_packet(site: Site, client: RawClient, data: bytes) -> None:
    """The server's host gets this packet from the client."""
    client.send(data)
    await wait_for(lambda: data in waiting_at(site.tun().host), "the packet at the server's host")


async def closed_text(client: RawClient) -> str:
    def hears_it() -> bool:
        # After its goodbye the server may have closed the socket.
        with suppress(ConnectionRefusedError):
            client.turn()
        return client.closed is not None

    await wait_for(hears_it, "the goodbye")
    assert client.closed is not None
    return client.closed.text


class Home:
    """A whole client."""

    def __init__(
        self, site: Site, directory: Path, backoff: Backoff | None = None, **settings: object
    ) -> None:
        self.kernel = FakeKernel()
        self.hooks = HookLog()
        self.directory = directory
        self.settings: dict[str, object] = {
            "servers": f"127.0.0.1:{site.port}",
            "id": "demo",
            "key": KEY,
            "subnets": [str(LAN)],
            "routes": ["192.0.2.0/24"],
            "up": "/up",
            "down": "/down",
            "runtime_directory": str(directory),
        } | settings
        self.client = self.make_client(backoff=backoff)

    def make_client(
        self, fdstore: FdStore | None = None, *, backoff: Backoff | None = None, **settings: object
    ) -> Client:
        loop = asyncio.get_running_loop()
        return Client(self.config(**settings), self.kernel, self.hooks, loop, fdstore, backoff=backoff)

    def config(self, **settings: object) -> ClientConfig:
        """This client's configuration, but for these settings."""
        config = ClientConfig.model_validate(self.settings | settings)
        assert config.read_key(self.directory, ("client",)) == []
        return config

    def link(self) -> Link | None:
        return self.client.link

    def row(self) -> dict[str, Any]:
        """The tunnel in the status."""
        rows = self.client.status()["tunnels"]
        assert isinstance(rows, list)
        return next(iter(rows))


@asynccontextmanager
async def started(home: Home) -> AsyncIterator[Home]:
    await home.client.start()
    running = asyncio.create_task(home.client.run(), name="run")
    try:
        yield home
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        await home.client.stop()


async def in_service(home: Home, *, other_than: Link | None = None) -> Link:
    await wait_for(lambda: home.link() not in (None, other_than), "a session in service")
    link = home.link()
    assert link is not None
    return link


async def settled() -> None:
    """Nothing runs but the test and the clients' main tasks."""
    test = asyncio.current_task()
    await wait_for(
        lambda: all(task is test or task.get_name() == "run" for task in asyncio.all_tasks()),
        "everything to be settled",
    )


async def through(site: Site, home: Home, number: int) -> None:
    """A packet goes from behind the client to the server's host."""
    data = packet("10.0.0.1", number=number)
    home.kernel.tuns["dtun0"].host.send(data)
    await wait_for(lambda: data in waiting_at(site.tun().host), f"packet {number}")
