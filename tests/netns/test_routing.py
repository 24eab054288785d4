"""What goes through the tunnel and what goes around it, told by what is on the wire."""

from pathlib import Path

import pytest
from snapshots import changes, snapshot
from topology import Topology, wait_for
from wire import Flow
from worlds import SERVER, SERVER6, WORLD, WORLD6, World, wait_reached

MODES = ("main", "policy")
THERE, BYPASSED, LISTED, EXCLUDED = WORLD
V6, BYPASSED6 = WORLD6


@pytest.fixture
def world(net: Topology, tmp_path: Path) -> World:
    return World(net, tmp_path)


@pytest.mark.parametrize("routing", MODES)
def test_everything_goes_through_the_tunnel_but_what_is_bypassed(world: World, routing: str) -> None:
    listed = world.directory / "local.txt"
    listed.write_text("# ours\n198.51.100.0/25\n198.51.100.128/25  # the other half\n2001:db8:90::/48\n")
    before = snapshot(world.home)
    world.server(pool6="fd00:86::/64")
    client = world.client(
        routes="everything",
        routing=routing,
        bypass=["192.0.2.0/24"],
        bypass_files=[str(listed)],
        exclude=["100.64.0.0/10"],
    )
    client.wait_connected()
    wire = world.sniffer()
    wait_reached(world.home, THERE)

    assert world.ways(wire, [*WORLD, *WORLD6]) == {
        THERE: "tunnel",
        BYPASSED: "direct",
        LISTED: "direct",
        EXCLUDED: "direct",
        V6: "tunnel",
        BYPASSED6: "direct",
    }
    assert world.ways(wire, ["198.18.1.1"]) == {"198.18.1.1": "direct"}, "a neighbour on the link"

    assert client.stop() == 0
    assert changes(before, snapshot(world.home)) == ""
    assert set(world.ways(wire, WORLD).values()) == {"direct"}


@pytest.mark.parametrize("routing", MODES)
def test_only_the_listed_networks_go_through_the_tunnel(world: World, routing: str) -> None:
    before = snapshot(world.home)
    world.server()
    client = world.client(routes=["203.0.113.0/24", "198.51.100.0/24"], routing=routing)
    client.wait_connected()
    wire = world.sniffer()
    wait_reached(world.home, THERE)

    assert world.ways(wire, [*WORLD, V6]) == {
        THERE: "tunnel",
        LISTED: "tunnel",
        BYPASSED: "direct",
        EXCLUDED: "direct",
        V6: "direct",
    }

    assert client.stop() == 0
    assert changes(before, snapshot(world.home)) == ""


@pytest.mark.parametrize(
    ("settings", "way"),
    [
        ({"routing": "policy"}, "tunnel"),
        ({"routing": "policy", "host_routes_first": True}, "direct"),
        ({"routing": "main"}, "direct"),
    ],
    ids=["policy", "host_routes_first", "main"],
)
def test_routes_that_dhcp_brings_pull_nothing_out_of_a_tunnel_by_policy(
    world: World, settings: dict[str, object], way: str
) -> None:
    """Narrow ones, as DHCP option 121 (RFC 3442) and router advertisements (RFC 4191) bring them."""
    before = set(world.home.ip("route").splitlines() + world.home.ip("-6 route").splitlines())
    world.server(pool6="fd00:86::/64")
    client = world.client(routes="everything", **settings)
    client.wait_connected()
    wire = world.sniffer()
    wait_reached(world.home, THERE)
    wait_reached(world.home, V6)
    assert set(world.ways(wire, [THERE, BYPASSED, V6]).values()) == {"tunnel"}

    rogue = {
        "route add 203.0.113.0/24 via 198.18.1.1 dev eth0 proto dhcp metric 10",
        "route add 192.0.2.80/32 via 198.18.1.1 dev eth0 proto dhcp",
        "-6 route add 2001:db8:80::/48 via 2001:db8:1::1 dev eth0 proto ra metric 10",
    }
    for route in rogue:
        world.home.ip(route)

    assert world.ways(wire, [THERE, BYPASSED, V6]) == {THERE: way, BYPASSED: way, V6: way}
    assert world.ways(wire, [LISTED]) == {LISTED: "tunnel"}, "by no route but the default"
    if settings["routing"] == "policy":
        main = set(world.home.ip("route").splitlines() + world.home.ip("-6 route").splitlines())
        assert before <= main, "no route of the main table is touched"
        assert not [line for line in main if "proto 217" in line]
    assert client.stop() == 0


def test_nothing_goes_through_the_tunnel_unless_it_is_asked_for(world: World) -> None:
    world.server()
    client = world.client()
    client.wait_connected()
    wire = world.sniffer()
    wait_reached(world.home, "10.86.0.1")

    assert world.ways(wire, [*WORLD, *WORLD6, "10.86.0.1"]) == {
        **dict.fromkeys((*WORLD, *WORLD6), "direct"),
        "10.86.0.1": "tunnel",
    }


@pytest.mark.parametrize("routing", MODES)
@pytest.mark.parametrize(("ipv6", "way"), [(None, "nowhere"), ("allow", "direct")])
def test_ipv6_does_not_leak_past_a_tunnel_that_has_none(
    world: World, routing: str, ipv6: str | None, way: str
) -> None:
    world.server()
    client = world.client(routes=["0.0.0.0/0"], routing=routing, ipv6=ipv6)
    client.wait_connected()
    wire = world.sniffer()
    wait_reached(world.home, THERE)

    assert world.ways(wire, [THERE, *WORLD6]) == {THERE: "tunnel", V6: way, BYPASSED6: way}

    assert client.stop() == 0
    assert world.ways(wire, WORLD6) == {V6: "direct", BYPASSED6: "direct"}


@pytest.mark.parametrize("routing", MODES)
def test_outside_there_may_be_ipv6_only(world: World, routing: str) -> None:
    for host in (world.home, world.gate):
        host.ip("-4 route flush default")
    world.home.ip("-4 address flush dev eth0")
    before = snapshot(world.home)
    world.server()
    client = world.client(servers=[SERVER6], routes="everything", routing=routing)
    client.wait_connected()
    wire = world.sniffer()
    wait_reached(world.home, THERE)

    assert world.ways(wire, [*WORLD, V6]) == {**dict.fromkeys(WORLD, "tunnel"), V6: "nowhere"}

    assert client.stop() == 0
    assert changes(before, snapshot(world.home)) == ""


@pytest.mark.parametrize("routing", MODES)
def test_the_server_goes_around_whichever_it_is(world: World, routing: str) -> None:
    second = "198.18.3.9"
    world.far.ip(f"address add {second}/24 dev eth0")
    world.own |= {Flow("udp", second, 443)}
    first = world.server(listen=[SERVER])
    client = world.client(servers=[SERVER, second], routes="everything", routing=routing)
    client.wait_connected()
    wait_reached(world.home, THERE)

    first.kill()
    world.server(listen=[second], pool="10.87.0.0/24")
    wait_for(lambda: client.tunnel()["address"] == "10.87.0.2", "the other server", 20, lambda: client.log)
    wait_reached(world.home, THERE)

    wire = world.sniffer()
    assert world.ways(wire, [THERE]) == {THERE: "tunnel"}
    assert Flow("udp", second, 443) in wire.sent()
    routes = world.home.ip("route show table all proto 217")
    assert second in routes
    assert SERVER not in routes


@pytest.mark.parametrize(
    ("accepts", "through"),
    [("none", set()), ("all", {THERE, LISTED}), (["203.0.0.0/16"], {THERE}), (["203.0.113.0/28"], set())],
)
def test_of_what_the_server_pushes_comes_in_what_is_accepted(
    world: World, accepts: str | list[str], through: set[str]
) -> None:
    pushed = ["203.0.113.0/24", "198.51.100.0/24", "10.7.0.0/16"]
    world.server({"push_routes": pushed, "subnets": ["10.7.0.0/24"]})
    client = world.client(accept_routes=accepts, subnets=["10.7.0.0/24"])
    client.wait_connected()
    wire = world.sniffer()
    wait_reached(world.home, "10.86.0.1")

    assert world.ways(wire, WORLD) == {
        address: "tunnel" if address in through else "direct" for address in WORLD
    }
    assert "10.7." not in world.home.ip("route show proto 217"), "it is behind the client"


@pytest.mark.parametrize(
    ("routing", "on_disconnect", "meanwhile"),
    [("main", "keep", "nowhere"), ("main", "release", "direct"), ("policy", "release", "direct")],
)
def test_without_a_session_routes_stay_or_go(
    world: World, routing: str, on_disconnect: str, meanwhile: str
) -> None:
    server = world.server()
    client = world.client(routes="everything", routing=routing, on_disconnect=on_disconnect)
    client.wait_connected()
    wire = world.sniffer()
    wait_reached(world.home, THERE)
    assert world.ways(wire, [THERE]) == {THERE: "tunnel"}

    server.kill()
    wait_for(lambda: client.tunnel()["state"] == "connecting", "the client to notice")
    if meanwhile == "direct":
        wait_reached(world.home, THERE)
    assert world.ways(wire, [THERE, V6]) == {THERE: meanwhile, V6: meanwhile}

    server.start()
    client.wait_connected()
    wait_for(lambda: world.ways(wire, [THERE]) == {THERE: "tunnel"}, "the tunnel to carry again")


@pytest.mark.parametrize("routing", MODES)
def test_a_host_with_ipv6_disabled_has_ipv4_inside(world: World, routing: str) -> None:
    world.home.run(
        "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1"
    )
    before = snapshot(world.home)
    world.server(pool6="fd00:86::/64")
    client = world.client(routes="everything", routing=routing)
    client.wait_connected()
    wire = world.sniffer()
    wait_reached(world.home, THERE)

    assert world.ways(wire, [THERE]) == {THERE: "tunnel"}
    without = "the tunnel is without IPv6: IPv6 is disabled on this host"
    assert len([line for line in client.tunnel()["warnings"] if line.startswith(without)]) == 1

    assert client.stop() == 0
    assert changes(before, snapshot(world.home)) == ""
