"""A client resumes the session of the process before it, if it is to have the same."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from dtun.client import client
from dtun.handover.fdstore import sessions
from dtun.platform.interface import LocalNetwork
from dtun.session.link import Link
from tests.unit.fakes import FakeFdStore
from tests.unit.sites import Home, Site, in_service, packet, settled, started, through, wait_for, waiting_at


@asynccontextmanager
async def suspended(site: Site, directory: Path) -> AsyncIterator[tuple[Home, FakeFdStore]]:
    """A client between two processes. Its successor gets what is in the store."""
    home, fdstore = Home(site, directory), FakeFdStore()
    home.client = home.make_client(fdstore)
    await home.client.start()
    running = asyncio.create_task(home.client.run(), name="run")
    before = await in_service(home)
    await settled()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await home.client.suspend()
    fdstore.start_successor()
    try:
        yield home, fdstore
    finally:
        before.close("stopped", "", tell=False)
        fdstore.close()


async def test_a_session_is_resumed_without_another_login(site: Site, tmp_path: Path) -> None:
    async with suspended(site, tmp_path) as (home, fdstore):
        (served,) = site.server.demux.links
        home.client = home.make_client(fdstore)
        async with started(home):
            assert home.link() is not None, "at once"
            await through(site, home, 1)
            assert list(site.server.demux.links) == [served]
    assert [line.split()[0] for line in home.hooks.ran] == ["/up", "/down"], "as if it had been one process"


@pytest.mark.parametrize("change", [{}, {"mtu": 1300}, {"routes": ["198.51.100.0/24"]}, {"id": "demo2"}])
async def test_the_device_stays_whatever_has_changed(
    site: Site, tmp_path: Path, change: dict[str, Any]
) -> None:
    async with suspended(site, tmp_path) as (home, fdstore):
        device = home.kernel.tuns["dtun0"]
        home.client = home.make_client(fdstore, **change)
        async with started(home):
            assert home.kernel.tuns["dtun0"] is device
            assert not device.closed


async def test_packets_wait_for_the_session_to_be_resumed(site: Site, tmp_path: Path) -> None:
    """However long the kernel takes to say what it has."""
    async with suspended(site, tmp_path) as (home, fdstore):
        data = packet("10.0.0.1", number=7)
        home.kernel.tuns["dtun0"].host.send(data)

        async def slow() -> list[LocalNetwork]:
            for _ in range(20):  # whatever reads the device has had its turn
                await asyncio.sleep(0)
            return []

        home.kernel.local_networks = slow  # type: ignore[method-assign]
        home.client = home.make_client(fdstore)
        async with started(home):
            await wait_for(lambda: data in waiting_at(site.tun().host), "the packet")
            assert home.row()["drops"] == {}


async def test_another_configuration_needs_another_session(site: Site, tmp_path: Path) -> None:
    async with suspended(site, tmp_path) as (home, fdstore):
        home.client = home.make_client(fdstore, subnets=["10.0.5.0/24"])
        async with started(home):
            assert home.link() is None
            await in_service(home)
            assert home.row()["subnets"] == ["10.0.5.0/24"]
            fdstore.start_successor()
            assert sessions(fdstore) == ["dtun0"], "the new one"


async def test_a_session_that_the_server_ended_meanwhile_is_followed_by_another(
    site: Site, tmp_path: Path
) -> None:
    async with suspended(site, tmp_path) as (home, fdstore):
        for link in list(site.server.demux.links):
            link.close("other", "for the test")
        home.client = home.make_client(fdstore)
        async with started(home):
            resumed = home.link()
            await wait_for(lambda: home.link() is not resumed, "the goodbye")
            await in_service(home)
            await through(site, home, 1)


async def test_a_session_that_ends_during_the_start_is_followed_by_another(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Link] = []

    def make_link(*args: Any, **kwargs: Any) -> Link:
        made.append(Link(*args, **kwargs))
        return made[-1]

    async def slow() -> list[LocalNetwork]:
        await wait_for(lambda: not made or made[0].ended(), "the goodbye to arrive")
        return []

    async with suspended(site, tmp_path) as (home, fdstore):
        for link in list(site.server.demux.links):
            link.close("other", "for the test")
        monkeypatch.setattr(client, "Link", make_link)
        home.kernel.local_networks = slow  # type: ignore[method-assign]
        home.client = home.make_client(fdstore)
        async with started(home):
            await in_service(home)
            await through(site, home, 1)
