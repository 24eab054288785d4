"""How a client finds a server: names, several addresses, servers that are silent, and the way for the look-ups."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from typing import Any

import pytest

from dtun.client import dialer, race
from dtun.client.dialer import Dialer
from dtun.config import Config
from dtun.network.state import Dns, Route
from dtun.session.link import Link
from dtun.session.udp import SockAddr
from tests.unit.sites import Home, Site, in_service, settled, started, wait_for

NAME = "vpn.example"
RESOLVER = IPv4Address("203.0.113.53")
PIN = Route(ip_network("203.0.113.53/32"), "eth0")


class Names:
    """The host's resolver: what it answers, and who asked what while which routes were there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers: dict[str, list[SockAddr]] = {}
        self.asked: list[str] = []
        self.home: Home | None = None
        self.seen: list[tuple[frozenset[Route], frozenset[Dns]]] = []
        self.answering = asyncio.Event()
        self.answering.set()
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", self.getaddrinfo)

    async def getaddrinfo(self, host: str, port: int, **_: Any) -> list[Any]:
        if host in self.answers:
            self.asked.append(host)
            if self.home is not None:
                self.seen.append((self.home.kernel.state.routes, self.home.kernel.state.dns))
            await self.answering.wait()
        answers = self.answers.get(host, [(host, port)])
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", answer) for answer in answers]


@pytest.fixture
async def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    return Names(monkeypatch)


@pytest.fixture
async def other_site(tmp_path: Path) -> AsyncIterator[Site]:
    directory = tmp_path / "other"
    directory.mkdir()
    site = Site(directory)
    await site.server.start()
    yield site
    await site.server.stop()


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that does not answer."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{sock.getsockname()[1]}"


def at(site: Site) -> SockAddr:
    return ("127.0.0.1", site.port)


async def renew(home: Home) -> Link:
    """Make another session, as if the host had slept."""
    link = home.link()
    assert home.kernel.woke is not None
    home.kernel.woke(60)
    return await in_service(home, other_than=link)


async def test_a_renewal_stays_with_the_server(
    site: Site, other_site: Site, tmp_path: Path, names: Names
) -> None:
    names.answers[NAME] = [at(site), at(other_site)]
    async with started(Home(site, tmp_path, servers=NAME)) as home:
        assert (await in_service(home)).peer == at(site)
        names.answers[NAME].reverse()
        asked = len(names.asked)
        assert (await renew(home)).peer == at(site)
        assert len(names.asked) == asked, "no need to look anything up"


async def test_a_renewal_takes_another_server_if_its_own_is_gone(
    site: Site, other_site: Site, tmp_path: Path, names: Names, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    names.answers[NAME] = [at(site), at(other_site)]
    async with started(Home(site, tmp_path, servers=NAME)) as home:
        await in_service(home)
        for link in list(site.server.demux.links):
            link.close("stopped", "", tell=False)  # as after a power failure
        await site.server.stop()
        assert (await renew(home)).peer == at(other_site)
        assert f"moved from 127.0.0.1:{site.port} to 127.0.0.1:{other_site.port}" in caplog.text
    await site.server.start()


async def test_other_servers_in_the_file_are_a_reason_to_move(
    site: Site, other_site: Site, tmp_path: Path
) -> None:
    async with started(Home(site, tmp_path)) as home:
        link = await in_service(home)
        home.settings["servers"] = [f"127.0.0.1:{other_site.port}", f"127.0.0.1:{site.port}"]
        await home.client.reload(Config(None, home.config(), None), dry_run=False)
        assert (await in_service(home, other_than=link)).peer == at(other_site)


async def test_a_silent_server_holds_nothing_up(
    site: Site, tmp_path: Path, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialer, "ATTEMPT_TIME", 3600)
    monkeypatch.setattr(race, "STAGGER", 0.05)
    async with started(Home(site, tmp_path, servers=[silent, f"127.0.0.1:{site.port}"])) as home:
        assert (await in_service(home)).peer == at(site)
        await settled()
        assert site.server.status()["drops"] == {}


async def test_a_name_without_an_answer_holds_nothing_up(
    site: Site, tmp_path: Path, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialer, "RESOLVE_TIME", 3600)
    monkeypatch.setattr(race, "STAGGER", 0.05)
    names.answers[NAME] = []
    names.answering.clear()
    async with started(Home(site, tmp_path, servers=[NAME, f"127.0.0.1:{site.port}"])) as home:
        assert (await in_service(home)).peer == at(site)
        await settled()


async def test_a_server_that_answers_is_waited_for(
    site: Site, other_site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(race, "STAGGER", 3600)
    servers = [f"127.0.0.1:{site.port}", f"127.0.0.1:{other_site.port}"]
    async with started(Home(site, tmp_path, servers=servers)) as home:
        assert (await in_service(home)).peer == at(site)
        assert list(other_site.server.demux.links) == []


async def test_two_addresses_of_one_server_get_one_login(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the second login would replace the first one, and the client would use the dead session."""
    monkeypatch.setattr(race, "STAGGER", 0)
    both = [f"127.0.0.1:{Site(tmp_path).port}"]
    both.append(both[0].replace("127.0.0.1", "127.0.0.2"))
    site = Site(tmp_path, listen=both)
    await site.server.start()
    said = []
    say = Dialer._send_hello

    def counted(dialer: Dialer, link: Link) -> None:
        said.append(link.endpoint)
        say(dialer, link)

    monkeypatch.setattr(Dialer, "_send_hello", counted)
    async with started(Home(site, tmp_path, servers=both)) as home:
        async with site.server.identities.lock:  # so that the login takes its time
            attempts = home.client._dialer._attempts
            await wait_for(
                lambda: [one.established for one in attempts.values()] == [True, True], "both handshakes"
            )
            assert len(said) == 1
        link = await in_service(home)
        await settled()
        await wait_for(lambda: len(list(site.server.demux.links)) == 1, "the other to be given up")
        assert home.link() is link
        assert said == [link.endpoint]
    await site.server.stop()


@asynccontextmanager
async def without_server(
    site: Site, directory: Path, names: Names, **settings: object
) -> AsyncIterator[Home]:
    """A client that has lost its session, and has looked for the server again."""
    names.answers[NAME] = [at(site)]
    home = Home(site, directory, None, servers=NAME, **settings)
    home.kernel.resolvers = [RESOLVER]
    async with started(home):
        await in_service(home)
        await settled()
        names.home = home
        await site.server.stop()
        await wait_for(lambda: home.link() is None and names.seen != [], "a look-up")
        yield home
    await site.server.start()


async def test_names_are_looked_up_outside_while_there_is_no_session(
    site: Site, tmp_path: Path, names: Names
) -> None:
    async with without_server(site, tmp_path, names, routes="everything") as home:
        assert all(PIN in routes for routes, _ in names.seen)
        await wait_for(lambda: PIN not in home.kernel.state.routes, "the way to be closed")
        assert Route(ip_network("0.0.0.0/1"), "dtun0") in home.kernel.state.routes, "the rest is kept"


async def test_the_tunnels_name_servers_for_all_names_are_released_meanwhile(
    site: Site, tmp_path: Path, names: Names
) -> None:
    settings = {"dns": ["192.0.2.53"], "dns_domains": ["~."]}
    async with without_server(site, tmp_path, names, **settings) as home:
        assert [dns for _, dns in names.seen] == [frozenset()] * len(names.seen)
        await site.server.start()
        await in_service(home)
        await wait_for(lambda: home.kernel.state.dns != frozenset(), "them to be back")
        await site.server.stop()


@pytest.mark.parametrize(("domain", "kept"), [("~corp.example", True), ("~vpn.example", False)])
async def test_those_for_some_names_only_if_a_server_is_among_them(
    site: Site, tmp_path: Path, names: Names, domain: str, kept: bool
) -> None:
    settings = {"dns": ["192.0.2.53"], "dns_domains": [domain]}
    async with without_server(site, tmp_path, names, **settings):
        assert all((dns != frozenset()) is kept for _, dns in names.seen)


async def test_a_kill_switch_blocks_look_ups_too(site: Site, tmp_path: Path, names: Names) -> None:
    settings: dict[str, object] = {"routes": "everything", "on_disconnect": "block", "dns": ["192.0.2.53"]}
    async with without_server(site, tmp_path, names, **settings):
        assert all(PIN not in routes and dns for routes, dns in names.seen)


async def test_a_look_up_that_went_into_the_dead_tunnel_is_made_again(
    site: Site, other_site: Site, tmp_path: Path, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialer, "RESOLVE_TIME", 3600)
    names.answers[NAME] = [at(site)]
    home = Home(site, tmp_path, servers=NAME, routes="everything")
    home.kernel.resolvers = [RESOLVER]
    async with started(home):
        link = await in_service(home)
        await settled()
        for served in list(site.server.demux.links):
            served.close("stopped", "", tell=False)
        await site.server.stop()
        names.home, asked = home, len(names.asked)
        names.answering.clear()
        assert home.kernel.woke is not None
        home.kernel.woke(60)
        await wait_for(lambda: len(names.asked) > asked, "a look-up")
        assert PIN not in names.seen[-1][0], "the session may still be alive"
        names.answers[NAME] = [at(other_site)]
        link.close("timeout", "nothing was received", tell=False)
        await wait_for(lambda: PIN in names.seen[-1][0], "another look-up")
        names.answering.set()
        assert (await in_service(home)).peer == at(other_site)
    await site.server.start()
