"""Answers of a listening socket on macOS, where naming a source for one datagram costs the socket its own address."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from dtun.session import udp


class DarwinSocket(socket.socket):
    """`udp_output` of xnu: after a datagram with IP_PKTINFO the socket is bound to any address."""

    forgotten = False

    def sendmsg(self, buffers: Any, ancillary: Any = (), flags: int = 0, address: Any = None) -> int:
        if ancillary and self.family == socket.AF_INET:
            self.forgotten = True
        return super().sendmsg(buffers, ancillary, flags, address)

    def getsockname(self) -> tuple[str, int]:
        host, port, *_ = super().getsockname()
        return ("0.0.0.0" if self.forgotten else host), port


@pytest.fixture(autouse=True)
def on_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp, "_LINUX", False)


@pytest.fixture
def client() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(10)
        yield sock


def test_a_listener_on_one_address_keeps_it(client: socket.socket) -> None:
    with DarwinSocket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.2", 0))
        udp.answer(listener, b"cookie", client.getsockname(), "127.0.0.2")
        assert client.recvfrom(100) == (b"cookie", listener.getsockname())
        assert listener.getsockname()[0] == "127.0.0.2"


def test_a_listener_on_all_addresses_answers_from_the_right_one(client: socket.socket) -> None:
    with DarwinSocket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("0.0.0.0", 0))
        udp.answer(listener, b"cookie", client.getsockname(), "127.0.0.3")
        answer, source = client.recvfrom(100)
        assert (answer, source[0]) == (b"cookie", "127.0.0.3")
