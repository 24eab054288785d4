"""Which way the tunnel's own packets and the bypassed networks take, whatever happens to the host's routes."""

from pathlib import Path

import pytest
from daemon import Daemon
from topology import Topology, wait_for
from worlds import SERVER, SERVER6, WORLD, World, wait_reached

THERE, BYPASSED, *_ = WORLD
FEW = 100
"""Packets. A loop makes tens of thousands a second."""

IGNORE_LINKDOWN = (
    "net.ipv4.conf.all.ignore_routes_with_linkdown=1",
    "net.ipv4.conf.default.ignore_routes_with_linkdown=1",
    "net.ipv4.conf.eth0.ignore_routes_with_linkdown=1",
    "net.ipv4.conf.eth1.ignore_routes_with_linkdown=1",
)


@pytest.fixture
def world(net: Topology, tmp_path: Path) -> World:
    return World(net, tmp_path)


def has_read(client: Daemon) -> int:
    """How many packets the pump has read from the device, sent or not."""
    row = client.tunnel()
    return int(row["tx_packets"])


@pytest.mark.parametrize(
    ("routing", "server", "loss"),
    [
        ("main", SERVER, "down"),
        ("main", SERVER6, "unplugged"),
        ("main", SERVER, "unplugged"),
        ("policy", SERVER, "down"),
    ],
)
def test_without_an_uplink_the_client_waits_quietly(
    world: World, routing: str, server: str, loss: str
) -> None:
    """The server's route goes with the link, the routes into the tunnel stay: nothing may go round and round."""
    world.server(pool6="fd00:86::/64")
    client = world.client(
        servers=[f"[{server}]" if ":" in server else server], routes="everything", routing=routing
    )
    client.wait_connected()
    wait_reached(world.home, THERE)
    before, mtu, lines = has_read(client), client.tunnel()["mtu"], len(client.log.splitlines())

    if loss == "down":
        world.home.ip("link set eth0 down")
    else:
        world.home.run("sysctl", "-qw", *IGNORE_LINKDOWN[:3], IGNORE_LINKDOWN[2].replace("ipv4", "ipv6"))
        world.gate.run("sysctl", "-qw", "net.ipv6.conf.lan.keep_addr_on_down=1")
        world.gate.ip("link set lan down")
    client.wait_log("no session: ")

    assert client.tunnel()["mtu"] == mtu
    assert has_read(client) - before < FEW
    assert len(client.log.splitlines()) - lines < 10, client.log

    if loss == "down":
        world.home.ip("link set eth0 up")
        world.home.ip("route add default via 198.18.1.1 dev eth0 metric 100")
    else:
        world.gate.ip("link set lan up")
    client.wait_connected()
    wait_reached(world.home, THERE)
    assert client.stop() == 0
    assert "217" not in world.home.ip("route show table all")


def test_the_tunnels_own_packets_do_not_go_into_it_by_anybodys_rule(world: World) -> None:
    """A rule of the administrator's sends the server's address into the tunnel."""
    world.server()
    client = world.client(routes=["203.0.113.0/24"])
    client.wait_connected()
    wait_reached(world.home, THERE)
    before = has_read(client)

    world.home.ip("route add default dev dtun0 table 100")
    world.home.ip(f"rule add to {SERVER} lookup 100 priority 100")
    wait_for(
        lambda: client.tunnel()["drops"].get("routing loop"), "the loop to be noticed", log=lambda: client.log
    )
    client.wait_log(f"this host routes packets to {SERVER} into dtun0")
    client.wait_log("disconnected: ")

    assert has_read(client) - before < FEW
    assert any("dtun0" in line and SERVER in line for line in client.tunnel()["warnings"])
    world.home.ip("rule del priority 100")
    client.wait_connected()
    wait_reached(world.home, THERE)
