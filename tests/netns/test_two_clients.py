"""Two clients on one host: what belongs to one is not touched by the other."""

from pathlib import Path

import pytest
from daemon import Daemon
from snapshots import changes, snapshot
from topology import Topology, wait_for
from wire import Flow
from worlds import PORT, SERVER, WORLD, World, wait_reached

THERE, _, ELSEWHERE, _ = WORLD


class Two:
    """A server with two ids, and a client for each of them on home; both have to keep the server out of the tunnel."""

    def __init__(self, world: World, routing: str, on_disconnect: str) -> None:
        self.world = world
        clients = {name: {"key_file": world.key} for name in ("one", "two")}
        self.server = world.server(clients=clients)
        common = {
            "routing": routing,
            "on_disconnect": on_disconnect,
            "runtime_directory": str(world.directory),
        }
        self.one = world.client(
            id="one", tun="dtun1", routes=["203.0.113.0/24", "198.18.3.0/29"], forwarding=True, **common
        )
        # Before its way to the server is asked for, the first has taken hold of it.
        self.one.wait_connected()
        self.two = world.client(
            id="two",
            tun="dtun2",
            routes=["198.51.100.0/24", "198.18.3.0/28"],
            forwarding=True,
            **common,
            **({"table": 7218, "mark": 0x6475} if routing == "policy" else {}),
        )
        self.two.wait_connected()

    def reached(self) -> dict[str, int]:
        """By which tunnel each of the two networks goes: packets received from it."""
        return {name: int(self.server.tunnel(name)["rx_packets"]) for name in ("one", "two")}

    def carries(self, name: str, address: str) -> bool:
        """Whether it is this client's tunnel that pings to the address go through."""
        wait_reached(self.world.home, address)
        before = self.reached()
        self.world.home.run("ping", "-q", "-c3", "-i0.05", "-W1", address)
        return self.reached()[name] >= before[name] + 3


@pytest.mark.parametrize("routing", ["main", "policy"])
@pytest.mark.parametrize("killed", [False, True])
def test_one_may_go_without_the_other(net: Topology, tmp_path: Path, routing: str, *, killed: bool) -> None:
    world = World(net, tmp_path)
    before = snapshot(world.home)
    two = Two(world, routing, "keep")
    assert two.carries("one", THERE)
    assert two.carries("two", ELSEWHERE)

    if killed:
        two.one.kill()
    else:
        assert two.one.stop() == 0
    # Until then it sends keepalives, which a killed client's host answers with ICMP.
    wait_for(lambda: two.server.tunnel("one")["state"] != "connected", "the server to notice")

    assert two.carries("two", ELSEWHERE)
    assert two.two.tunnel()["state"] == "connected"
    assert world.home.run("sysctl", "-n", "net.ipv4.ip_forward").strip() == "1"
    wire = world.sniffer()
    assert world.ways(wire, [THERE, ELSEWHERE]) == {THERE: "direct", ELSEWHERE: "tunnel"}

    two.one.start()
    two.one.wait_connected()
    assert two.carries("one", THERE)
    for client in (two.two, two.one):
        assert client.stop() == 0
    assert changes(before, snapshot(world.home)) == ""


def test_each_has_a_server_of_its_own(net: Topology, tmp_path: Path) -> None:
    world = World(net, tmp_path)
    world.far.ip("address add 198.18.3.9/24 dev eth0")
    world.own.add(Flow("udp", "198.18.3.9", PORT))
    before = snapshot(world.home)
    servers, clients = {}, {}
    for name, address, pool, network in (
        ("one", SERVER, "10.86.0.0/24", "203.0.113.0/24"),
        ("two", "198.18.3.9", "10.87.0.0/24", "198.51.100.0/24"),
    ):
        servers[name] = world.server(name=name, listen=[address], pool=pool)
        clients[name] = Daemon(
            world.home,
            "client",
            world.section(id=name, tun=f"dtun-{name}", servers=[address], routes=[network, "198.18.3.0/28"])
            if name == "one"
            else world.section(id=name, tun=f"dtun-{name}", servers=[address], routes=[network]),
            tmp_path,
        )
        clients[name].wait_connected()
    wait_reached(world.home, THERE)
    wait_reached(world.home, ELSEWHERE)
    assert servers["one"].tunnel()["rx_packets"] > 0
    assert servers["two"].tunnel()["rx_packets"] > 0

    assert clients["one"].stop() == 0
    assert world.ways(world.sniffer(), [THERE, ELSEWHERE])[THERE] == "direct"
    wait_reached(world.home, ELSEWHERE)
    assert clients["two"].stop() == 0
    assert changes(before, snapshot(world.home)) == ""
