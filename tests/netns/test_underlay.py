"""Which way the tunnel's own packets and the bypassed networks take, whatever happens to the host's routes."""

import socket
from pathlib import Path

import pytest
from daemon import Daemon, can_ping
from topology import Topology, wait_for
from worlds import SERVER, SERVER6, WORLD, World, wait_reached

THERE, BYPASSED, *_ = WORLD
FEW = 100
"""Packets. A loop makes tens of thousands a second."""

IGNORE_LINKDOWN = [f"net.{ip}.conf.eth0.ignore_routes_with_linkdown=1" for ip in ("ipv4", "ipv6")]


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
        world.home.run("sysctl", "-qw", *IGNORE_LINKDOWN)
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


@pytest.mark.parametrize("routing", ["main", "policy"])
def test_packets_leave_from_the_source_that_the_hosts_route_prescribes(world: World, routing: str) -> None:
    """`default via ... src ...`: the provider drops what comes from any other address."""
    world.home.ip("address add 198.18.1.77/24 dev eth0")
    world.home.ip("route replace default via 198.18.1.1 dev eth0 metric 100 src 198.18.1.77")
    hook = "type filter hook forward priority 0"
    drop = f"table ip t {{ chain c {{ {hook}; ip saddr 198.18.1.2 drop; }}; }}"
    world.gate.run("nft", "-f", "-", text=drop)
    server = world.server()
    client = world.client(routes="everything", routing=routing, bypass=["192.0.2.0/24"])
    client.wait_connected()
    assert (server.tunnel()["endpoint"] or "").startswith("198.18.1.77:")
    wait_reached(world.home, THERE)
    wire = world.sniffer()
    assert world.ways(wire, [THERE, BYPASSED]) == {THERE: "tunnel", BYPASSED: "direct"}


def test_a_bypass_without_a_way_is_named(world: World) -> None:
    """The host's only default route leads through another VPN."""
    world.home.ip("tuntap add dev vpn0 mode tun")
    world.home.ip("link set vpn0 up")
    world.home.ip("route del default")
    world.home.ip("route add default dev vpn0")
    world.home.ip("route add 198.18.3.0/24 via 198.18.1.1")
    world.server()
    client = world.client(routes="everything", bypass=["192.0.2.0/24"])
    client.wait_connected()
    said = (
        "1 bypassed network has no way around the tunnel (192.0.2.0/24): this host has no IPv4 default route"
    )
    assert [line for line in client.tunnel()["warnings"] if line.startswith(said)]
    assert client.log.count(said) == 1

    world.home.ip("route add default via 198.18.1.1 dev eth0 metric 50")
    wait_for(
        lambda: not [line for line in client.tunnel()["warnings"] if line.startswith(said)], "the way around"
    )
    wait_reached(world.home, THERE)
    assert world.ways(world.sniffer(), [THERE, BYPASSED]) == {THERE: "tunnel", BYPASSED: "direct"}


@pytest.mark.parametrize("strict", [0, 1], ids=["loose", "rp_filter"])
def test_connections_from_outside_are_answered_the_way_they_came(world: World, strict: int) -> None:
    """Whoever reaches the host by its public address goes on to do so: ping, a new connection, one from before."""
    home, far = "198.18.1.2", THERE
    world.home.run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", f"net.ipv4.conf.eth0.rp_filter={strict}")
    listening = world.home.open_socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.bind((home, 22))
    listening.listen()

    def login() -> tuple[socket.socket, socket.socket]:
        asking = world.far.open_socket(socket.AF_INET, socket.SOCK_STREAM)
        asking.settimeout(5)
        asking.bind((far, 0))
        asking.connect((home, 22))
        answering, _ = listening.accept()
        answering.settimeout(5)
        world.home.sockets.append(answering)
        return asking, answering

    def talk(one: socket.socket, other: socket.socket) -> None:
        for near, distant in ((one, other), (other, one)):
            near.sendall(b"hello")
            assert distant.recv(9) == b"hello"

    listening.settimeout(5)
    before = [login(), login()]
    world.server()
    client = world.client(routes="everything", routing="policy", answer_directly=True)
    client.wait_connected()
    wait_for(lambda: "dtun0" in world.home.ip(f"route get {BYPASSED}"), "the routes")

    assert can_ping(world.far, home, "-I", far)
    asking, answering = before[0]
    talk(asking, answering)
    asking, answering = before[1]
    talk(answering, asking)
    talk(*login())
    wire = world.sniffer()
    assert world.ways(wire, [BYPASSED]) == {BYPASSED: "tunnel"}, "what the host begins itself"

    assert client.stop() == 0
    assert "dtun" not in world.home.run("nft", "list", "ruleset")
