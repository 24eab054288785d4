"""A server resumes the sessions of the process before it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dtun.config import ClientEntry
from dtun.platform.interface import LocalNetwork
from tests.unit.fakes import FakeFdStore
from tests.unit.sites import RawClient, Site, packet, sees_packet, wait_for


@asynccontextmanager
async def suspended(directory: Path) -> AsyncIterator[tuple[Site, RawClient]]:
    """A site between two processes, and a client that was connected. Its next server can be started."""
    site, fdstore = Site(directory), FakeFdStore()
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
        yield site, client
        await site.server.stop()
    for link in before:
        link.close("stopped", "", tell=False)
    fdstore.close()


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
