"""What the tests of a whole server and a whole client begin with."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.unit.sites import Home, RawClient, Site, serving, started


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with serving(tmp_path) as made:
        yield made


@pytest.fixture
async def make_client(site: Site) -> AsyncIterator[Callable[..., RawClient]]:
    made: list[RawClient] = []

    def make(name: str = "demo", *, go: bool = False, subnets: bool = True) -> RawClient:
        made.append(RawClient(site, name, go=go, subnets=subnets))
        return made[-1]

    yield make
    for client in made:
        client.socket.close()


@pytest.fixture
async def home(site: Site, tmp_path: Path) -> AsyncIterator[Home]:
    async with started(Home(site, tmp_path)) as made:
        yield made
    assert made.kernel.state.devices == frozenset()
