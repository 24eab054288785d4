"""A running service reads its configuration again, on SIGHUP or when asked."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from dtun.config import Config, load
from dtun.errors import ConfigError, UnavailableError
from dtun.handover.fdstore import NoFdStore
from dtun.service import systemd
from dtun.service.reload import NO_CHANGE, ConfigReloader
from dtun.service.run import commands
from dtun.service.starting import Start
from tests.unit.fakes import FakeFdStore

KEY = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="


class FakeClient:
    """A role that changes to another configuration."""

    def __init__(self) -> None:
        self.reloads: list[tuple[Config, bool]] = []
        self.lines: list[str] = []

    async def start(self) -> None: ...

    async def run(self) -> None: ...

    async def suspend(self) -> None: ...

    async def stop(self) -> None: ...

    async def reload(self, config: Config, *, dry_run: bool) -> list[str]:
        self.reloads.append((config, dry_run))
        return self.lines

    def status(self) -> dict[str, object]:
        return {"tunnels": []}

    def summary(self) -> str:
        return "2 clients"

    def stalled(self) -> bool:
        return False


def _nothing() -> None:
    """A stop that is not requested here."""


class FakeServer(FakeClient):
    """A role with clients."""

    def kick(self, name: str) -> str:
        if name != "demo":
            raise UnavailableError(f"there is no client {name}")
        return "gone"


class World:
    def __init__(self, directory: Path) -> None:
        self.path = directory / "dtun.yaml"
        self.write("keepalive: 10")
        self.server = FakeServer()
        self.requested = asyncio.Event()
        self.fdstore = FakeFdStore()
        self.reloader = ConfigReloader(Start(load(self.path), self.fdstore), self.server, self.requested)

    def write(self, setting: str) -> None:
        text = f"server:\n  {setting}\n  clients:\n    demo:\n      key: {KEY}\n"
        self.path.write_text(text)
        self.path.chmod(0o600)

    def keepalives(self) -> list[float]:
        return [config.server.keepalive for config, _ in self.server.reloads if config.server]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What systemd is sent."""
    found: list[str] = []

    def hear(*assignments: str) -> bool:
        found.extend(assignments)
        return True

    monkeypatch.setattr(systemd, "notify", hear)
    return found


async def test_the_file_is_read_again_and_the_service_manager_told(
    world: World, told: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dtun")
    world.write("keepalive: 7")
    world.server.lines = ["keepalive: 7", "error: but not all of it"]
    assert await world.reloader.reload(dry_run=False) == world.server.lines
    assert world.keepalives() == [7]
    assert [line.partition("=")[0] for line in told] == ["RELOADING", "MONOTONIC_USEC", "READY", "STATUS"]
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "reload: keepalive: 7"),
        ("ERROR", "reload: error: but not all of it"),
    ]


async def test_a_dry_run_is_passed_to_the_role_and_systemd_is_not_notified(
    world: World, told: list[str]
) -> None:
    assert await world.reloader.reload(dry_run=True) == [NO_CHANGE]
    assert [dry_run for _, dry_run in world.server.reloads] == [True]
    assert told == []


async def test_a_file_with_a_mistake_changes_nothing(world: World, told: list[str]) -> None:
    world.write("keepalive: often")
    with pytest.raises(ConfigError) as error:
        await world.reloader.reload(dry_run=False)
    assert f"{world.path}:2:14: server.keepalive: " in str(error.value)
    assert str(error.value).endswith("\nreload: nothing was changed")
    assert world.server.reloads == []
    assert told[-2:] == ["READY=1", f"STATUS=2 clients; {world.path} is not in use, see `dtun check`"]


@pytest.mark.parametrize(
    ("setting", "moves"),
    [("keepalive: 9", False), ("runtime_directory: /elsewhere", True), ("keepalive: often", False)],
)
async def test_a_file_that_names_another_place_is_noticed(world: World, setting: str, moves: bool) -> None:
    world.write(setting)
    assert await world.reloader.moves() is moves


async def test_what_should_not_stay_so_is_said(world: World) -> None:
    world.path.chmod(0o644)
    assert any(line.startswith("warning: ") for line in await world.reloader.reload(dry_run=True))


async def test_without_a_file_there_is_nothing_to_read(world: World) -> None:
    config = load(world.path)
    quick = ConfigReloader(
        Start(Config(config.server, None, None), NoFdStore()), world.server, world.requested
    )
    with pytest.raises(ConfigError, match="started without a configuration file"):
        await quick.reload(dry_run=False)


@pytest.fixture
async def running(world: World) -> AsyncIterator[World]:
    task = asyncio.create_task(world.reloader.run())
    yield world
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - a condition without an event
            await asyncio.sleep(0.001)


async def test_each_hang_up_is_a_reload_whatever_came_of_the_one_before(
    running: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.write("keepalive: often")
    running.requested.set()
    await until(lambda: "nothing was changed" in caplog.text)

    async def fail(config: Config, *, dry_run: bool) -> list[str]:
        raise RuntimeError(f"a bug in {config.path}, {dry_run}")

    running.write("keepalive: 5")
    with monkeypatch.context() as patch:
        patch.setattr(running.server, "reload", fail)
        running.requested.set()
        await until(lambda: "a bug in" in caplog.text)
    running.requested.set()
    await until(lambda: running.keepalives() == [5])


async def test_what_can_be_asked_at_the_control_socket(world: World) -> None:
    asked = commands(world.server, world.reloader, lambda: {"role": "server"}, _nothing)
    assert await asked["status"]({}) == {"role": "server"}
    assert await asked["reload"]({"dry_run": True}) == {"lines": [NO_CHANGE], "failed": False}
    world.server.lines = ["error: no"]
    assert await asked["reload"]({}) == {"lines": ["error: no"], "failed": True}
    assert [dry_run for _, dry_run in world.server.reloads] == [True, False]
    assert await asked["kick"]({"id": "demo"}) == {"lines": ["gone"]}
    with pytest.raises(UnavailableError, match="no client x"):
        await asked["kick"]({"id": "x"})


@pytest.mark.parametrize("request_", [{}, {"id": 7}, {"id": None}])
async def test_a_kick_without_an_id_is_refused(world: World, request_: dict[str, object]) -> None:
    asked = commands(world.server, world.reloader, dict, _nothing)
    with pytest.raises(Exception, match="needs the id"):
        await asked["kick"](request_)


async def test_a_client_has_no_sessions_to_kick(world: World) -> None:
    asked = commands(FakeClient(), world.reloader, dict, _nothing)
    with pytest.raises(Exception, match="only a server"):
        await asked["kick"]({"id": "demo"})
