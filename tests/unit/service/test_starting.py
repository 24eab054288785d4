"""A service starts with its file; or, if that would fail, with what the process before it used."""

import asyncio
import os
import socket
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from dtun.config import Config, load
from dtun.errors import ConfigError, UnavailableError
from dtun.handover.fdstore import CONFIG
from dtun.platform.interface import LocalNetwork
from dtun.service import kept_config, preflight
from dtun.service.reload import ConfigReloader
from dtun.service.starting import Start, choose
from tests.unit.fakes import FakeFdStore, FakeKernel
from tests.unit.service.test_reload import FakeServer

KEY = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="


class Site:
    """A file, and a store that outlives processes."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "dtun.yaml"
        self.store = FakeFdStore()

    def write(self, settings: str) -> None:
        self.path.write_text(f"server: {{clients: {{home: {{key: {KEY}}}}}, {settings}}}\n")
        self.path.chmod(0o600)

    def start(self) -> Start:
        self.store.start_successor()
        return choose(self.path, lambda: load(self.path), self.store)

    def ran(self) -> Config:
        """A process has run with the file."""
        start = self.start()
        ConfigReloader(start, FakeServer(), asyncio.Event()).started()
        return start.config


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    made.write("listen: 127.0.0.1:44301")
    yield made
    made.store.close()


def test_a_mistake_ends_nothing_after_a_restart(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    before = site.ran()
    site.write("listen: everywhere")
    start = site.start()
    assert start.config.section == before.section
    assert start.problem is not None
    assert start.problem.startswith(f"{site.path}:1:")
    assert caplog.messages[-1] == f"{site.path} is not used; going on with the configuration from before"
    assert start.problem in caplog.messages


@pytest.mark.parametrize("how", ["gone", "a directory"])
def test_nor_does_a_file_that_cannot_be_read(site: Site, how: str) -> None:
    before = site.ran()
    site.path.unlink()
    if how == "a directory":
        site.path.mkdir()
    assert site.start().config.section == before.section


def test_without_a_process_before_a_mistake_is_an_error(site: Site) -> None:
    site.write("listen: everywhere")
    with pytest.raises(ConfigError):
        site.start()


def test_a_port_that_is_taken_counts_as_a_mistake(site: Site) -> None:
    before = site.ran()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        site.write(f"listen: 127.0.0.1:{port}")
        start = site.start()
        assert start.config.section == before.section
        assert start.problem is not None
        assert start.problem.startswith(f"listen: UDP port 127.0.0.1:{port} is taken by another program")
        site.store.keep("socket.dtun-home", taken.fileno())
        assert site.start().problem is None, "it is a session's of the process before"
    site.store.forget("socket.dtun-home")
    assert site.start().problem is None


def test_so_does_a_device_whose_name_is_taken(site: Site) -> None:
    site.ran()
    site.path.write_text(f"server: {{clients: {{home: {{key: {KEY}, tun: lo}}}}}}\n")
    start = site.start()
    assert start.problem == (
        "tun: a device of the name lo exists; stop the program that made it, or choose another name"
    )


def test_so_does_a_pool_that_overlaps_the_hosts_networks(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = FakeKernel()
    kernel.networks = [LocalNetwork("eth0", IPv4Network("10.99.0.0/24"))]
    monkeypatch.setattr(preflight, "read_only_kernel", lambda _: kernel)
    site.ran()
    site.write("listen: 127.0.0.1:44301, pool: 10.99.0.0/16")
    problem = site.start().problem
    assert problem == (
        "pool: 10.99.0.0/16 overlaps 10.99.0.0/24, a network of this host's own on eth0; choose another pool"
    )


def test_a_file_that_is_right_is_used_and_kept(site: Site) -> None:
    site.ran()
    site.write("listen: 127.0.0.1:44301, keepalive: 7")
    assert site.ran().server is not None
    site.write("listen: everywhere")
    again = site.start().config.server
    assert again is not None
    assert again.keepalive == 7


async def test_what_is_not_in_use_is_told_until_a_reload_succeeds(site: Site) -> None:
    site.ran()
    site.write("listen: everywhere, pool: nowhere")
    reloader = ConfigReloader(site.start(), FakeServer(), asyncio.Event())
    for _ in range(2):
        (warning,) = reloader.warnings
        assert warning.startswith(
            f"{site.path} is not in use, but the configuration from before: {site.path}:1:"
        )
        assert warning.endswith("(and 1 more); correct it, and reload")
        assert reloader.summary() == f"2 clients; {site.path} is not in use, see `dtun check`"
        with pytest.raises(ConfigError):
            await reloader.reload(dry_run=False)
    site.write("listen: 127.0.0.1:44301, keepalive: 9")
    await reloader.reload(dry_run=True)
    assert reloader.warnings != []
    await reloader.reload(dry_run=False)
    assert (reloader.warnings, reloader.summary()) == ([], "2 clients")
    site.path.unlink()
    kept = site.start().config.server
    assert kept is not None
    assert kept.keepalive == 9


async def test_a_reload_that_is_refused_is_told_as_well(site: Site) -> None:
    class Refusing(FakeServer):
        async def reload(self, config: Config, *, dry_run: bool) -> list[str]:
            del config, dry_run
            raise UnavailableError("listen: UDP port 443 is taken")

    site.ran()
    reloader = ConfigReloader(site.start(), Refusing(), asyncio.Event())
    with pytest.raises(UnavailableError):
        await reloader.reload(dry_run=False)
    assert "listen: UDP port 443 is taken" in reloader.warnings[0]


def test_without_a_change_nothing_is_looked_at_twice(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each restart would take longer."""
    site.ran()
    monkeypatch.setattr(preflight, "problems", None)
    monkeypatch.setattr(kept_config, "restore", None)
    assert site.start().problem is None


def test_what_another_version_has_kept_is_not_used(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Config:
        raise ValueError("it is of another version of dtun")

    site.ran()
    site.write("listen: everywhere")
    monkeypatch.setattr(kept_config, "restore", refuse)
    with pytest.raises(ConfigError):
        site.start()


def test_nobody_can_change_what_is_kept(site: Site) -> None:
    site.ran()
    site.store.start_successor()
    descriptor = site.store.take(CONFIG)
    assert descriptor is not None
    with pytest.raises(PermissionError):
        os.write(descriptor, b"x")
    os.close(descriptor)
