"""Where a server's listening sockets come from, and that sessions get theirs on the same port, whoever made it."""

import errno
import logging
import os
import re
import socket
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from dtun.config import Endpoint, ServerConfig
from dtun.errors import UnavailableError
from dtun.handover.fdstore import NoFdStore, listener_name
from dtun.server.listeners import Listeners, endpoints
from dtun.session import udp

SOMEBODY = 4242


class Unit(NoFdStore):
    """What a socket unit listens on, and what a process before this one has kept."""

    def __init__(self, *listening: socket.socket, kept: dict[str, int] | None = None) -> None:
        self.listening = listening
        self.kept = kept or {}

    def listeners(self) -> list[socket.socket]:
        return [sock.dup() for sock in self.listening]

    def take(self, name: str) -> int | None:
        return self.kept.pop(name, None)


def bound(host: str = "127.0.0.1", port: int = 0, *, v6only: bool = True) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    if ":" in host:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
    made.bind((host, port))
    return made


def endpoint(sock: socket.socket) -> Endpoint:
    host, port = sock.getsockname()[:2]
    return Endpoint(ip_address(host), port)


@pytest.fixture
def made() -> Iterator[socket.socket]:
    with bound() as sock:
        yield sock


def test_a_socket_unit_has_what_the_configuration_names(made: socket.socket) -> None:
    with bound("::1") as other:
        listeners = Listeners(Unit(other, made))
        for sock in (made, other):
            found, is_to_be_kept = listeners.find(endpoint(sock))
            assert found.getsockname() == sock.getsockname()
            assert found.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
            assert not is_to_be_kept, "systemd has it anyway"
            found.close()


def test_the_socket_of_the_process_before_is_next_and_then_a_new_one(made: socket.socket) -> None:
    unit = Unit(kept={listener_name(endpoint(made)): made.dup().detach()})
    found, is_to_be_kept = Listeners(unit).find(endpoint(made))
    assert (found.getsockname(), is_to_be_kept) == (made.getsockname(), True)
    found.close()
    wanted = endpoint(made)
    made.close()
    found, is_to_be_kept = Listeners(unit).find(wanted)
    assert (endpoint(found), is_to_be_kept) == (wanted, True)
    found.close()


def test_another_address_of_the_unit_on_the_same_port_is_said(made: socket.socket) -> None:
    port = made.getsockname()[1]
    wanted = Endpoint(ip_address("0.0.0.0"), port)
    expected = (
        f"^listen: the socket unit listens on 127.0.0.1:{port}, not on 0.0.0.0:{port}; make them the same$"
    )
    with pytest.raises(UnavailableError, match=expected):
        Listeners(Unit(made)).find(wanted)
    with pytest.raises(UnavailableError, match="is taken by another program"):
        Listeners(Unit()).find(wanted)


def test_a_unit_that_mixes_the_two_families_is_said() -> None:
    with (
        bound("::", v6only=False) as both,
        pytest.raises(UnavailableError, match="add BindIPv6Only=ipv6-only"),
    ):
        Listeners(Unit(both)).find(endpoint(both))


def test_what_is_not_named_is_told_and_closed(made: socket.socket, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dtun")
    listeners = Listeners(Unit(made))
    listeners.close()
    host, port = made.getsockname()
    assert (
        f"the socket unit listens on {host}:{port}, which `listen` does not name; it is not used"
        in caplog.text
    )


def _hello(listener: socket.socket) -> tuple[socket.socket, udp.Arrival]:
    client = socket.socket(listener.family, socket.SOCK_DGRAM)
    client.connect(listener.getsockname())
    client.settimeout(5)
    client.send(b"hello")
    arrival = udp.receive(listener)
    assert arrival is not None
    return client, arrival


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_sessions_share_the_port_of_a_socket_that_systemd_made(host: str) -> None:
    """It belongs to root, and the service does not: SO_REUSEPORT is not enough."""
    if os.geteuid() != 0:
        pytest.skip("only root may give sockets to others")
    with bound(host) as given:
        listener = udp.prepare_listener(given)
        os.fchown(listener.fileno(), SOMEBODY, -1)
        clients, sessions = [], []
        for _ in range(3):
            client, arrival = _hello(listener)
            session, strays = udp.accept(listener, arrival.peer, arrival.local)
            assert strays == []
            clients.append(client)
            sessions.append(session)
        for client, session in zip(clients, sessions, strict=True):
            client.send(b"data")
            session.setblocking(True)
            session.settimeout(5)
            assert session.recv(100) == b"data"
            # Else any program could listen there, too.
            assert not session.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
            client.close()
            session.close()
        assert not listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)


@pytest.fixture
def no_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel without IPv6."""
    make = socket.socket

    def refuse(family: int = -1, *args: Any, **kwargs: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return make(family, *args, **kwargs)

    monkeypatch.setattr(socket, "socket", refuse)


@pytest.mark.usefixtures("no_ipv6")
def test_without_ipv6_the_default_is_ipv4(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    default = ServerConfig.model_validate({"clients": {"demo": {"key": "AA=="}}})
    assert [endpoint.address.version for endpoint in default.listen] == [4, 6]
    assert [str(endpoint) for endpoint in endpoints(default)] == ["0.0.0.0:443"]
    assert caplog.messages == ["this kernel has no IPv6, so there is IPv4 only"]
    wanted = ServerConfig.model_validate({"listen": "[::]:443", "clients": {"demo": {"key": "AA=="}}})
    (endpoint,) = endpoints(wanted)
    with pytest.raises(UnavailableError, match=re.escape("no IPv6, so it cannot listen on [::]:443; leave")):
        Listeners(NoFdStore()).find(endpoint)


def test_with_ipv6_it_is_both() -> None:
    config = ServerConfig.model_validate({"clients": {"demo": {"key": "AA=="}}})
    assert endpoints(config) == list(config.listen)
