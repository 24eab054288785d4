"""Which messages of a routing socket may mean a change of the host's network."""

import os
from ipaddress import ip_address

import fake_wire as wire
import pytest

from dtun.platform.darwin.monitor import matters

ADD, DELETE, CHANGE, GET, MISS, NEWADDR, DELADDR, IFINFO = 1, 2, 3, 4, 7, 0xC, 0xD, 0xE
OTHER, US = 99, os.getpid()


def route(
    kind: int, destination: str = "0.0.0.0", flags: int = 0x843, pid: int = OTHER, error: int = 0
) -> bytes:
    addresses = {1: wire.sockaddr(ip_address(destination)), 2: wire.link(4)}
    message = bytearray(wire.message(kind, 4, flags, addresses, pid=pid))
    message[24:28] = error.to_bytes(4, "little")
    return bytes(message)


def address(kind: int, text: str) -> bytes:
    return wire.address_message(kind, 4, b"", ip_address(text), None)


@pytest.mark.parametrize("kind", [ADD, DELETE, CHANGE])
def test_route_changes_of_other_processes_matter(kind: int) -> None:
    assert matters(route(kind), US)
    assert matters(route(kind, "2001:db8::"), US)
    assert matters(route(kind, pid=0), US), "the kernel itself"


def test_address_changes_matter() -> None:
    assert matters(address(NEWADDR, "192.168.1.10"), US)
    assert matters(address(DELADDR, "2001:db8::1"), US)
    assert matters(wire.interface_message(4, "en0", 0x8863, 1500), US)


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(route(ADD, pid=US), id="our own change"),
        pytest.param(route(ADD, error=17), id="a failed request"),
        pytest.param(route(GET), id="a query"),
        pytest.param(route(MISS), id="a packet without a route"),
        pytest.param(route(ADD, "fe80::"), id="link-local"),
        pytest.param(route(DELETE, "224.0.0.0"), id="multicast"),
        pytest.param(route(ADD, "192.168.1.7", flags=0x20000 | 0x5), id="a neighbour"),
        pytest.param(address(NEWADDR, "fe80::1"), id="a link-local address"),
        pytest.param(b"", id="nothing"),
        pytest.param(route(ADD)[:60], id="cut short"),
        pytest.param(b"\xff" * 100, id="garbage"),
    ],
)
def test_what_does_not_matter(message: bytes) -> None:
    assert not matters(message, US)
    assert matters(route(MISS) + route(ADD), US), "but what follows may be"
