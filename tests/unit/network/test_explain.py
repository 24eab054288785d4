"""The output of `dtun explain`."""

from ipaddress import ip_address, ip_network

import pytest

from dtun.network.explain import ActualRoute, ServedClient, explain_client, explain_server
from dtun.network.plan import Routing
from dtun.network.state import Route

SERVER = ip_address("198.51.100.7")
ROUTING = Routing("dtun0", (ip_network("0.0.0.0/0"),), (ip_network("203.0.113.0/24"),))
INTO = ActualRoute(Route(ip_network("0.0.0.0/1"), "dtun0"), ours=True)
BY_RULE = ActualRoute(Route(ip_network("0.0.0.0/0"), "dtun0", table=7217), ours=True, rule=7216)
OUT = ActualRoute(Route(ip_network("0.0.0.0/0"), "eth0", ip_address("192.168.1.1")))
REFUSED = ActualRoute(Route(ip_network("0.0.0.0/1"), metric=9, kind="unreachable"), ours=True)


def explained(address: str, found: ActualRoute, routing: Routing = ROUTING) -> str:
    origin = {"203.0.113.0/24": "/etc/list.txt:7"}
    lines = explain_client(
        ip_address(address),
        routing,
        [SERVER],
        lambda network: origin.get(str(network), "client.routes"),
        found,
        (),
    )
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("address", "found", "words"),
    [
        (
            "8.8.8.8",
            INTO,
            ["goes through the tunnel (dtun0)", "client.routes sends 0.0.0.0/0", "made by dtun"],
        ),
        (
            "203.0.113.9",
            OUT,
            ["leaves through eth0 via 192.168.1.1", "/etc/list.txt:7 keeps 203.0.113.0/24 out"],
        ),
        ("198.51.100.7", OUT, ["it is a server of this tunnel"]),
        (
            "8.8.8.8",
            REFUSED,
            ["is blocked: a route of this host refuses it (dtun made it)", "is dtun connected"],
        ),
        ("8.8.8.8", OUT, ["not through the tunnel", "but:   it should go through the tunnel"]),
        ("8.8.8.8", BY_RULE, ["rule:  7216, which uses table 7217"]),
        ("203.0.113.9", INTO, ["but:   it should stay outside the tunnel"]),
        ("8.8.8.8", ActualRoute(None), ["is unreachable: the host has no route to it"]),
        ("2001:db8::1", REFUSED, ["IPv6 outside it is blocked"]),
    ],
)
def test_a_client(address: str, found: ActualRoute, words: list[str]) -> None:
    text = explained(address, found)
    for part in words:
        assert part in text


def test_an_address_that_no_setting_covers() -> None:
    assert "the host's own routes apply" in explained("8.8.8.8", OUT, Routing("dtun0"))


HOME = ServedClient("home", "dtun-home", "connected", (ip_network("10.0.0.0/16"), ip_network("10.86.0.2/32")))
AWAY = ServedClient("away", "dtun-away", "away", (ip_network("10.0.9.0/24"),))


@pytest.mark.parametrize(
    ("address", "device", "words"),
    [
        ("10.0.3.4", "dtun-home", "10.0.0.0/16 belongs to client home (dtun-home), which is connected"),
        ("10.0.9.4", "dtun-away", "packets are dropped until that client reconnects"),
        ("10.0.3.4", "eth1", "a route of another program has precedence"),
        ("192.0.2.1", "eth0", "it does not belong to a client"),
    ],
)
def test_a_server(address: str, device: str, words: str) -> None:
    found = ActualRoute(Route(ip_network("10.0.0.0/16"), device))
    assert words in "\n".join(explain_server(ip_address(address), [HOME, AWAY], found))


def test_a_pushed_route_that_the_client_does_not_accept() -> None:
    pushed = [ip_network("10.9.0.0/16")]
    routing = Routing("dtun0", ())
    lines = explain_client(ip_address("10.9.8.7"), routing, [SERVER], str, OUT, pushed)
    assert lines[-1] == (
        "  why:   the server pushes 10.9.0.0/16, but accept_routes does not accept it, so the host's own routes apply"
    )
    unknown = explain_client(ip_address("10.9.8.7"), routing, [SERVER], str, OUT, None)
    assert unknown[-1].endswith(
        "own routes apply; what the server pushes is known only while dtun is connected"
    )
