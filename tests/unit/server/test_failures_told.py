"""Status and log of both ends tell why a tunnel does not carry: the latest failure with its time, in words."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from dtun.cli.status import render
from dtun.client.client import FORWARDS_NOT, SERVER_FORWARDS_NOT
from dtun.dtls.association import KEY_REFUSED
from tests.unit.sites import (
    KEY,
    LAN,
    OTHER_KEY,
    Home,
    RawClient,
    Site,
    in_service,
    serving,
    settled,
    started,
    wait_for,
)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with serving(tmp_path) as made:
        yield made


@asynccontextmanager
async def with_two_keys(directory: Path) -> AsyncIterator[Site]:
    """A server whose client demo is about to change its key."""
    (directory / "next.key").touch(0o600)
    (directory / "next.key").write_text(OTHER_KEY)
    entry = {"key": KEY, "next_key_file": str(directory / "next.key"), "subnets": [str(LAN)]}
    made = Site(directory, clients={"demo": entry})
    await made.server.start()
    yield made
    await made.server.stop()


def failure(row: dict[str, Any]) -> str:
    """The reason of the latest failure, which was a moment ago."""
    told = row["last_failure"]
    if told is None:
        return ""
    assert abs((datetime.now(UTC) - datetime.fromisoformat(told["time"])).total_seconds()) < 60
    return str(told["reason"])


async def test_a_wrong_key_is_told_at_both_ends(site: Site, tmp_path: Path) -> None:
    async with started(Home(site, tmp_path, key=OTHER_KEY)) as home:
        await wait_for(lambda: failure(home.row()) != "", "the failure at the client")
        assert failure(home.row()) == f"127.0.0.1:{site.port}: {KEY_REFUSED}"
        assert KEY_REFUSED in home.client.summary()
        at_server = failure(site.row())
        assert at_server.startswith("a handshake from 127.0.0.1:")
        assert at_server.endswith("failed: wrong key")
        assert site.row()["last_error"] is None, "no session has ended"


async def test_an_id_that_nobody_has_is_told_at_the_server(site: Site, tmp_path: Path) -> None:
    async with started(Home(site, tmp_path, id="hoem")) as home:
        await wait_for(lambda: failure(home.row()) != "", "the failure at the client")
        status = site.server.status()
        assert failure(status).endswith("with id 'hoem' failed: unknown id")
        shown = render({**status, "role": "server"}, datetime.now(UTC))
        assert "with id 'hoem' failed: unknown id (" in shown


async def test_the_failure_is_told_after_the_tunnel_is_up_again(site: Site, tmp_path: Path) -> None:
    async with started(Home(site, tmp_path)) as home:
        before = await in_service(home)
        site.server.kick("demo")
        await in_service(home, other_than=before)
        assert failure(home.row()) == "ended by the administrator of the server"
        assert failure(site.row()) == "ended by the administrator of the server"
        assert home.row()["last_error"] is site.row()["last_error"] is None


async def test_a_client_whose_key_is_being_changed_is_let_in_without_an_alarm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with with_two_keys(tmp_path) as site:
        async with started(Home(site, tmp_path)) as old:
            await in_service(old)
            await settled()
        caplog.clear()
        async with started(Home(site, tmp_path, key=OTHER_KEY)) as new:
            await in_service(new)
            assert (failure(new.row()), failure(site.row())) == ("", "")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_refused_subnet_is_marked_at_both_ends(site: Site, tmp_path: Path) -> None:
    async with started(Home(site, tmp_path, subnets=["10.0.1.0/24", "10.1.0.0/16"])) as home:
        await in_service(home)
        why = "the server's configuration does not allow it for this client"
        for row in (home.row(), site.row()):
            assert row["refused_subnets"] == {"10.1.0.0/16": why}
            assert any("10.1.0.0/16" in warning and why in warning for warning in row["warnings"])
        assert site.row()["subnets"] == ["10.0.1.0/24"]


async def test_a_login_that_is_not_finished_is_told(site: Site) -> None:
    client = RawClient(site)
    client.hello = None
    await client.until(lambda: client.events != [], "the handshake")
    for link in list(site.server.demux.links):
        link.close("timeout", "nothing was received for 3 s")
    client.socket.close()
    assert "ended before its login: nothing was received" in failure(site.row())


async def test_ends_that_do_not_forward_are_told(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site.kernel.settings.clear()
    home = Home(site, tmp_path)
    home.kernel.settings.clear()
    async with started(home):
        await in_service(home)
        assert home.row()["warnings"] == [SERVER_FORWARDS_NOT, FORWARDS_NOT]
    assert SERVER_FORWARDS_NOT in caplog.text
    alone = Home(site, tmp_path, subnets=["10.0.0.1/32"], routes=["10.86.0.1/32"])
    alone.kernel.settings.clear()
    async with started(alone):
        await in_service(alone)
        assert alone.row()["warnings"] == [], "single addresses may be those of the ends themselves"


async def test_the_client_says_for_how_long_it_has_no_session(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(Home(site, tmp_path, key=OTHER_KEY)) as home:
        await wait_for(lambda: failure(home.row()) != "", "the failure at the client")
        assert home.client.summary().startswith(f"connecting to 127.0.0.1:{site.port}: ")
        monkeypatch.setattr(home.client, "_without_since", home.client._without_since - 7300)
        assert home.client.summary().startswith(f"connecting to 127.0.0.1:{site.port} for 2 h 1 min: ")
