"""The main job: hosts behind a router reach the other side through the tunnel, with one NAT at most."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from daemon import Daemon, can_ping, make_key, network_of
from topology import Topology, wait_for

pytestmark = pytest.mark.netns


class Pair:
    """A server at 198.51.100.1 (2001:db8::1) and a client host at .2 (::2), joined by a cable."""

    def __init__(self, net: Topology, directory: Path) -> None:
        self.net = net
        self.directory = directory
        self.key = make_key(directory)
        self.left = net.host("left", forwards=True)
        self.right = net.host("right", forwards=True)
        addresses = ("198.51.100.1/24", "198.51.100.2/24", "2001:db8::1/64", "2001:db8::2/64")
        net.cable(self.left, "eth0", self.right, "eth0", *addresses)

    def server(self, **entry: object) -> Daemon:
        clients = {"demo": {"key_file": str(self.key), **entry}}
        return Daemon(self.left, "server", {"clients": clients}, self.directory)

    def client(self, **settings: object) -> Daemon:
        section = {"servers": ["198.51.100.1"], "id": "demo", "key_file": str(self.key), **settings}
        return Daemon(self.right, "client", section, self.directory)


@pytest.fixture
def pair(net: Topology, tmp_path: Path) -> Pair:
    return Pair(net, tmp_path)


def test_a_host_behind_a_router_reaches_the_web_with_one_nat(net: Topology, tmp_path: Path) -> None:
    #   pc 10.0.0.2 -- router (client) == 198.51.100.0/24 == pc2 (server) -- www 203.0.113.80
    pc, router = net.host("pc"), net.host("router", forwards=True)
    pc2, www = net.host("pc2", forwards=True), net.host("www")
    net.cable(pc, "eth0", router, "lan", "10.0.0.2/16", "10.0.0.1/16")
    net.cable(router, "wan", pc2, "eth0", "198.51.100.2/24", "198.51.100.1/24")
    net.cable(pc2, "eth1", www, "eth0", "203.0.113.1/24", "203.0.113.80/24")
    pc.ip("route add default via 10.0.0.1")
    ruleset = (
        "table ip nat { chain out { type nat hook postrouting priority 100; oifname eth1 masquerade; }; }"
    )
    pc2.run("nft", ruleset)
    before = {host.name: network_of(host) for host in (router, pc2)}
    key = str(make_key(tmp_path))

    clients = {"home": {"key_file": key, "subnets": ["10.0.0.0/16"]}}
    server = Daemon(pc2, "server", {"listen": ["198.51.100.1"], "clients": clients}, tmp_path)
    section = {"servers": ["198.51.100.1"], "id": "home", "key_file": key}
    section |= {"subnets": ["10.0.0.0/16"], "routes": ["203.0.113.0/24"]}
    client = Daemon(router, "client", section, tmp_path)
    client.wait_connected()

    assert can_ping(pc, "203.0.113.80", count=5)
    assert "10.0.0.0/16 dev dtun-home proto 217" in pc2.ip("route")
    assert "203.0.113.0/24 dev dtun0 proto 217" in router.ip("route")
    # www knows neither 10.0.0.0/16 nor the pool: what answered it has seen from pc2's address.
    assert "10." not in www.ip("route")
    assert server.tunnel()["rx_packets"] >= 5

    assert client.stop() == 0
    assert server.stop() == 0
    for host in (router, pc2):
        assert network_of(host) - before[host.name] == set()


@pytest.mark.parametrize("server_name", ["198.51.100.1", "[2001:db8::1]:443"])
def test_the_outer_network_may_be_ipv4_or_ipv6(pair: Pair, server_name: str) -> None:
    server, client = pair.server(), pair.client(servers=[server_name])

    tunnel = client.wait_connected()

    assert tunnel["offloaded"] is True
    assert tunnel["endpoint"] == ("[2001:db8::1]:443" if ":4" in server_name else "198.51.100.1:443")
    assert can_ping(pair.right, "10.86.0.1", count=5)
    assert can_ping(pair.left, server.tunnel()["peer_address"], count=5)


@pytest.mark.parametrize("server_name", ["198.51.100.1", "2001:db8::1"])
def test_a_full_packet_is_not_fragmented_outside(pair: Pair, server_name: str) -> None:
    server, client = pair.server(), pair.client(servers=[server_name])
    mtu = client.wait_connected()["mtu"]
    assert server.tunnel()["mtu"] == mtu

    # DF outside means that a record that is too large is an error, not two fragments (RFC 8899, section 3).
    payload = mtu - 28
    wait_for(lambda: can_ping(pair.right, "10.86.0.1"), "the first ping")
    pair.right.run("ping", "-q", "-c3", "-i0.05", "-M", "do", "-s", str(payload), "10.86.0.1")

    fragments = [
        line.split()
        for line in pair.right.run("nstat", "-az").splitlines()
        if line.startswith(("IpFragCreates", "Ip6FragCreates"))
    ]
    assert [float(count) for _, count, *_ in fragments] == [0.0, 0.0]


def test_ipv6_goes_through_the_tunnel(net: Topology, tmp_path: Path) -> None:
    pair = Pair(net, tmp_path)
    clients = {"demo": {"key_file": str(pair.key), "subnets": ["fd00:10::/64"]}}
    Daemon(pair.left, "server", {"pool6": "fd00:86::/64", "clients": clients}, tmp_path)
    client = pair.client(subnets=["fd00:10::/64"])
    client.wait_connected()
    pair.right.ip("address add fd00:10::1/64 dev lo")

    assert can_ping(pair.right, "fd00:86::1", count=3)
    assert can_ping(pair.left, "fd00:10::1", count=3)


def test_ipv6_goes_through_a_tunnel_over_the_smallest_path(net: Topology, tmp_path: Path) -> None:
    pair = Pair(net, tmp_path)
    for host in (pair.left, pair.right):
        host.ip("link set eth0 mtu 1280")
    clients = {"demo": {"key_file": str(pair.key)}}
    Daemon(pair.left, "server", {"pool6": "fd00:86::/64", "clients": clients}, tmp_path)
    client = pair.client()

    assert client.wait_connected()["mtu"] == 1280
    pair.right.run("ping", "-q", "-c3", "-i0.05", "-s", "1232", "fd00:86::1")


def test_subnets_that_are_not_granted_are_refused_and_named_on_both_sides(pair: Pair) -> None:
    server = pair.server(subnets=["10.0.0.0/16"])
    client = pair.client(subnets=["10.0.0.0/16", "192.0.2.0/24", "198.18.100.0/25"])
    client.wait_connected()

    assert server.tunnel()["subnets"] == ["10.0.0.0/16"]
    for daemon in (server, client):
        daemon.wait_log("192.0.2.0/24")
    assert "192.0.2.0/24" not in pair.left.ip("route")


def test_a_subnet_that_the_server_itself_is_in_is_refused_with_its_owner(pair: Pair) -> None:
    pair.left.ip("address add 203.0.113.1/24 dev eth0")
    server = pair.server(subnets=["203.0.0.0/16"])
    client = pair.client(subnets=["203.0.113.0/25"])
    client.wait_connected()

    server.wait_log("overlaps 203.0.113.0/24, which belongs to the server's own interface eth0")
    assert server.tunnel()["subnets"] == []


def test_a_packet_with_a_source_that_is_not_the_clients_is_dropped_and_counted(pair: Pair) -> None:
    server = pair.server(subnets=["10.0.0.0/16"])
    client = pair.client(subnets=["10.0.0.0/16"])
    client.wait_connected()
    pair.right.ip("address add 10.0.0.1/16 dev lo")
    pair.right.ip("address add 10.1.0.1/16 dev lo")
    wait_for(lambda: can_ping(pair.right, "10.86.0.1"), "the first ping")
    before = server.tunnel()

    pair.right.run("ping", "-c1", "-W1", "-I", "10.0.0.1", "10.86.0.1")
    pair.right.run("ping", "-c3", "-i0.05", "-W1", "-I", "10.1.0.1", "10.86.0.1", check=False)

    after = server.tunnel()
    assert after["drops"]["source not allowed"] == before["drops"].get("source not allowed", 0) + 3
    assert after["rx_packets"] == before["rx_packets"] + 1


def test_everything_may_go_through_the_tunnel_but_its_own_packets(net: Topology, tmp_path: Path) -> None:
    #   home -- gateway -- server: what home sends goes through the tunnel, except to the server itself
    home, gateway, far = net.host("home"), net.host("gateway", forwards=True), net.host("far")
    net.cable(home, "eth0", gateway, "lan", "192.0.2.2/24", "192.0.2.1/24")
    net.cable(gateway, "wan", far, "eth0", "198.51.100.2/24", "198.51.100.1/24")
    home.ip("route add default via 192.0.2.1")
    far.ip("route add default via 198.51.100.2")
    far.ip("address add 203.0.113.80/32 dev lo")
    before = network_of(home)
    key = str(make_key(tmp_path))
    server = Daemon(far, "server", {"clients": {"home": {"key_file": key}}}, tmp_path)
    section = {"servers": ["198.51.100.9", "198.51.100.1"], "id": "home", "key_file": key}
    client = Daemon(home, "client", section | {"routes": ["0.0.0.0/0"]}, tmp_path)
    client.wait_connected()

    assert can_ping(home, "203.0.113.80", count=3)
    assert server.tunnel()["rx_packets"] >= 3
    routes = home.ip("route")
    assert "default via 192.0.2.1 dev eth0" in routes
    assert "0.0.0.0/1 dev dtun0 proto 217" in routes
    assert "128.0.0.0/1 dev dtun0 proto 217" in routes
    assert "198.51.100.1 via 192.0.2.1 dev eth0 proto 217" in routes
    wait_for(lambda: "198.51.100.9" not in home.ip("route"), "the pin of the other server to go")

    client.kill()
    client.start()
    client.wait_connected()
    assert can_ping(home, "203.0.113.80")
    assert client.stop() == 0
    assert network_of(home) - before == set()


def test_fifty_clients_come_at_once_behind_one_shared_key(net: Topology, tmp_path: Path) -> None:
    key = str(make_key(tmp_path))
    left, right = net.host("left"), net.host("right")
    net.cable(left, "eth0", right, "eth0", "198.51.100.1/24", "198.51.100.2/24")
    server = Daemon(left, "server", {"clients": {"*": {"key_file": key}}}, tmp_path)
    for number in range(50):
        section = {
            "servers": ["198.51.100.1"],
            "key_file": key,
            "id": f"branch-{number}",
            "tun": f"dtun{number}",
        }
        config = {"client": section | {"runtime_directory": str(tmp_path)}}
        (tmp_path / f"{number}.yaml").write_text(yaml.safe_dump(config))

    clients = right.python("tests/netns/many_clients.py", str(tmp_path), "50", stdout=subprocess.PIPE)
    assert clients.stdout is not None
    assert clients.stdout.readline().startswith("connected")

    def connected() -> list[Any]:
        status = server.ask()
        return [row for row in status["tunnels"] if row["state"] == "connected"] if status else []

    assert len({row["peer_address"] for row in connected()}) == 50
    assert len({row["device"] for row in connected()}) == 50
    for number in range(0, 50, 7):
        right.run("ping", "-q", "-c1", "-W2", "-I", f"dtun{number}", "10.86.0.1")
    clients.terminate()
    assert clients.wait(30) == 0
    wait_for(lambda: not connected(), "all to have said goodbye")
