"""`dtun explain` on hosts where it has something to tell: which route, rule, client and setting decide, and why."""

import sys
from pathlib import Path

import pytest
from daemon import Daemon
from topology import Host, Topology
from worlds import SERVER, WORLD, WORLD6, World, wait_reached

THERE, BYPASSED, LISTED, _ = WORLD


def explained(host: Host, daemon: Daemon, address: str) -> list[str]:
    command = (sys.executable, "-W", "error", "-m", "dtun", "explain", "-c", str(daemon.config), address)
    return [line.strip() for line in host.run(*command).splitlines()]


@pytest.mark.parametrize(
    ("routing", "into", "around"),
    [
        (
            "main",
            ("128.0.0.0/1 dev dtun0", "32766, which uses table main"),
            ("192.0.2.0/24 via 198.18.1.1 dev eth0", "32766, which uses table main", "made by dtun"),
        ),
        (
            "policy",
            ("0.0.0.0/0 dev dtun0 table 7217", "7217, which uses table 7217"),
            (
                "0.0.0.0/0 via 198.18.1.1 dev eth0 metric 100",
                "32766, which uses table main",
                "not made by dtun",
            ),
        ),
    ],
)
def test_on_a_client(
    net: Topology, tmp_path: Path, routing: str, into: tuple[str, str], around: tuple[str, str, str]
) -> None:
    world = World(net, tmp_path)
    listed = tmp_path / "around.txt"
    listed.write_text("# ours\n198.51.100.0/24\n")
    server = world.server()
    client = world.client(
        routes="everything",
        routing=routing,
        bypass=["192.0.2.0/24"],
        bypass_files=[str(listed)],
        on_disconnect="block",
    )
    client.wait_connected()
    wait_reached(world.home, THERE)

    route, rule = into
    assert explained(world.home, client, THERE) == [
        f"{THERE} goes through the tunnel (dtun0)",
        f"route: {route} (made by dtun)",
        f"rule:  {rule}",
        "why:   client.routes[0] sends 0.0.0.0/0 through the tunnel",
    ]
    route, rule, whose = around
    out = "leaves through eth0 via 198.18.1.1, not through the tunnel"
    assert explained(world.home, client, BYPASSED) == [
        f"{BYPASSED} {out}",
        f"route: {route} ({whose})",
        f"rule:  {rule}",
        "why:   client.bypass[0] keeps 192.0.2.0/24 out of the tunnel",
    ]
    assert (
        explained(world.home, client, LISTED)[-1]
        == f"why:   {listed}:2 keeps 198.51.100.0/24 out of the tunnel"
    )
    assert explained(world.home, client, SERVER)[0] == f"{SERVER} {out}"
    assert "it is a server of this tunnel" in explained(world.home, client, SERVER)[-1]
    refused, *_, why, but = explained(world.home, client, WORLD6[0])
    assert refused.startswith(f"{WORLD6[0]} is blocked: a route of this host refuses it")
    assert why.endswith("sends ::/0 through the tunnel")
    assert "does its server assign IPv6 addresses?" in but

    client.kill()
    server.kill()
    refused, *_, but = explained(world.home, client, THERE)
    assert refused.startswith(f"{THERE} is blocked: a route of this host refuses it")
    assert "is dtun connected (dtun status)?" in but


def test_on_both_ends_with_pushed_routes(net: Topology, tmp_path: Path) -> None:
    world = World(net, tmp_path)
    server = world.server({"subnets": ["10.0.0.0/16"], "push_routes": ["192.0.2.0/24", "203.0.113.0/24"]})
    client = world.client(subnets=["10.0.0.0/16"], accept_routes=["192.0.2.0/24"])
    client.wait_connected()

    assert explained(world.home, client, BYPASSED)[-1] == (
        "why:   a route that the server pushes sends 192.0.2.0/24 through the tunnel"
    )
    assert explained(world.home, client, THERE)[-1].startswith("why:   the server pushes 203.0.113.0/24, but")

    belongs = "why:   10.0.0.0/16 belongs to client home (dtun-home), which is"
    assert explained(world.far, server, "10.0.3.4") == [
        "10.0.3.4 goes through the tunnel (dtun-home)",
        "route: 10.0.0.0/16 dev dtun-home (made by dtun)",
        "rule:  32766, which uses table main",
        f"{belongs} connected",
    ]
    assert explained(world.far, server, "198.18.1.2")[-1] == (
        "why:   it does not belong to a client, so the host's own routes apply"
    )
