"""Floods of ClientHellos from one host, on loopback: sessions and honest logins hardly notice."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from dtun.dtls.engine import ClientEngine
from tests.unit.sites import RawClient, Site, serving, wait_for

ATTACKER = "127.0.0.66"
HELLOS = 600


class Attacker:
    """A host of its own with many ports, which fetches a cookie for each hello and sends them all at once."""

    def __init__(self, site: Site, hellos: int) -> None:
        self.target = ("127.0.0.1", site.port)
        self.hellos = hellos
        self.sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(8)]
        for sock in self.sockets:
            sock.bind((ATTACKER, 0))
            sock.setblocking(False)

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()

    async def cookies(self) -> list[tuple[socket.socket, bytes]]:
        """A hello with a valid cookie for each client, and the socket to send it from."""
        loop = asyncio.get_running_loop()
        hellos = []
        engine = ClientEngine("nobody", bytes(32), native=True)
        for number in range(self.hellos):
            client = engine.associate(0.0)
            sock = self.sockets[number % len(self.sockets)]
            (hello,) = client.take_outgoing()
            sock.sendto(hello, self.target)
            client.receive(await asyncio.wait_for(loop.sock_recv(sock, 2048), 10), 0.0)
            # If the answer was late, the client has sent its first hello again before this one.
            hellos.append((sock, client.take_outgoing()[-1]))
        return hellos


class Turns:
    """The processor time that the event loop takes between two turns of a task that is always ready."""

    def __init__(self) -> None:
        self.longest = 0.0
        self.task = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        before = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            self.longest, before = max(self.longest, now - before), now


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with serving(tmp_path) as made:
        yield made


@asynccontextmanager
async def attacked(
    site: Site, hellos: int = HELLOS
) -> AsyncIterator[tuple[Attacker, list[tuple[socket.socket, bytes]]]]:
    attacker = Attacker(site, hellos)
    try:
        yield attacker, await attacker.cookies()
    finally:
        attacker.close()


def chunks(
    hellos: list[tuple[socket.socket, bytes]], size: int
) -> Iterator[list[tuple[socket.socket, bytes]]]:
    for start in range(0, len(hellos), size):
        yield hellos[start : start + size]


async def test_a_flood_with_cookies_holds_up_nobody(site: Site) -> None:
    honest = RawClient(site)
    with closing(honest.socket):
        await flooded(site, honest)


async def flooded(site: Site, honest: RawClient) -> None:
    async with attacked(site) as (attacker, hellos):
        turns = Turns()
        cpu = time.thread_time()
        for number, chunk in enumerate(chunks(hellos, 50)):
            for sock, hello in chunk:
                sock.sendto(hello, attacker.target)
            if number == 2:
                began = time.monotonic()
                await honest.connect()
                took = time.monotonic() - began
            await asyncio.sleep(0.002)
        await wait_for(
            lambda: site.drops()["handshake budget of the source"] > HELLOS / 2, "the end of the flood"
        )
        turns.task.cancel()
        assert took < 2
        assert turns.longest < 0.05
        assert time.thread_time() - cpu < HELLOS * 0.002
        assert site.server.status()["handshake_budget"]
