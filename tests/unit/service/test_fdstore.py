"""systemd's descriptor store, played by a socket of the test's own."""

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from dtun.service import fdstore
from dtun.service.fdstore import SystemdFdStore


class Manager:
    """Listens where a service tells how it is."""

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


def test_a_descriptor_is_handed_over_with_its_name(manager: Manager) -> None:
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


def test_it_is_taken_back(manager: Manager) -> None:
    SystemdFdStore({"NOTIFY_SOCKET": str(manager.path)}).forget("session.dtun0")
    assert manager.heard() == ("FDSTOREREMOVE=1\nFDNAME=session.dtun0", [])


def test_nobody_to_keep_anything_is_no_error(tmp_path: Path) -> None:
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
    monkeypatch.setattr(fdstore, "FIRST", start)
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
def test_a_socket_unit_that_hands_over_something_else(
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
    assert "dtun-server.socket hands over something else than a UDP socket; it is not used" in caplog.text
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(numbers[2])


def test_what_nobody_takes_is_let_go(inherited: tuple[list[int], dict[str, str]], manager: Manager) -> None:
    numbers, environment = inherited
    store = SystemdFdStore(environment | {"NOTIFY_SOCKET": str(manager.path)})
    for listener in store.listeners():
        listener.close()
    store.give_up_rest()
    assert {manager.heard()[0].partition("FDNAME=")[2] for _ in range(2)} == {"tun.dtun0", "session.dtun0"}
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(numbers[0])


def test_descriptors_for_another_process_are_not_touched(inherited: tuple[list[int], dict[str, str]]) -> None:
    assert SystemdFdStore(inherited[1] | {"LISTEN_PID": "1"}).take("tun.dtun0") is None
    assert SystemdFdStore(inherited[1] | {"LISTEN_FDS": "many"}).take("tun.dtun0") is None
