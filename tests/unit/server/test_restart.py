"""A server resumes the sessions of the process before it."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dtun.config import ClientEntry
from dtun.handover.fdstore import listener_name, sessions
from dtun.platform.interface import LocalNetwork
from dtun.session.link import Link
from tests.unit.fakes import FakeFdStore
from tests.unit.sites import OTHER_KEY, RawClient, Site, closed_text, packet, sees_packet, wait_for

REKEYED = {name: {"key": OTHER_KEY} for name in ("demo", "old")}


@asynccontextmanager
async def suspended(
    directory: Path, fdstore: FakeFdStore | None = None
) -> AsyncIterator[tuple[Site, RawClient]]:
    """A site between two processes, and a client that was connected. Its next server can be started."""
    site, fdstore = Site(directory), fdstore or FakeFdStore()
    site.server = site.make_server(fdstore)
    await site.server.start()
    client = RawClient(site)
    with client.socket:
        await client.connect()
        await wait_for(lambda: site.hooks.ran != [], "the up hook")
        before = list(site.server.demux.links)
        await site.server.suspend()
        fdstore.start_successor()
        site.server = site.make_server(fdstore)
        _close_sockets(before)
        try:
            yield site, client
        finally:
            await site.server.stop()
            for link in before:
                link.close("stopped", "", tell=False)
            fdstore.close()


def _close_sockets(links: list[Link]) -> None:
    """As the end of their process does, which neither says goodbye nor forgets them."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for link in links:
        os.dup2(nothing, link.fileno())
    os.close(nothing)


async def test_a_session_is_resumed(tmp_path: Path) -> None:
    async with suspended(tmp_path) as (site, client):
        await site.server.start()
        await sees_packet(site, client, packet("10.0.0.1"))
        assert site.row()["state"] == "connected"
        client.session.close("stopped", "done", 0)
        client.turn()
        await wait_for(lambda: len(site.hooks.ran) == 2, "the down hook")
    assert [line.split()[0] for line in site.hooks.ran] == ["/up", "/down"]


async def test_a_client_that_leaves_during_the_start_does_not_stop_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "dtun")
    async with suspended(tmp_path) as (site, client):
        client.session.close("stopped", "never mind", 0)
        client.turn()

        async def slow() -> list[LocalNetwork]:
            await wait_for(lambda: not list(site.server.demux.links), "the goodbye to arrive")
            return []

        site.kernel.local_networks = slow  # type: ignore[method-assign]
        await site.server.start()
        assert site.row()["state"] == "away"
        await wait_for(lambda: len(site.hooks.ran) == 2, "the down hook")
    assert site.hooks.ran[1].startswith("/down demo stopped")
    assert "demo: away, the client closed the session: never mind" in caplog.messages


@pytest.mark.parametrize("error", [ValueError("odd"), RuntimeError("a bug")])
async def test_a_session_that_cannot_be_resumed_does_not_stop_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> bool:
        raise error

    async with suspended(tmp_path) as (site, _):
        with monkeypatch.context() as patch:
            patch.setattr(ClientEntry, "grants", fail)
            await site.server.start()
        assert list(site.server.demux.links) == []
        assert "cannot resume the session" in caplog.text
        again = RawClient(site)
        with again.socket:
            await again.connect()


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _restart(site: Site, fdstore: FakeFdStore, *listen: str) -> None:
    links = list(site.server.demux.links)
    await site.server.suspend()
    _close_sockets(links)
    fdstore.start_successor()
    site.listen(*listen)
    site.server = site.make_server(fdstore)
    await site.server.start()


async def test_the_port_is_changed_and_changed_back(tmp_path: Path) -> None:
    """The socket of a session at the former port would hold it for as long as the service manager keeps it."""
    fdstore = FakeFdStore()
    async with suspended(tmp_path, fdstore) as (site, client):
        before = site.port
        site.listen(f"127.0.0.1:{_free_port()}")
        site.server = site.make_server(fdstore)
        await site.server.start()
        assert await closed_text(client) == "the server does not listen on this address any more"
        assert before not in fdstore.ports
        await _restart(site, fdstore, f"127.0.0.1:{before}")
        again = RawClient(site)
        with again.socket:
            await again.connect()


@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1"])
async def test_sessions_stay_when_the_server_listens_on_more_or_on_less(tmp_path: Path, address: str) -> None:
    """Their sockets have the port on which it is to listen."""
    fdstore = FakeFdStore()
    async with suspended(tmp_path, fdstore) as (site, client):
        site.listen(f"{address}:{site.port}", f"[::1]:{site.port}")
        fdstore.forget(listener_name(f"127.0.0.1:{site.port}"))
        site.server = site.make_server(fdstore)
        await site.server.start()
        await sees_packet(site, client, packet("10.0.0.1"))


async def test_a_session_that_cannot_be_resumed_leaves_nothing_in_the_store(tmp_path: Path) -> None:
    fdstore = FakeFdStore()
    async with suspended(tmp_path, fdstore) as (site, client):
        site.configure(clients=REKEYED)
        site.server = site.make_server(fdstore)
        await site.server.start()
        fdstore.start_successor()
        assert sessions(fdstore) == []
        assert await closed_text(client) == "cannot be resumed after the restart of the server"


async def test_packets_wait_for_the_session_to_be_resumed(tmp_path: Path) -> None:
    async with suspended(tmp_path) as (site, client):
        site.tun().host.send(packet("192.0.2.9", "10.0.0.1"))
        turns = 0

        async def slow() -> list[LocalNetwork]:
            nonlocal turns
            for turns in range(20):  # noqa: B007 - whatever reads the device has had its turn
                await asyncio.sleep(0)
            return []

        site.kernel.local_networks = slow  # type: ignore[method-assign]
        await site.server.start()
        assert turns == 19
        assert await client.next_packets() == [packet("192.0.2.9", "10.0.0.1")]
        assert site.row()["drops"] == {}


async def test_without_a_session_packets_do_not_wait(tmp_path: Path) -> None:
    """What waits for long is of no use to anybody."""
    fdstore = FakeFdStore()
    async with suspended(tmp_path, fdstore) as (site, _):
        site.configure(clients=REKEYED)
        site.server = site.make_server(fdstore)
        await site.server.start()
        site.tun().host.send(packet("192.0.2.9", "10.0.0.1"))
        await wait_for(lambda: site.row()["drops"] == {"no session": 1}, "the drop")
