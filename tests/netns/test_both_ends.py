"""Hosts behind both ends, with what dtun itself does to forward and to hide their packets: one NAT, or none."""

import subprocess
import textwrap
from pathlib import Path

import pytest
from snapshots import changes, snapshot
from topology import Host, Topology
from worlds import World, wait_reached

BYTES = 3_000_000
# Of the connections of these hosts no more than the largest segment is of interest: mss.py ADDRESS PORT
MSS = textwrap.dedent("""
    import socket, sys
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10) as connection:
        print(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG))
""")
TIMESTAMPS = 12  # bytes of options in each segment (RFC 7323), which TCP_MAXSEG leaves out


def settings(host: Host) -> list[str]:
    return host.run("sysctl", "-n", "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding").split()


def serve(host: Host, address: str, port: int, script: str = "transfer.py", what: str = "serve") -> None:
    server = host.python(f"tests/netns/{script}", what, address, str(port), stdout=subprocess.PIPE)
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"


def transferred(host: Host, address: str, port: int) -> bool:
    """Whether TCP both ways arrives as it was sent."""
    client = host.python(
        "tests/netns/transfer.py", "tcp", address, str(port), str(BYTES), "7", stdout=subprocess.PIPE
    )
    output, _ = client.communicate(timeout=30)
    return output == "same\n"


def largest_segment(host: Host, address: str, port: int) -> int:
    with host.python("-c", MSS, address, str(port), stdout=subprocess.PIPE) as asker:
        output, _ = asker.communicate(timeout=15)
    return int(output)


@pytest.mark.parametrize("routing", ["main", "policy"])
def test_a_host_behind_the_client_reaches_one_that_does_not_know_it(
    net: Topology, tmp_path: Path, routing: str
) -> None:
    #   pc 10.0.0.2 -- home (client) ==== far (server, masquerade) -- www 203.0.112.2, without a route to anywhere
    world = World(net, tmp_path)
    pc = world.behind(world.home, "pc", "10.0.0.0/16", "fd00:10::/64")
    www = world.behind(world.far, "www", "203.0.112.0/24", "2001:db8:112::/64")
    pc.ip("route add default via 10.0.0.1")
    before = snapshot(world.home), snapshot(world.far)
    assert settings(world.home) == settings(world.far) == ["0", "0"]
    server = world.server({"subnets": ["10.0.0.0/16"]}, masquerade=["www"])
    client = world.client(
        routes=["203.0.112.0/24"], subnets=["10.0.0.0/16"], forwarding=True, routing=routing
    )
    mtu = int(client.wait_connected()["mtu"])

    wait_reached(pc, "203.0.112.2")
    serve(www, "203.0.112.2", 8000)
    assert (
        "this host forwards packets between its networks and the tunnel (net.ipv4.ip_forward=1)" in client.log
    )
    # The device of pc takes 1,500 bytes, and no ICMP has to tell it that the tunnel takes less.
    serve(www, "203.0.112.2", 8001, "flows.py", "sink")
    assert largest_segment(pc, "203.0.112.2", 8001) == mtu - 40 - TIMESTAMPS
    assert transferred(pc, "203.0.112.2", 8000)
    assert "10.0." not in www.ip("route")
    assert "default" not in www.ip("route")

    assert client.stop() == 0
    assert server.stop() == 0
    assert settings(world.home) == settings(world.far) == ["0", "0"]
    assert changes(before[0], snapshot(world.home)) == ""
    assert changes(before[1], snapshot(world.far)) == ""


def test_the_client_alone_lowers_the_maximum_segment_size(net: Topology, tmp_path: Path) -> None:
    """The server's host is a router already, so that it is not asked to."""
    world = World(net, tmp_path)
    pc = world.behind(world.home, "pc", "10.0.0.0/16", "fd00:10::/64")
    www = world.behind(world.far, "www", "203.0.112.0/24", "2001:db8:112::/64")
    pc.ip("route add default via 10.0.0.1")
    www.ip("route add default via 203.0.112.1")
    world.far.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    world.server({"subnets": ["10.0.0.0/16"]})
    client = world.client(routes=["203.0.112.0/24"], subnets=["10.0.0.0/16"], forwarding=True)
    mtu = int(client.wait_connected()["mtu"])

    wait_reached(pc, "203.0.112.2")
    serve(www, "203.0.112.2", 8001, "flows.py", "sink")
    assert largest_segment(pc, "203.0.112.2", 8001) == mtu - 40 - TIMESTAMPS


def test_what_was_forwarded_before_goes_on_after_the_stop(net: Topology, tmp_path: Path) -> None:
    world = World(net, tmp_path)
    world.far.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    before = snapshot(world.far)
    server = world.server(masquerade=True, forwarding=True)
    assert "dtun-server" in world.far.run("nft", "list", "tables")

    assert server.stop() == 0

    assert settings(world.far) == ["1", "0"]
    assert changes(before, snapshot(world.far)) == ""


def test_ipv6_is_forwarded_between_hosts_behind_both_ends(net: Topology, tmp_path: Path) -> None:
    #   pc fd00:10::2 -- home (client) ==== far (server) -- www fd00:50::2
    world = World(net, tmp_path)
    pc = world.behind(world.home, "pc", "10.0.0.0/16", "fd00:10::/64")
    www = world.behind(world.far, "www", "203.0.112.0/24", "fd00:50::/64")
    for host, router in ((pc, "fd00:10::1"), (www, "fd00:50::1")):
        host.ip(f"-6 route add default via {router}")
    before = snapshot(world.home), snapshot(world.far)
    entry = {"subnets": ["fd00:10::/48"], "push_routes": ["fd00:50::/64"]}
    server = world.server(entry, pool6="fd00:86::/64", forwarding=True)
    client = world.client(subnets=["fd00:10::/64"], accept_routes="all", forwarding=True)
    client.wait_connected()

    wait_reached(pc, "fd00:50::2")
    wait_reached(www, "fd00:10::2")
    assert "fd00:50::/64 dev dtun0 proto 217" in world.home.ip("-6 route")
    assert "fd00:10::/64 dev dtun-home proto 217" in world.far.ip("-6 route")
    serve(www, "fd00:50::2", 8000)
    assert transferred(pc, "fd00:50::2", 8000)

    assert client.stop() == 0
    assert server.stop() == 0
    assert changes(before[0], snapshot(world.home)) == ""
    assert changes(before[1], snapshot(world.far)) == ""
