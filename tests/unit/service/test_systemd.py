"""Notifications and descriptors, with a socket of the test in place of systemd."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from dtun.service import systemd
from dtun.service.systemd import SystemdFdStore


class Manager:
    """Receives what a service sends to systemd."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(5)

    def heard(self) -> tuple[str, list[int]]:
        message, descriptors, _, _ = socket.recv_fds(self.socket, 4096, 4)
        return message.decode(), descriptors


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path / "notify")
    yield made
    made.socket.close()


def test_systemd_is_notified(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(manager.path))
    assert systemd.notify_ready("2 clients\nSTOPPING=1")
    assert manager.socket.recv(1000) == b"READY=1\nSTATUS=2 clients STOPPING=1"
    assert systemd.notify_status("3 clients")
    assert manager.socket.recv(1000) == b"STATUS=3 clients"
    assert systemd.notify_watchdog()
    assert manager.socket.recv(1000) == b"WATCHDOG=1"
    assert systemd.notify_stopping()
    assert manager.socket.recv(1000) == b"STOPPING=1"


def test_a_manager_in_the_abstract_namespace() -> None:
    name = f"dtun-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.settimeout(5)
        listener.bind(f"\0{name}")
        assert systemd.notify("READY=1", environment={"NOTIFY_SOCKET": f"@{name}"})
        assert listener.recv(100) == b"READY=1"


@pytest.mark.parametrize(
    "address", [None, "", "relative", "/does/not/exist", f"/{'x' * 200}", "@nobody-is-there", "/a\0b"]
)
def test_without_a_manager_nothing_is_sent(address: str | None) -> None:
    environment = {} if address is None else {"NOTIFY_SOCKET": address}
    assert not systemd.notify("READY=1", environment=environment)


def test_a_manager_that_does_not_read_blocks_nothing(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(manager.path))
    told = [systemd.notify_status("x" * 1000) for _ in range(5000)]
    assert told[0]
    assert not told[-1]
    assert manager.socket.recv(2000)


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
def test_the_interval_of_the_watchdog(environment: dict[str, str], seconds: float | None) -> None:
    assert systemd.watchdog_interval(environment) == seconds


def test_a_descriptor_is_kept_with_its_name(manager: Manager) -> None:
    store = SystemdFdStore({"NOTIFY_SOCKET": str(manager.path)})
    reading, writing = os.pipe()
    store.keep("tun.dtun0", reading)
    assert manager.heard() == ("FDSTOREREMOVE=1\nFDNAME=tun.dtun0", [])
    text, (copy,) = manager.heard()
    assert text == "FDSTORE=1\nFDNAME=tun.dtun0\nFDPOLL=0"
    os.write(writing, b"x")
    assert os.read(copy, 1) == b"x"
    for descriptor in (reading, writing, copy):
        os.close(descriptor)


def test_it_is_forgotten(manager: Manager) -> None:
    SystemdFdStore({"NOTIFY_SOCKET": str(manager.path)}).forget("session.dtun0")
    assert manager.heard() == ("FDSTOREREMOVE=1\nFDNAME=session.dtun0", [])


def test_without_a_store_keeping_does_nothing(tmp_path: Path) -> None:
    SystemdFdStore({}).keep("tun.dtun0", 0)
    SystemdFdStore({"NOTIFY_SOCKET": str(tmp_path / "gone")}).forget("tun.dtun0")


@pytest.fixture
def inherited(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[list[int], dict[str, str]]]:
    """Two kept descriptors and a listening socket, as if systemd had put them from number 3 on."""
    made = [os.memfd_create("one"), os.memfd_create("two")]
    listening = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listening.bind(("127.0.0.1", 0))
    made.append(listening.detach())
    start = max(made) + 10
    numbers = [os.dup2(descriptor, start + index) for index, descriptor in enumerate(made)]
    monkeypatch.setattr(systemd, "FIRST_DESCRIPTOR", start)
    names = "tun.dtun0:session.dtun0:dtun-server.socket"
    yield numbers, {"LISTEN_FDS": "3", "LISTEN_PID": str(os.getpid()), "LISTEN_FDNAMES": names}
    for descriptor in (*made, *numbers):
        with suppress(OSError):
            os.close(descriptor)


def test_what_was_kept_is_found_once_and_by_name(inherited: tuple[list[int], dict[str, str]]) -> None:
    numbers, environment = inherited
    store = SystemdFdStore(environment)
    assert store.take("tun.dtun0") == numbers[0]
    assert store.take("tun.dtun0") is None
    assert store.take("tun.other") is None
    assert not os.get_inheritable(numbers[1])


def test_the_sockets_of_a_socket_unit(inherited: tuple[list[int], dict[str, str]]) -> None:
    (listener,) = SystemdFdStore(inherited[1]).listeners()
    assert listener.getsockname()[0] == "127.0.0.1"
    listener.close()


@pytest.mark.parametrize("kind", ["TCP", "FIFO"])
def test_a_socket_unit_that_passes_something_else(
    inherited: tuple[list[int], dict[str, str]], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    numbers, environment = inherited
    if kind == "TCP":
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as other:
            os.dup2(other.fileno(), numbers[2])
    else:
        reading, writing = os.pipe()
        os.dup2(reading, numbers[2])
        os.close(reading)
        os.close(writing)
    assert SystemdFdStore(environment).listeners() == []
    assert "dtun-server.socket passes something else than a UDP socket; it is not used" in caplog.text
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(numbers[2])


def test_what_is_not_taken_is_closed_and_forgotten(
    inherited: tuple[list[int], dict[str, str]], manager: Manager
) -> None:
    numbers, environment = inherited
    store = SystemdFdStore(environment | {"NOTIFY_SOCKET": str(manager.path)})
    for listener in store.listeners():
        listener.close()
    store.close_rest()
    assert {manager.heard()[0].partition("FDNAME=")[2] for _ in range(2)} == {"tun.dtun0", "session.dtun0"}
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(numbers[0])


def test_descriptors_for_another_process_are_not_touched(inherited: tuple[list[int], dict[str, str]]) -> None:
    assert SystemdFdStore(inherited[1] | {"LISTEN_PID": "1"}).take("tun.dtun0") is None
    assert SystemdFdStore(inherited[1] | {"LISTEN_FDS": "many"}).take("tun.dtun0") is None


@pytest.mark.parametrize("name", ["socket.dtun0", "listen.0.0.0.0_443", "dtun-server.socket"])
def test_the_ports_of_kept_sockets_are_known(inherited: tuple[list[int], dict[str, str]], name: str) -> None:
    numbers, environment = inherited
    names = environment["LISTEN_FDNAMES"].replace("dtun-server.socket", name)
    store = SystemdFdStore(environment | {"LISTEN_FDNAMES": names})
    with socket.socket(fileno=os.dup(numbers[2])) as kept:
        assert store.ports == {kept.getsockname()[1]}


def test_a_name_is_free_only_when_systemd_has_closed_what_had_it(manager: Manager) -> None:
    """A device and a port stay taken until then."""
    store = SystemdFdStore({"NOTIFY_SOCKET": str(manager.path)})
    assert store.take("tun.dtun0") is None, "nothing was forgotten, so nothing is to be waited for"
    store.forget("tun.dtun0")
    order: list[str] = []

    def systemd_works() -> None:
        assert manager.heard() == ("FDSTOREREMOVE=1\nFDNAME=tun.dtun0", [])
        message, descriptors = manager.heard()
        order.append(message)
        for descriptor in descriptors:
            os.close(descriptor)

    working = threading.Thread(target=systemd_works)
    working.start()
    assert store.take("tun.dtun0") is None
    assert order == ["BARRIER=1"]
    working.join()
