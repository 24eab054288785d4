"""Conflicts that `dtun plan` reports."""

from ipaddress import ip_address, ip_network

import pytest

from dtun.network.conflicts import (
    ExistingNetwork,
    RoutedNetwork,
    RuleInFront,
    client_conflicts,
    relation,
    rule_conflicts,
    server_conflicts,
)
from dtun.network.plan import Policy, Routing
from dtun.network.state import Network

LAN = ExistingNetwork(ip_network("192.168.1.0/24"), "eth0", "local")
VPN = ExistingNetwork(ip_network("10.8.0.0/16"), "wg0", "vpn")


def nets(*texts: str) -> tuple[Network, ...]:
    return tuple(ip_network(text) for text in texts)


def client(*included: str, bypassed: str = "", subnets: str = "") -> list[str]:
    routing = Routing("dtun0", nets(*included), nets(*bypassed.split()))
    servers, own = [ip_address("198.51.100.7")], [ip_address("10.86.0.2")]
    return client_conflicts(routing, nets(*subnets.split()), servers, own, [LAN, VPN])


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            client("172.17.0.0/16", bypassed="172.16.0.0/12"),
            "172.17.0.0/16 is routed through the tunnel, but is inside 172.16.0.0/12",
        ),
        (
            client(bypassed="10.86.0.0/16"),
            "10.86.0.0/16 bypasses the tunnel, but contains the tunnel's own address",
        ),
        (client(subnets="198.51.100.0/24"), "contains the server 198.51.100.7: a routing loop"),
        (
            client("192.168.1.0/24"),
            "is this host's own network 192.168.1.0/24 (eth0): the existing route stays",
        ),
        (client("192.168.1.128/25"), "is part of this host's own network 192.168.1.0/24 (eth0)"),
        (client("10.0.0.0/8"), "contains the network 10.8.0.0/16 of another VPN (wg0)"),
    ],
)
def test_a_conflict_is_reported_in_one_line(found: list[str], words: str) -> None:
    (line,) = found
    assert words in line


def test_everything_does_not_conflict() -> None:
    assert client("0.0.0.0/0") == []


def test_a_subnet_of_a_client_that_is_the_servers_own() -> None:
    (line,) = server_conflicts([RoutedNetwork(ip_network("192.168.0.0/16"), "behind client home")], [LAN])
    assert line.startswith(
        "192.168.0.0/16, behind client home, contains this host's own network 192.168.1.0/24"
    )


def test_apart() -> None:
    assert relation(ip_network("10.0.0.0/8"), ip_network("fd00::/8")) is None
    assert relation(ip_network("10.0.0.0/9"), ip_network("10.128.0.0/9")) is None


@pytest.mark.parametrize(
    ("priority", "networks", "policy", "reported"),
    [
        (5000, "0.0.0.0/0", None, True),
        (5000, "0.0.0.0/1", None, True),
        (5270, "100.64.0.0/10", None, False),
        (7000, "0.0.0.0/0", Policy(7217, 1), True),
        (8000, "0.0.0.0/0", Policy(7217, 1), False),
        (32767, "0.0.0.0/0", None, False),
    ],
)
def test_a_rule_that_takes_traffic_from_the_tunnel(
    priority: int, networks: str, policy: Policy | None, reported: bool
) -> None:
    routing = Routing("dtun0", nets("0.0.0.0/0"), policy=policy)
    found = rule_conflicts(routing, [RuleInFront(4, priority, 100, nets(networks))])
    assert bool(found) == reported
    assert all(f"`ip -4 rule del priority {priority}`" in line for line in found)
