"""The host changes its uplink while things are under way, through the tunnel and around it."""

import subprocess
import time
from pathlib import Path

import pytest
from topology import Host, Topology, wait_for
from worlds import SERVER, WORLD, World, wait_reached

THERE, BYPASSED, *_ = WORLD
LONGEST_GAP = 1.0  # seconds


def flow(host: Host, command: str, address: str, port: int) -> subprocess.Popen[str]:
    """One that is under way."""
    process = host.python(
        "tests/netns/flows.py", command, address, str(port), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def ended(process: subprocess.Popen[str]) -> list[str]:
    """What it says in the end."""
    output, _ = process.communicate("\n", timeout=30)
    return output.split()


@pytest.mark.parametrize("routing", ["main", "policy"])
def test_flows_go_on_by_the_better_gateway(net: Topology, tmp_path: Path, routing: str) -> None:
    world = World(net, tmp_path)
    world.second_uplink()
    world.server()
    client = world.client(routes="everything", routing=routing, bypass=["192.0.2.0/24"])
    client.wait_connected()
    wait_reached(world.home, THERE)
    flow(world.far, "echo", BYPASSED, 7)
    flow(world.far, "sink", THERE, 9)
    asking = flow(world.home, "ask", BYPASSED, 7)
    pouring = flow(world.home, "pour", THERE, 9)
    first, second = world.sniffer("eth0"), world.sniffer("eth1")

    # A better way comes, then the worse one goes.
    begun = time.monotonic()
    world.home.ip("route add default via 198.18.2.1 dev eth1 metric 50")
    if routing == "main":
        routes = ("192.0.2.0/24 via 198.18.2.1 dev eth1", f"{SERVER} via 198.18.2.1 dev eth1")
        wait_for(
            lambda: all(f"{route} proto 217" in world.home.ip("route") for route in routes),
            "the routes to follow the gateway",
        )
    moved = time.monotonic()
    wait_for(lambda: second.sent().total() > 200, "flows to take the second uplink")
    first.forget()
    wait_for(lambda: ("udp", SERVER, 443) in second.sent(), "the tunnel to take the second uplink")
    world.home.ip("link set eth0 down")
    client.wait_log("the route to")
    before = client.tunnel()["tx_bytes"]
    wait_for(lambda: client.tunnel()["tx_bytes"] > before + 1_000_000, "the tunnel to carry a megabyte")
    answers, gap = ended(asking)
    count, verdict = ended(pouring)

    print(
        f"{routing}: routes moved after {moved - begun:.2f} s, longest gap {gap} s of {answers} answers; {count} bytes"
    )
    assert verdict == "same"
    assert int(count) > 1_000_000
    assert float(gap) < LONGEST_GAP
    assert int(answers) > 50

    # The only uplink fails, and a worse one comes later.
    asking = flow(world.home, "ask", BYPASSED, 7)
    world.home.ip("link set eth0 up")
    world.home.ip("route add default via 198.18.1.1 dev eth0 metric 100")
    world.home.ip("link set eth1 down")
    wait_reached(world.home, BYPASSED)
    first.forget()
    wait_reached(world.home, THERE)
    assert ("udp", SERVER, 443) in first.sent()
    answers, gap = ended(asking)
    print(f"{routing}: and back, longest gap {gap} s of {answers} answers")
    assert float(gap) < LONGEST_GAP
    assert client.stop() == 0
    assert "217" not in world.home.ip("route show table all")


@pytest.mark.parametrize("routing", ["main", "policy"])
def test_the_host_gets_another_address(net: Topology, tmp_path: Path, routing: str) -> None:
    """As a DHCP server does it that has given the old one away: it goes, and the routes by it with it."""
    world = World(net, tmp_path)
    server = world.server()
    client = world.client(routes="everything", routing=routing, bypass=["192.0.2.0/24"])
    client.wait_connected()
    wait_reached(world.home, THERE)

    world.home.ip("address flush dev eth0 scope global")
    world.home.ip("address add 198.18.1.22/24 dev eth0")
    world.home.ip("route add default via 198.18.1.1 dev eth0 metric 100")

    wait_for(
        lambda: (server.tunnel()["endpoint"] or "").startswith("198.18.1.22:"), "the server to hear of it"
    )
    wait_reached(world.home, THERE)
    wait_reached(world.home, BYPASSED)
    wire = world.sniffer()
    assert world.ways(wire, [THERE, BYPASSED]) == {THERE: "tunnel", BYPASSED: "direct"}
    assert client.stop() == 0
    assert "217" not in world.home.ip("route show table all")
