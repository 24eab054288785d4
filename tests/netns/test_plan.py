"""`dtun plan` says what a start does, and does nothing of it itself."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from snapshots import changes, snapshot
from topology import REPOSITORY, Host, Topology, wait_for
from worlds import World

START, SESSION = "At the start:", "With the first session"

_SETTING = re.compile(r"(net\.ipv4\.ip_forward|net\.ipv6\.conf\.(?:all\.forwarding|eth\d\.accept_ra)) = (.*)")


def planned(host: Host, config: Path) -> dict[str, set[str]]:
    """What plan prints, by its headings; the exit code has to be 0."""
    command = [
        "env",
        f"PYTHONPATH={REPOSITORY}",
        sys.executable,
        "-W",
        "error",
        "-m",
        "dtun",
        "plan",
        "-c",
        str(config),
    ]
    sections: dict[str, set[str]] = {}
    heading = ""
    for line in host.run(*command).splitlines():
        if line.startswith("  "):
            sections[heading].add(line.strip())
        else:
            heading = line
            sections[heading] = set()
    return sections


def found(before: set[str], after: set[str]) -> set[str]:
    """What has come into the kernel meanwhile, in the words of plan. The TUN device itself is left out."""
    return set(_words(after - before))


def _words(lines: set[str]) -> Iterator[str]:
    for line in lines:
        kind, _, thing = line.partition(" {") if "{" in line else (line, "", "")
        values: dict[str, Any] = json.loads("{" + thing) if thing else {}
        if kind.startswith("route") and values.get("protocol") == "217":
            yield f"add {_route(values, kind.endswith('-6'))}"
        elif kind.startswith("rule"):
            rule = "rule -6" if kind.endswith("-6") else "rule"
            mark = values["fwmark"]
            yield f"add {rule} priority {values['priority']} not fwmark {mark} table {values['table']}"
        elif match := _SETTING.fullmatch(line):
            yield f"add sysctl {match[1]}={match[2]}"


def _route(values: dict[str, Any], version6: bool) -> str:
    kind = values.get("type", "unicast")
    words = [] if kind == "unicast" else [kind]
    destination = values["dst"].replace("default", "::/0" if version6 else "0.0.0.0/0")
    words.append(destination if "/" in destination else f"{destination}/{128 if version6 else 32}")
    if "gateway" in values:
        words += ["via", values["gateway"]]
    if kind == "unicast":
        words += ["dev", values["dev"]]
    if values.get("metric", 1024 if version6 else 0) != (1024 if version6 else 0):
        words += ["metric", str(values["metric"])]
    if values.get("table", "main") != "main":
        words += ["table", values["table"]]
    return f"route {' '.join(words)}"


def without_filters(lines: set[str]) -> set[str]:
    return {line for line in lines if not line.startswith(("add filter", "add link", "add address"))}


@pytest.fixture
def world(net: Topology, tmp_path: Path) -> World:
    return World(net, tmp_path)


def settings(world: World, routing: str, on_disconnect: str) -> dict[str, object]:
    return world.section(
        routes="everything",
        routing=routing,
        on_disconnect=on_disconnect,
        bypass=["192.0.2.0/24", "198.51.100.0/24", "100.64.0.0/10", "2001:db8:90::/48"],
        forwarding=True,
        accept_routes="all",
    )


@pytest.mark.parametrize("routing", ["main", "policy"])
@pytest.mark.parametrize("on_disconnect", ["keep", "block"])
def test_a_start_does_what_the_plan_says(world: World, routing: str, on_disconnect: str) -> None:
    section = settings(world, routing, on_disconnect)
    config = world.directory / "plan.yaml"
    config.write_text(
        yaml.safe_dump({"client": {**section, "runtime_directory": str(world.directory / "run")}})
    )
    before = snapshot(world.home, world.directory)

    plan = planned(world.home, config)

    assert changes(before, snapshot(world.home, world.directory)) == "", "plan itself has changed something"
    at_the_start = plan[START]
    before = snapshot(world.home)
    client = world.client(**section)
    wanted = without_filters(at_the_start)
    wait_for(
        lambda: wanted <= found(before, snapshot(world.home)), f"{wanted} to be there", log=lambda: client.log
    )
    assert found(before, snapshot(world.home)) == wanted
    guards = {
        re.findall(r"filter to (\S+) only udp dport (\d+)", line)[0]
        for line in at_the_start
        if "only udp" in line
    }
    rules = world.home.run("nft", "list", "ruleset")
    assert bool(guards) == (on_disconnect == "block") == ("dtun-dtun0" in rules)
    assert all(server in rules and port in rules for server, port in guards)

    # With a session there is the rest, and nothing is left to do.
    world.server(pool6="fd00:86::/64")
    client.wait_connected()
    heading = next(heading for heading in plan if heading.startswith(SESSION))
    wanted |= without_filters(plan[heading])
    wait_for(lambda: found(before, snapshot(world.home)) == wanted, f"exactly {wanted} to be there")
    assert client.stop() == 0


def test_conflicts_are_told_before_anything_is_changed(world: World) -> None:
    """A list with the tunnel's own network, what is also local, another VPN."""
    world.home.ip("tuntap add dev vpn0 mode tun")
    world.home.ip("address add 10.9.0.1/24 dev vpn0")
    world.home.ip("link set vpn0 up")
    world.server()
    client = world.client(routes=["10.9.0.0/16", "198.18.1.0/24"], bypass=["10.86.0.0/16"])
    client.wait_connected()
    before = snapshot(world.home)

    output = world.home.run(
        *(sys.executable, "-m", "dtun", "plan", "-c", str(client.config)), check=False
    ).splitlines()

    assert changes(before, snapshot(world.home)) == ""
    conflicts = [line for line in output if line.startswith("conflict: ")]
    to_go = "routed through the tunnel,"
    vpn = "contains the network 10.9.0.0/24 of another VPN (vpn0): that part of it stays outside the tunnel"
    local = "is this host's own network 198.18.1.0/24 (eth0): the existing route stays, and dtun's is refused"
    own = "bypasses the tunnel, but contains the tunnel's own address"
    for told in (
        f"10.86.0.0/16 {own} 10.86.0.1",
        f"10.86.0.0/16 {own} 10.86.0.2",
        f"198.18.1.0/24, {to_go} {local}",
        f"10.9.0.0/16, {to_go} {vpn}",
    ):
        assert f"conflict: {told}" in conflicts, output


def test_a_subnet_that_is_also_the_servers_own_is_told(world: World) -> None:
    config = world.directory / "plan.yaml"
    entry = {"key_file": world.key, "subnets": ["198.18.3.0/24", "10.0.0.0/16"]}
    config.write_text(yaml.safe_dump({"server": {"clients": {"home": entry}}}))
    command = (sys.executable, "-m", "dtun", "plan", "-c", str(config))
    output = world.far.run(*command, check=False).splitlines()
    (conflict,) = [line for line in output if line.startswith("conflict: ")]
    assert "198.18.3.0/24" in conflict
    assert "is this host's own network 198.18.3.0/24 (eth0)" in conflict


def test_the_plan_of_a_server_is_what_it_does(world: World) -> None:
    world.far.ip("route add default via 198.18.3.2")
    clients = {"home": {"key_file": world.key, "subnets": ["10.0.0.0/16"]}}
    section = {"clients": clients, "masquerade": True, "pool6": "fd00:86::/64"}
    config = world.directory / "plan.yaml"
    directories = {name: str(world.directory / name) for name in ("runtime_directory", "state_directory")}
    config.write_text(yaml.safe_dump({"server": {**section, **directories}}))
    before = snapshot(world.far, world.directory)

    plan = planned(world.far, config)

    assert changes(before, snapshot(world.far, world.directory)) == ""
    world.server(clients=clients, masquerade=True, pool6="fd00:86::/64")
    assert found(before, snapshot(world.far)) == without_filters(plan[START])
    addresses = {line for line in plan[START] if line.startswith("add address")}
    there = json.loads(world.far.run("ip", "-j", "address", "show", "dev", "dtun-home"))[0]["addr_info"]
    assert addresses == {
        f"add address {one['local']} peer {one['address']} dev dtun-home"
        for one in there
        if one["scope"] == "global"
    }
    filters = {line for line in plan[START] if line.startswith("add filter")}
    assert {"masquerade" in line for line in filters} == {True, False}, "masquerading, and segments that fit"
    assert '"dtun-home" . "eth0"' in world.far.run("nft", "list", "ruleset")
