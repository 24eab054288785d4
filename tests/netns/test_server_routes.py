"""A server as a router for its clients: forwarding, NAT, and the routes that it pushes.

lan 10.7.0.2 --- right (client) === left (server) --- world 203.0.113.9, which has no way back to any of them
"""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from daemon import Daemon, can_ping, make_key, network_of
from topology import Host, Topology, wait_for

from dtun.service.control import ask

pytestmark = pytest.mark.netns

SERVER, CLIENT = "198.51.100.1", "198.51.100.2"
WORLD = "203.0.113.9"


class World:
    """One client, and a host behind it that wants to reach one behind the server."""

    def __init__(self, net: Topology, directory: Path) -> None:
        self.directory = directory
        self.key = str(make_key(directory))
        self.lan, self.right = net.host("lan"), net.host("right", forwards=True)
        self.left, self.world = net.host("left"), net.host("world")
        net.cable(self.right, "eth0", self.left, "eth0", f"{CLIENT}/24", f"{SERVER}/24")
        net.cable(self.lan, "eth0", self.right, "eth1", "10.7.0.2/24", "10.7.0.1/24")
        net.cable(self.left, "eth1", self.world, "eth0", "203.0.113.1/24", f"{WORLD}/24")
        self.lan.ip("route add default via 10.7.0.1")
        self.left.ip(f"route add default via {WORLD}")

    def server(self, **settings: Any) -> Daemon:
        section = {"clients": {"demo": {"key_file": self.key, "subnets": ["10.7.0.0/16"]}}, **settings}
        return Daemon(self.left, "server", section, self.directory)

    def client(self, **settings: Any) -> Daemon:
        section = {
            "servers": [SERVER],
            "id": "demo",
            "key_file": self.key,
            "subnets": ["10.7.0.0/24"],
            **settings,
        }
        client = Daemon(self.right, "client", section, self.directory)
        client.wait_connected()
        return client


@pytest.fixture
def world(net: Topology, tmp_path: Path) -> World:
    return World(net, tmp_path)


def forwards(host: Host) -> bool:
    return host.run("sysctl", "-n", "net.ipv4.ip_forward").strip() == "1"


def test_a_host_behind_a_client_reaches_the_world_with_the_servers_address(world: World) -> None:
    before = network_of(world.left)
    server = world.server(masquerade=True)
    client = world.client(routes=["203.0.113.0/24"])
    listener = world.world.popen(
        "tcpdump", "-lni", "eth0", "icmp", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: can_ping(world.lan, WORLD), "a ping through NAT", log=lambda: server.log)
    wait_for(lambda: can_ping(world.lan, WORLD, count=5), "all the pings")
    assert forwards(world.left)
    assert listener.stdout is not None
    seen = next(line for line in listener.stdout if "echo request" in line)
    assert re.search(r"IP 203\.0\.113\.1 > 203\.0\.113\.9", seen), seen
    # Addresses that no client has do not leave by the uplink.
    assert "unreachable 10.86.0.0/16" in world.left.ip("route show proto 217")
    assert "this host forwards packets of the clients" in server.log
    assert "net.ipv4.ip_forward=1" in server.log

    client.stop()
    server.stop()
    assert not forwards(world.left), "as it was before"
    assert network_of(world.left) == before
    assert "dtun" not in world.left.run("nft", "list", "tables")


def test_nat_is_switched_on_while_the_client_is_there(world: World) -> None:
    server = world.server()
    world.client(routes=["203.0.113.0/24"])
    assert not forwards(world.left)
    assert not can_ping(world.lan, WORLD)
    server.section["masquerade"] = ["eth1"]
    _reload(server)
    wait_for(lambda: can_ping(world.lan, WORLD), "a ping through NAT")
    server.section["masquerade"] = False
    _reload(server)
    wait_for(lambda: not can_ping(world.lan, WORLD), "the end of it")
    assert not forwards(world.left)


def test_nat_follows_the_default_route(world: World) -> None:
    server = world.server(masquerade=True)
    world.client(routes=["203.0.113.0/24"])
    wait_for(lambda: can_ping(world.lan, WORLD), "a ping through NAT")
    world.left.ip("route del default")
    wait_for(lambda: "no default route" in str(server.ask()), "the warning")
    assert not can_ping(world.lan, WORLD)
    world.left.ip(f"route add default via {WORLD}")
    wait_for(lambda: can_ping(world.lan, WORLD), "a ping through NAT again")
    assert "no default route" not in str(server.ask())


def test_a_pushed_route_is_one_of_a_client_that_accepts_it(world: World) -> None:
    world.server(masquerade=True, push_routes=["203.0.113.0/24"])
    deaf = world.client()
    assert "203.0.113.0/24" not in world.right.ip("route")
    deaf.stop()
    world.client(accept_routes="all")
    wait_for(lambda: "203.0.113.0/24 dev dtun0" in world.right.ip("route"), "the route")
    wait_for(lambda: can_ping(world.lan, WORLD), "a ping by the pushed route")


def _reload(server: Daemon) -> None:
    server.config.write_text(yaml.safe_dump({"server": server.section}))
    answer = ask(Path(server.section["runtime_directory"]) / "server.sock", "reload", timeout=30)
    assert not answer["failed"], answer


def advertised(host: Host) -> str:
    return host.run("sysctl", "-n", "net.ipv6.conf.eth0.accept_ra").strip()


def test_a_router_keeps_the_routes_of_router_advertisements(world: World) -> None:
    assert advertised(world.left) == "1"
    world.left.ip("-6 route add default via fe80::1 dev eth0 proto ra")
    server = world.server(pool6="fd00:86::/64", forwarding=True)
    assert advertised(world.left) == "2"
    assert "via fe80::1" in world.left.ip("-6 route show default")
    assert server.stop() == 0
    assert advertised(world.left) == "1"
