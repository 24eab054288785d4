"""With `on_disconnect: block` nothing leaves the host beside the tunnel, whatever happens, until dtun is stopped."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from daemon import can_ping
from snapshots import changes, snapshot
from topology import Host, Topology, wait_for
from wire import Flow, Sniffer
from worlds import SERVER, SERVER6, TUNNEL, WORLD, WORLD6, World, wait_reached

ROUNDS = 15


class Noise:
    """Programs on home that try to get out all the time."""

    def __init__(self, world: World) -> None:
        self._file = world.directory / "rounds"
        own = ("eth0", "198.18.1.2", "2001:db8:1::2")
        targets = (SERVER, SERVER6, *own, WORLD[0], WORLD[1], WORLD6[0])
        self._process = world.home.python(
            "tests/netns/noise.py", str(self._file), *targets, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    @property
    def rounds(self) -> int:
        return int(self._file.read_text() or "0")

    def goes_on(self, rounds: int = ROUNDS) -> None:
        """Let them try for this many rounds."""
        end = self.rounds + rounds
        wait_for(lambda: self.rounds >= end, "the noise to go on")


class Watch:
    """What has left home by both uplinks."""

    def __init__(self, *sniffers: Sniffer) -> None:
        self._sniffers = sniffers
        self.packets = 0

    def leaked(self) -> dict[Flow, int]:
        """Everything but the tunnel's own packets."""
        found: Counter[Flow] = Counter()
        for sniffer in self._sniffers:
            found += sniffer.sent()
        self.packets = sum(count for flow, count in found.items() if flow in TUNNEL)
        return {flow: count for flow, count in found.items() if flow not in TUNNEL}

    def forget(self) -> None:
        for sniffer in self._sniffers:
            sniffer.forget()


@pytest.mark.parametrize(("routing", "pool6"), [("main", None), ("policy", None), ("policy", "fd00:86::/64")])
def test_not_one_packet_leaves_beside_the_tunnel(
    net: Topology, tmp_path: Path, routing: str, pool6: str | None
) -> None:
    world = World(net, tmp_path)
    world.second_uplink()
    before = snapshot(world.home)
    watch = Watch(world.sniffer("eth0"), world.sniffer("eth1"))

    # From before the first packet, with the server down.
    client = world.client(routes="everything", routing=routing, on_disconnect="block")
    noise = Noise(world)
    noise.goes_on()
    assert watch.leaked() == {}

    server = world.server(pool6=pool6)
    client.wait_connected()
    wait_reached(world.home, WORLD[0])
    noise.goes_on()
    assert watch.leaked() == {}, "connected"

    server.kill()
    wait_for(lambda: client.tunnel()["state"] == "connecting", "the client to notice")
    noise.goes_on()
    assert watch.leaked() == {}, "the server was killed"

    server.start()
    client.wait_connected()
    noise.goes_on()
    client.kill()
    noise.goes_on(2 * ROUNDS)
    assert watch.leaked() == {}, "the client was killed"

    client.start()
    client.wait_connected()
    noise.goes_on()
    assert watch.leaked() == {}, "the client is back"

    world.home.ip("route add default via 198.18.2.1 dev eth1 metric 50")
    noise.goes_on()
    world.home.ip("link set eth0 down")
    client.wait_log("the route to")
    client.wait_connected()
    wait_reached(world.home, WORLD[0])
    noise.goes_on()
    world.home.ip("link set eth0 up")
    world.home.ip("route add default via 198.18.1.1 dev eth0 metric 10")
    # IPv6 addresses go with the link.
    world.home.ip("-6 address add 2001:db8:1::2/64 dev eth0")
    world.home.ip("-6 route add default via 2001:db8:1::1 dev eth0 metric 100")
    noise.goes_on(2 * ROUNDS)
    assert watch.leaked() == {}, "the gateway has moved"
    assert watch.packets > 100, "the watch has seen the tunnel"

    # What the programs want gets out as soon as nobody stops it: the watch is not blind.
    assert client.stop() == 0
    watch.forget()
    noise.goes_on()
    protocols = {(flow.protocol, flow.destination) for flow in watch.leaked()}
    assert {(protocol, WORLD[0]) for protocol in ("udp", "tcp", "icmp")} <= protocols
    assert {(protocol, SERVER) for protocol in ("udp", "tcp", "icmp")} <= protocols
    assert {(protocol, WORLD6[0]) for protocol in ("udp", "tcp", "icmp")} <= protocols
    left = changes(before, snapshot(world.home))
    assert not [line for line in left.splitlines() if re.search(r'"217"|7217|unreachable|dtun', line)], left


@pytest.mark.parametrize("on_disconnect", ["block", "keep"])
@pytest.mark.parametrize("routing", ["main", "policy"])
def test_ipv6_does_not_leave_by_a_device_that_a_program_insists_on(
    net: Topology, tmp_path: Path, routing: str, on_disconnect: str
) -> None:
    """Linux looks past unreachable IPv6 routes then. Not so the packet filter, also when dtun has been killed."""
    world = World(net, tmp_path)
    neighbour, insisting = "2001:db8:1::1", ("-I", "eth0")
    world.server()
    client = world.client(
        routes="everything", bypass=["2001:db8:90::/48"], routing=routing, on_disconnect=on_disconnect
    )
    client.wait_connected()
    watch = Watch(world.sniffer())

    def gets_out() -> set[str]:
        watch.forget()
        for address in (WORLD[0], WORLD6[0]):
            world.home.run("ping", "-c1", "-W1", *insisting, address, check=False)
        return {flow.destination for flow in watch.leaked()} - {SERVER}

    ipv4 = set() if on_disconnect == "block" else {WORLD[0]}
    assert gets_out() == ipv4
    client.kill()
    assert gets_out() == ipv4

    # What is bypassed gets out, insisting or not, and so do packets for the link.
    client.start()
    client.wait_connected()
    world.home.ip("-6 neigh flush all")
    for address in (WORLD6[1], neighbour, f"{link_local(world.gate, 'lan')}%eth0", "ff02::1%eth0"):
        assert can_ping(world.home, address), address
        assert can_ping(world.home, address, *insisting), address
    assert client.stop() == 0
    assert "dtun" not in world.home.run("nft", "list", "ruleset")
    assert gets_out() == {WORLD[0], WORLD6[0]}


@pytest.mark.parametrize("routing", ["main", "policy"])
def test_rules_and_routes_of_others_do_not_open_it(net: Topology, tmp_path: Path, routing: str) -> None:
    """Neither for programs on this host nor for hosts behind it."""
    world = World(net, tmp_path)
    guest = world.behind(world.home, "guest", "10.0.0.0/16", "fd00:10::/64")
    for version, gateway in (("-4", "198.18.1.1"), ("-6", "2001:db8:1::1")):
        world.home.ip(f"{version} route add default via {gateway} table 100")
        world.home.ip(f"{version} rule add lookup 100 priority 5000")
    world.home.ip(f"route add {WORLD[2]} via 198.18.1.1")
    guest.ip("route add default via 10.0.0.1")
    guest.ip("route add default via fd00:10::1")
    world.home.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    client = world.client(
        routes="everything", bypass=[f"{WORLD[1]}/32"], routing=routing, on_disconnect="block"
    )
    watch = Watch(world.sniffer())
    for address in (WORLD[0], WORLD[2], WORLD6[0]):
        for host in (world.home, guest):
            assert not can_ping(host, address)
    assert watch.leaked() == {}
    assert can_ping(world.home, WORLD[1]), "bypassed"
    (warning,) = [line for line in client.tunnel()["warnings"] if "IPv4" in line]
    assert warning.startswith("rule 5000 of another program (table 100) comes before"), warning
    assert warning in client.log

    # It is no mere drop of everything: the rules go, and the tunnel works.
    for version in ("-4", "-6"):
        world.home.ip(f"{version} rule del priority 5000")
    assert can_ping(guest, "10.0.0.1")
    world.server()
    client.wait_connected()
    wait_reached(world.home, WORLD[0])
    wait_for(lambda: "rule 5000" not in str(client.tunnel()["warnings"]), "the end of the warning")


def test_down_opens_what_a_killed_one_has_closed(net: Topology, tmp_path: Path) -> None:
    world = World(net, tmp_path)
    before = snapshot(world.home)
    client = world.client(routes="everything", on_disconnect="block")
    wait_for(lambda: "guard_output" in world.home.run("nft", "list", "ruleset"), "the filter")
    client.kill()
    assert not can_ping(world.home, WORLD6[0], "-I", "eth0")

    world.home.run(sys.executable, "-m", "dtun", "down", "-c", str(client.config))

    assert changes(before, snapshot(world.home)) == ""
    assert can_ping(world.home, WORLD6[0], "-I", "eth0")


def link_local(host: Host, device: str) -> str:
    found = re.search(r"inet6 (fe80\S+)/", host.ip(f"-6 address show dev {device}"))
    assert found is not None
    return found[1]
