"""A running service reads its configuration again, on SIGHUP or when asked."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from dtun.config import Config, load
from dtun.errors import ConfigError, UnavailableError
from dtun.service import notify
from dtun.service.commands import commands
from dtun.service.reload import NO_CHANGE, Reloader

KEY = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="


class Restarting:
    """A role that has to be restarted for another configuration."""

    async def start(self) -> None: ...

    async def run(self) -> None: ...

    async def suspend(self) -> None: ...

    async def stop(self) -> None: ...

    def status(self) -> dict[str, object]:
        return {"tunnels": []}

    def summary(self) -> str:
        return "2 clients"

    def stalled(self) -> bool:
        return False


def _nothing() -> None:
    """For what nobody asks for here."""


class Live(Restarting):
    """A role that goes on with another configuration, and has clients."""

    def __init__(self) -> None:
        self.got: list[tuple[Config, bool]] = []
        self.lines: list[str] = []

    async def reload(self, config: Config, *, dry_run: bool) -> list[str]:
        self.got.append((config, dry_run))
        return self.lines

    def kick(self, name: str) -> str:
        if name != "demo":
            raise UnavailableError(f"there is no client {name}")
        return "gone"


class World:
    def __init__(self, directory: Path) -> None:
        self.path = directory / "dtun.yaml"
        self.write("keepalive: 10")
        self.live = Live()
        self.asked = asyncio.Event()
        self.reloader = Reloader(load(self.path), self.live, self.asked)

    def write(self, setting: str) -> None:
        text = f"server:\n  {setting}\n  clients:\n    demo:\n      key: {KEY}\n"
        self.path.write_text(text)
        self.path.chmod(0o600)

    def keepalives(self) -> list[float]:
        return [config.server.keepalive for config, _ in self.live.got if config.server]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the service manager hears."""
    found: list[str] = []

    def hear(*assignments: str) -> bool:
        found.extend(assignments)
        return True

    monkeypatch.setattr(notify, "notify", hear)
    return found


async def test_the_file_is_read_again_and_the_service_manager_told(
    world: World, told: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dtun")
    world.write("keepalive: 7")
    world.live.lines = ["keepalive: 7", "error: but not all of it"]
    assert await world.reloader.reload(dry_run=False) == world.live.lines
    assert world.keepalives() == [7]
    assert [line.partition("=")[0] for line in told] == ["RELOADING", "MONOTONIC_USEC", "READY", "STATUS"]
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "reload: keepalive: 7"),
        ("ERROR", "reload: error: but not all of it"),
    ]


async def test_a_dry_run_is_the_services_own_and_nobody_is_told(world: World, told: list[str]) -> None:
    assert await world.reloader.reload(dry_run=True) == [NO_CHANGE]
    assert [dry_run for _, dry_run in world.live.got] == [True]
    assert told == []


async def test_a_file_with_a_mistake_changes_nothing(world: World, told: list[str]) -> None:
    world.write("keepalive: often")
    with pytest.raises(ConfigError) as error:
        await world.reloader.reload(dry_run=False)
    assert f"{world.path}:2:14: server.keepalive: " in str(error.value)
    assert str(error.value).endswith("\nreload: nothing was changed")
    assert world.live.got == []
    assert told[-2:] == ["READY=1", "STATUS=2 clients"], "it is as ready as before"


async def test_what_should_not_stay_so_is_said(world: World) -> None:
    world.path.chmod(0o644)
    assert any(line.startswith("warning: ") for line in await world.reloader.reload(dry_run=True))


async def test_without_a_file_there_is_nothing_to_read(world: World) -> None:
    config = load(world.path)
    quick = Reloader(Config(config.server, None, None), world.live, world.asked)
    with pytest.raises(ConfigError, match="started without a file"):
        await quick.reload(dry_run=False)


async def test_a_role_that_cannot_says_that_it_needs_a_restart(world: World) -> None:
    reloader = Reloader(load(world.path), Restarting(), world.asked)
    assert await reloader.reload(dry_run=False) == [NO_CHANGE]
    world.write("keepalive: 7")
    (line,) = await reloader.reload(dry_run=False)
    assert "needs a restart" in line


@pytest.fixture
async def running(world: World) -> AsyncIterator[World]:
    task = asyncio.create_task(world.reloader.run())
    yield world
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - a condition of somebody who has no event for it
            await asyncio.sleep(0.001)


async def test_each_hang_up_is_a_reload_whatever_came_of_the_one_before(
    running: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.write("keepalive: often")
    running.asked.set()
    await until(lambda: "nothing was changed" in caplog.text)

    async def fail(config: Config, *, dry_run: bool) -> list[str]:
        raise RuntimeError(f"a bug in {config.path}, {dry_run}")

    running.write("keepalive: 5")
    with monkeypatch.context() as patch:
        patch.setattr(running.live, "reload", fail)
        running.asked.set()
        await until(lambda: "a bug in" in caplog.text)
    running.asked.set()
    await until(lambda: running.keepalives() == [5])


async def test_what_can_be_asked_at_the_control_socket(world: World) -> None:
    asked = commands(world.live, world.reloader, lambda: {"role": "server"}, _nothing)
    assert await asked["status"]({}) == {"role": "server"}
    assert await asked["reload"]({"dry_run": True}) == {"lines": [NO_CHANGE], "failed": False}
    world.live.lines = ["error: no"]
    assert await asked["reload"]({}) == {"lines": ["error: no"], "failed": True}
    assert [dry_run for _, dry_run in world.live.got] == [True, False]
    assert await asked["kick"]({"id": "demo"}) == {"lines": ["gone"]}
    with pytest.raises(UnavailableError, match="no client x"):
        await asked["kick"]({"id": "x"})


@pytest.mark.parametrize("request_", [{}, {"id": 7}, {"id": None}])
async def test_a_kick_without_an_id_is_refused(world: World, request_: dict[str, object]) -> None:
    asked = commands(world.live, world.reloader, dict, _nothing)
    with pytest.raises(Exception, match="give an id"):
        await asked["kick"](request_)


async def test_a_client_has_nobody_to_kick(world: World) -> None:
    asked = commands(Restarting(), world.reloader, dict, _nothing)
    with pytest.raises(Exception, match="only a server"):
        await asked["kick"]({"id": "demo"})
