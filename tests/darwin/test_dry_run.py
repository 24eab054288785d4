"""`dtun plan`, `explain` and `down` on a Mac: nothing is changed, and the plan is what a start does."""

import asyncio
import subprocess
import sys
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path

import pytest
import yaml
from fake_kernel import FakeKernel
from test_simulated import python

from dtun.cli import dry_run
from dtun.client.tunnel import Tunnel
from dtun.config import ClientConfig, Config, Hook, load
from dtun.network.difference import describe
from dtun.network.explain import ActualRoute
from dtun.network.state import NetworkState
from dtun.platform.darwin import constants, sysctl
from dtun.platform.darwin.dry_run import DarwinReadOnlyKernel
from dtun.platform.darwin.kernel import DarwinKernel
from dtun.platform.darwin.resolver import NOT_EVERY_NAME

SIMULATED = Path(__file__).parent / "simulated.py"
SERVER = "203.0.113.5"

NO_FILTER = "dtun has no packet filter on macOS; only routes keep traffic in the tunnel"
SWITCH_ON = "and run `pfctl -f /etc/pf.conf; pfctl -E` (docs/macos.md)"
NO_CLAMP = (
    "dtun has no packet filter on macOS; add 'scrub all max-mss 1360' to /etc/pf.conf, "
    f"below the line of scrub-anchor, {SWITCH_ON}"
)
NO_NAT = (
    "dtun does not do NAT on macOS; add 'nat on en0 from NETWORK to any -> (en0)' to /etc/pf.conf, "
    f"below the line of nat-anchor, {SWITCH_ON}"
)


def written(directory: Path, **section: object) -> Path:
    """The configuration of a client, in a file."""
    (directory / "mac.key").write_text("QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVoxMjM0NTY=\n")
    (directory / "mac.key").chmod(0o600)
    config = {
        "servers": [SERVER],
        "id": "mac",
        "key_file": str(directory / "mac.key"),
        "runtime_directory": str(directory / "run"),
        **section,
    }
    path = directory / "dtun.yaml"
    path.write_text(yaml.safe_dump({"client": config}))
    path.chmod(0o600)
    return path


def client(directory: Path, **section: object) -> ClientConfig:
    config: Config = load(written(directory, **section))
    assert config.client is not None
    return config.client


def simulated(*arguments: str) -> tuple[int, list[str], str]:
    """Exit code, lines and standard error of the command on a fresh simulated Mac."""
    command = [sys.executable, "-W", "error", str(SIMULATED), *arguments]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60
    )
    lines = done.stdout.splitlines()
    assert lines, done.stderr
    assert lines.pop() == "left behind: 0 routes, 0 devices"
    return done.returncode, lines, done.stderr


def described(state: NetworkState) -> set[str]:
    """Its routes and settings, described."""
    return {describe(route) for route in state.routes} | {describe(one) for one in state.sysctls}


def in_kernel(mac: FakeKernel) -> set[str]:
    """Our routes in the kernel, and the enabled settings, described in the same way."""
    found = set()
    for entry in mac.routes:
        if entry.flags & constants.RTF_OURS:
            via = f" via {entry.via}" if entry.via else ""
            how = f"unreachable {entry.destination}"
            if not entry.flags & constants.RTF_REJECT:
                how = f"{entry.destination}{via} dev {mac.interfaces[entry.index].name}"
            found.add(f"route {how}")
    return found | {f"sysctl {ours}=1" for ours, theirs in sysctl.NAMES.items() if mac.settings[theirs]}


async def nothing(hook: Hook, variables: Mapping[str, str], what: str) -> bool:
    del hook, variables, what
    return True


@pytest.mark.parametrize(
    ("routes", "on_disconnect", "bypass"),
    [
        (["10.9.0.0/16", "203.0.113.0/24"], "keep", []),
        ("everything", "keep", ["198.51.100.0/24"]),
        ("everything", "block", ["198.51.100.0/24"]),
    ],
)
async def test_a_start_does_what_the_plan_says(
    mac: FakeKernel,
    kernel: DarwinKernel,
    tmp_path: Path,
    routes: object,
    on_disconnect: str,
    bypass: list[str],
) -> None:
    config = client(tmp_path, routes=routes, on_disconnect=on_disconnect, bypass=bypass, forwarding=True)
    mac.requests.clear()
    before = list(mac.routes)

    found = await dry_run.of_client(config, DarwinReadOnlyKernel(), dry_run.ASSUMED)

    assert mac.requests == []
    assert mac.routes == before, "the plan changed something"

    end = Tunnel(config, kernel, nothing, asyncio.get_running_loop())
    await end.open()
    await end.route_to_server((SERVER, 443))
    assert in_kernel(mac) == described(found.before)
    await end.configure(dry_run.ASSUMED, dry_run.ASSUMED_MTU)
    assert in_kernel(mac) == described(found.after)
    assert {link.name for link in found.after.devices} == {"utun0"}

    # While it runs, nothing is left to do; after a removal, only that.
    running = DarwinReadOnlyKernel({"dtun0": end.device})
    again = await dry_run.of_client(config, running, dry_run.ASSUMED)
    assert await running.existing(again.after, "dtun0") == again.after
    mac.remove(bypass[0] if bypass else "10.9.0.0/16")
    mac.interface("utun0").mtu = 1000
    there = await running.existing(again.after, "dtun0")
    assert len(again.after.routes - there.routes) == 1
    assert again.after.devices - there.devices == again.after.devices
    await end.close()


async def test_a_plan_uses_the_next_free_device(mac: FakeKernel, tmp_path: Path) -> None:
    mac.add_utun("utun0")
    found = await dry_run.of_client(client(tmp_path, routes=["10.9.0.0/16"]), DarwinReadOnlyKernel())
    assert {link.name for link in found.after.devices} == {"utun1"}
    named = await dry_run.of_client(client(tmp_path, tun="utun7"), DarwinReadOnlyKernel())
    assert {link.name for link in named.after.devices} == {"utun7"}
    assert "utun7" not in {one.name for one in mac.interfaces.values()}


async def test_tunnels_of_other_programs_are_found(mac: FakeKernel) -> None:
    mac.add_utun("utun3")
    mac.add_utun("utun4")
    mac.add("172.20.0.0/16", "utun3")
    mac.add("fe80::/64", "utun3")
    mac.add("224.0.0.0/4", "utun3")
    mac.add("10.9.0.0/16", "utun4", flags=constants.RTF_OURS)
    found = await DarwinReadOnlyKernel().foreign_tunnels()
    assert [(one.device, str(one.network)) for one in found] == [("utun3", "172.20.0.0/16")]


async def test_the_actual_route(mac: FakeKernel) -> None:
    read_only_kernel = DarwinReadOnlyKernel()
    mac.add("10.9.0.0/16", "en1", flags=constants.RTF_OURS | constants.RTF_REJECT)
    blocked = await read_only_kernel.actual_route(ip_address("10.9.0.1"))
    outside = await read_only_kernel.actual_route(ip_address("1.1.1.1"))
    assert blocked.ours
    assert blocked.route is not None
    assert blocked.route.kind == "unreachable"
    assert outside.route is not None
    assert not outside.ours
    assert describe(outside.route) == "route 0.0.0.0/0 via 192.168.1.1 dev en0"
    mac.unplug("en0")
    assert await read_only_kernel.actual_route(ip_address("1.1.1.1")) == ActualRoute(None)


def test_the_output_of_plan_for_a_client(tmp_path: Path) -> None:
    path = written(tmp_path, routes="everything", on_disconnect="block", dns=["10.86.0.1"])
    code, lines, stderr = simulated("plan", "-c", str(path))
    assert (code, stderr) == (0, "")
    assert lines == [
        "At the start:",
        "  add route 203.0.113.5/32 via 192.168.1.1 dev en0",
        "  add route unreachable 0.0.0.0/1",
        "  add route unreachable 128.0.0.0/1",
        "  add route unreachable ::/1",
        "  add route unreachable 8000::/1",
        "With the first session, of 203.0.113.5:443:",
        "  add link utun0 mtu (of the path)",
        "  add address (from the server) dev utun0",
        "  add address (from the server, if it has IPv6) dev utun0",
        "  add route (own address) via 127.0.0.1 dev lo0",
        "  add route 0.0.0.0/2 dev utun0",
        "  add route 64.0.0.0/2 dev utun0",
        "  add route 128.0.0.0/2 dev utun0",
        "  add route 192.0.0.0/2 dev utun0",
        "  add route ::/2 dev utun0",
        "  add route 4000::/2 dev utun0",
        "  add route 8000::/2 dev utun0",
        "  add route c000::/2 dev utun0",
        f"note: dns 10.86.0.1 dev utun0 is not in place: {NOT_EVERY_NAME}",
        f"note: filter to 203.0.113.5 only udp dport 443 is not in place: {NO_FILTER}",
    ]


def test_what_macos_does_not_support_is_in_the_plan(tmp_path: Path) -> None:
    code, lines, stderr = simulated(
        "plan", "-c", str(written(tmp_path, routes="everything", routing="policy"))
    )
    assert (code, stderr) == (0, "")
    policy = "policy routing is not available on macOS; use `routing: main`"
    assert sum(policy in line for line in lines if line.startswith("note: r")) == 2, (
        "one for rules, one for routes"
    )


def test_a_network_that_is_here_already(tmp_path: Path) -> None:
    code, lines, _ = simulated("plan", "-c", str(written(tmp_path, routes=["192.168.1.0/24"])))
    assert code == 1
    assert lines[-1] == (
        "conflict: 192.168.1.0/24, routed through the tunnel, is this host's own network 192.168.1.0/24 (en0): "
        "the existing route stays, and dtun's is refused"
    )


def test_the_output_of_plan_for_a_server(tmp_path: Path) -> None:
    key = written(tmp_path).with_name("mac.key")
    section = {
        "clients": {"home": {"key_file": str(key), "subnets": ["10.0.0.0/16"]}},
        "masquerade": True,
        "runtime_directory": str(tmp_path / "run"),
        "state_directory": str(tmp_path / "state"),
    }
    path = tmp_path / "server.yaml"
    path.write_text(yaml.safe_dump({"server": section}))
    code, lines, stderr = simulated("plan", "-c", str(path))
    assert (code, stderr) == (0, "")
    assert lines == [
        "At the start:",
        "  add sysctl net.ipv4.ip_forward=1",
        "  add link utun0 mtu (of the path)",
        "  add address 10.86.0.1 peer 10.86.0.2 dev utun0",
        "  add route 10.86.0.1/32 via 127.0.0.1 dev lo0",
        "  add route unreachable 10.86.0.0/16",
        "When home connects, as far as it asks for them:",
        "  add route 10.0.0.0/16 dev utun0",
        f"note: filter forward utun0 tcp maxseg for mtu 1400: {NO_CLAMP}",
        f"note: filter iifname utun0 oifname en0 masquerade: {NO_NAT}",
    ]


def test_the_output_of_explain(tmp_path: Path) -> None:
    path = str(written(tmp_path, routes=["10.9.0.0/16"]))
    code, lines, _ = simulated("explain", "-c", path, "1.1.1.1")
    assert code == 0
    assert lines == [
        "1.1.1.1 leaves through en0 via 192.168.1.1, not through the tunnel",
        "  route: 0.0.0.0/0 via 192.168.1.1 dev en0 (not made by dtun)",
        (
            "  why:   no setting covers it, so the host's own routes apply; "
            "what the server pushes is known only while dtun is connected"
        ),
    ]
    _, lines, _ = simulated("explain", "-c", path, "10.9.0.1")
    assert lines[-2:] == [
        "  why:   client.routes[0] sends 10.9.0.0/16 through the tunnel",
        "  but:   it should go through the tunnel; is dtun connected (dtun status)?",
    ]


DOWN = """
import asyncio, sys
from ipaddress import ip_address, ip_network
from pathlib import Path

from fake_kernel import FakeKernel
from dtun.cli import main
from dtun.network.state import NetworkState, Route
from dtun.platform import kernel

async def before():
    dtun = kernel("dtun0", Path(sys.argv[1]))
    await dtun.open()
    pin = Route(ip_network("203.0.113.5/32"), "en0", ip_address("192.168.1.1"))
    block = Route(ip_network("10.9.0.0/16"), kind="unreachable")
    await dtun.apply(NetworkState(routes=frozenset({pin, block})))
    await dtun.detach()
    mac.kill_owner()

with FakeKernel().installed() as mac:
    asyncio.run(before())
    print(mac.way("10.9.0.1"), mac.entry("203.0.113.5/32") is not None)
    print(main(["down", "-c", sys.argv[2]]))
    print(mac.way("10.9.0.1"), mac.entry("203.0.113.5/32") is not None)
"""


def test_down_after_a_kill(tmp_path: Path) -> None:
    lines = python(DOWN, str(tmp_path / "run"), str(written(tmp_path))).splitlines()
    assert lines == [
        "refused True",
        "dtun was not running; nothing of it is left behind",
        "0",
        "en0 192.168.1.1 False",
    ]
