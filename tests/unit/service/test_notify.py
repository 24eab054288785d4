"""sd_notify: heard where there is a manager, silent and printable where there is none."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from dtun.service import notify


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(5)
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield manager


def test_the_manager_is_told(manager: socket.socket) -> None:
    assert notify.ready("2 clients\nSTOPPING=1")
    assert manager.recv(1000) == b"READY=1\nSTATUS=2 clients STOPPING=1"
    assert notify.status("3 clients")
    assert manager.recv(1000) == b"STATUS=3 clients"
    assert notify.alive()
    assert manager.recv(1000) == b"WATCHDOG=1"
    assert notify.stopping()
    assert manager.recv(1000) == b"STOPPING=1"


def test_a_manager_in_the_abstract_namespace() -> None:
    name = f"dtun-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(5)
        manager.bind(f"\0{name}")
        assert notify.notify("READY=1", environment={"NOTIFY_SOCKET": f"@{name}"})
        assert manager.recv(100) == b"READY=1"


@pytest.mark.parametrize(
    "address", [None, "", "relative", "/does/not/exist", f"/{'x' * 200}", "@nobody-is-there", "/a\0b"]
)
def test_nobody_to_tell(address: str | None) -> None:
    environment = {} if address is None else {"NOTIFY_SOCKET": address}
    assert not notify.notify("READY=1", environment=environment)


def test_a_manager_that_does_not_read_holds_up_nothing(manager: socket.socket) -> None:
    told = [notify.status("x" * 1000) for _ in range(5000)]
    assert told[0]
    assert not told[-1]
    assert manager.recv(2000)


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "3000000"}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_how_often_the_watchdog_wants_a_sign(environment: dict[str, str], seconds: float | None) -> None:
    assert notify.watchdog_interval(environment) == seconds
