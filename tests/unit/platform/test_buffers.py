"""UDP sockets get as large a buffer as the system lets them have: Linux. (macOS: tests/darwin/test_buffers.py.)"""

import errno
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dtun.session import udp

WANTED = 4 * 1024 * 1024
RECEIVE, SEND = socket.SO_RCVBUF, socket.SO_SNDBUF
FORCE_RECEIVE, FORCE_SEND = 33, 32  # asm-generic/socket.h


class Socket:
    """One of Linux that notes what it is asked for. Without CAP_NET_ADMIN it refuses to be forced."""

    def __init__(self, *refuses: int) -> None:
        self.refuses = refuses
        self.asked: list[tuple[int, int]] = []

    def setsockopt(self, level: int, option: int, value: int) -> None:
        assert level == socket.SOL_SOCKET
        self.asked.append((option, value))
        if option in self.refuses:
            raise OSError(errno.EPERM, "operation not permitted")


@pytest.mark.parametrize(
    ("refuses", "asked"),
    [
        ((), [FORCE_RECEIVE, FORCE_SEND]),
        ((FORCE_RECEIVE, FORCE_SEND), [FORCE_RECEIVE, RECEIVE, FORCE_SEND, SEND]),
        ((FORCE_SEND,), [FORCE_RECEIVE, FORCE_SEND, SEND]),
    ],
    ids=["privileged", "unprivileged", "half"],
)
def test_linux_is_forced_if_it_can_be_and_asked_otherwise(
    refuses: tuple[int, ...], asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(udp, "_LINUX", True)
    sock = Socket(*refuses)
    udp.enlarge_buffers(sock)  # type: ignore[arg-type]
    assert sock.asked == [(option, WANTED) for option in asked]


def test_a_kernel_that_refuses_everything_costs_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp, "_LINUX", True)
    sock = Socket(FORCE_RECEIVE, FORCE_SEND, RECEIVE, SEND)
    udp.enlarge_buffers(sock)  # type: ignore[arg-type]
    assert [size for option, size in sock.asked if option == RECEIVE] == [WANTED >> n for n in range(5)]


@contextmanager
def every_kind_of_socket(host: str) -> Iterator[list[socket.socket]]:
    """A server's listening socket, the one of a session beside it, and the client's."""
    with udp.listen(host, 0) as listener, udp.connect(listener.getsockname()) as client:
        session, _ = udp.accept(listener, client.getsockname(), host)
        with session:
            yield [listener, session, client]


def expected(forced: int, limit: str, wanted: int) -> int:
    """Linux doubles what it gives, for its own account (socket(7)). Only who may force it gets more than the limit."""
    allowed = min(wanted, int(Path("/proc/sys/net/core", limit).read_text()))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, forced, wanted)
        except PermissionError:
            return 2 * allowed
    return 2 * wanted


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only: reads /proc")
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"], ids=["IPv4", "IPv6"])
def test_every_socket_really_gets_it(host: str) -> None:
    with every_kind_of_socket(host) as made:
        # Hellos that waited long in the queue of the listening socket would be of no use any more.
        for sock, receive in zip(made, (udp.LISTENER_BUFFER, WANTED, WANTED), strict=True):
            for option, forced, limit, wanted in (
                (RECEIVE, FORCE_RECEIVE, "rmem_max", receive),
                (SEND, FORCE_SEND, "wmem_max", WANTED),
            ):
                assert sock.getsockopt(socket.SOL_SOCKET, option) == expected(forced, limit, wanted)
