"""What a killed process left behind is taken over by the next one, and what several processes share stays shared."""

import json
import subprocess
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from pathlib import Path

import kernels
import pytest
from kernels import PIN, kill, only, opened, routes, start_victim
from topology import Host

from dtun.network.state import (
    ClampMss,
    DropOtherTrafficToServer,
    DropOutsideTunnel,
    Filter,
    NetworkState,
    Route,
    Rule,
    Sysctl,
)
from dtun.platform.interface import ChangesRefusedError
from dtun.platform.linux.nftables.firewall import Firewall

host, runtime = kernels.host, kernels.runtime

SWITCH = frozenset(
    Route(ip_network(network), metric=0xFFFF0000, kind="unreachable")
    for network in ("0.0.0.0/1", "128.0.0.0/1", "2000::/3")
)
RULE = Rule(4, 7217, 7217, unless_mark=0x2170)
FORWARDING = Sysctl("net.ipv4.ip_forward", "1")
GUARD = DropOtherTrafficToServer(ip_address("203.0.113.5"), 4433)
LEFT = NetworkState(
    routes=SWITCH | {PIN},
    rules=frozenset({RULE}),
    sysctls=frozenset({FORWARDING}),
    filters=frozenset({GUARD}),
)


def forwarding(host: Host) -> str:
    return host.run("sysctl", "-n", "net.ipv4.ip_forward").strip()


def tables(host: Host) -> list[str]:
    return host.run("nft", "list", "tables").splitlines()


@pytest.fixture
def crashed(host: Host, runtime: Path) -> Host:
    """A host on which dtun was killed."""
    kill(start_victim(host, runtime, "demo", LEFT))
    assert len(routes(host)) == 4
    assert forwarding(host) == "1"
    assert tables(host) == ["table inet dtun-demo"]
    return host


def heard_while(host: Host, story: Callable[[], object]) -> str:
    """What `ip monitor` says meanwhile."""
    monitor = host.popen("ip", "monitor", "route", "rule", stdout=subprocess.PIPE)
    assert monitor.stdout is not None
    host.ip("route add 198.18.0.0/32 dev eth1")
    while "198.18.0.0" not in monitor.stdout.readline():
        host.ip("route del 198.18.0.0/32 dev eth1")
        host.ip("route add 198.18.0.0/32 dev eth1")
    story()
    host.ip("route add 198.18.0.255/32 dev eth1")
    heard = ""
    while "198.18.0.255" not in heard:
        heard += monitor.stdout.readline()
    return heard


def test_what_is_wanted_again_stays_without_a_gap(crashed: Host, runtime: Path) -> None:
    async def story() -> None:
        async with opened(runtime) as linux:
            changes = await linux.apply(LEFT)
            # The contents of the filter table are unknown: it is replaced in one step.
            assert [change.what for change in changes] == [GUARD]
            assert len(routes(crashed)) == 4
            crashed.ip("route add 198.18.1.1/32 dev eth1")

    def play() -> None:
        crashed.play(story)

    before_the_end, _, _ = heard_while(crashed, play).partition("198.18.1.1")
    assert "Deleted" not in before_the_end


def test_what_is_wanted_no_more_goes_with_the_first_apply(crashed: Host, runtime: Path) -> None:
    async def story() -> None:
        async with opened(runtime) as linux:
            changes = await linux.apply(only(PIN))
            assert {change.action for change in changes} == {"remove"}
            assert routes(crashed) == {"203.0.113.5 via 192.0.2.1 dev eth0 onlink"}
            assert "7217" not in crashed.ip("rule")
            assert forwarding(crashed) == "0"
            assert tables(crashed) == []

    crashed.play(story)


def test_a_start_that_comes_to_nothing_removes_what_was_left(crashed: Host, runtime: Path) -> None:
    async def story() -> None:
        async with opened(runtime):
            assert len(routes(crashed)) == 4

    crashed.play(story)
    assert routes(crashed) == set()
    assert "7217" not in crashed.ip("rule")
    assert forwarding(crashed) == "0"
    assert tables(crashed) == []
    assert list(runtime.iterdir()) == []


def test_what_is_there_no_more_is_not_taken_for_ours(crashed: Host, runtime: Path) -> None:
    crashed.ip("route flush proto 217")
    crashed.ip("rule del priority 7217")
    crashed.run("sysctl", "-qw", "net.ipv4.ip_forward=0")
    crashed.run("nft", "delete", "table", "inet", "dtun-demo")
    crashed.ip("route add 203.0.113.5 via 192.0.2.9 proto static")

    async def story() -> None:
        async with opened(runtime) as linux:
            # What `ip route flush` spares: the IPv6 route.
            assert {str(route.destination) for route in linux.applied.routes} == {"2000::/3"}
            assert len(linux.applied) == 1
            with pytest.raises(ChangesRefusedError, match=r"via 192\.0\.2\.9 already"):
                await linux.apply(LEFT)
            assert linux.applied.state() == NetworkState(
                routes=SWITCH, rules=LEFT.rules, sysctls=LEFT.sysctls, filters=LEFT.filters
            )

    crashed.play(story)
    assert "192.0.2.9" in crashed.ip("route show 203.0.113.5")


def test_a_journal_of_the_version_before_is_understood(host: Host, runtime: Path) -> None:
    host.ip("route add 203.0.113.5 via 192.0.2.1 dev eth0 onlink proto 217")
    pin = {"destination": "203.0.113.5/32", "device": "eth0", "gateway": "192.0.2.1"}
    runtime.mkdir()
    (runtime / "demo.json").write_text(
        json.dumps({"routes": [{**pin, "source": None, "metric": None}]}, indent=1)
    )

    async def story() -> None:
        async with opened(runtime) as linux:
            assert linux.applied.routes == {PIN}

    host.play(story)
    assert routes(host) == set()


def test_the_last_instance_restores_a_setting(host: Host, runtime: Path) -> None:
    wanted = NetworkState(sysctls=frozenset({FORWARDING}))
    assert forwarding(host) == "0"

    async def story() -> None:
        async with opened(runtime, "one") as one, opened(runtime, "two") as two:
            await one.apply(wanted)
            assert forwarding(host) == "1"
            await two.apply(wanted)
            await one.apply(NetworkState())
            assert forwarding(host) == "1", "the other one wants it still"
            await one.apply(wanted)
            await two.apply(NetworkState())
            assert forwarding(host) == "1"
            await one.apply(NetworkState())
            assert forwarding(host) == "0"

    host.play(story)


def test_a_setting_that_was_so_already_stays_so(host: Host, runtime: Path) -> None:
    host.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    wanted = NetworkState(sysctls=frozenset({FORWARDING}))

    async def story() -> None:
        async with opened(runtime) as linux:
            await linux.apply(wanted)

    host.play(story)
    assert forwarding(host) == "1"


def test_a_setting_that_another_program_changed_is_left_alone(host: Host, runtime: Path) -> None:
    name = "net.ipv6.conf.eth0.accept_ra"
    host.run("sysctl", "-qw", f"{name}=1")

    async def story() -> None:
        async with opened(runtime) as linux:
            await linux.apply(NetworkState(sysctls=frozenset({Sysctl(name, "2")})))
            assert host.run("sysctl", "-n", name).strip() == "2"
            host.run("sysctl", "-qw", f"{name}=0")

    host.play(story)
    assert host.run("sysctl", "-n", name).strip() == "0"


def test_what_is_refused_is_named_and_the_rest_is_in_place(host: Host, runtime: Path) -> None:
    unknown = Sysctl("net.ipv6.conf.eth9.accept_ra", "0")

    async def story() -> None:
        async with opened(runtime) as linux:
            wanted = NetworkState(
                routes=frozenset({PIN}),
                sysctls=frozenset({unknown, FORWARDING}),
                filters=frozenset({ClampMss("eth0", 1300), GUARD}),
            )
            with pytest.raises(ChangesRefusedError) as caught:
                await linux.apply(wanted)
            assert [change.what for change, _ in caught.value.refused] == [unknown]
            assert "there is no such setting" in str(caught.value)
            assert linux.applied.filters == wanted.filters
            assert linux.applied.routes == {PIN}
            assert forwarding(host) == "1"
            assert "maxseg" in host.run("nft", "list", "ruleset")

    host.play(story)
    assert forwarding(host) == "0"
    assert list(runtime.iterdir()) == []


def test_the_journal_follows_a_pin_that_moves(host: Host, runtime: Path) -> None:
    async def story() -> None:
        async with opened(runtime) as linux:
            await linux.apply(only(PIN))
            moved = Route(PIN.destination, "eth1", ip_address("198.51.100.1"))
            await linux.apply(only(moved))
            assert kernels.journaled(runtime) == {moved}

    host.play(story)


def test_a_route_that_is_ours_without_our_knowing_is_no_obstacle(host: Host, runtime: Path) -> None:
    """As when the runtime directory was emptied under a process that was killed."""
    host.ip("route add 203.0.113.5 via 192.0.2.1 dev eth0 onlink proto 217")

    async def story() -> None:
        async with opened(runtime) as linux:
            assert linux.applied.routes == set()
            await linux.apply(only(PIN))
            assert linux.applied.routes == {PIN}

    host.play(story)
    assert routes(host) == set()


def test_a_guard_stays_until_the_route_to_its_server_is_removed(
    host: Host, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while other filters come, which are before routes."""
    guard = DropOtherTrafficToServer(ip_address("203.0.113.5"), 443)
    seen: list[tuple[bool, bool]] = []
    apply = Firewall.apply

    async def spy(self: Firewall, filters: frozenset[Filter]) -> None:
        seen.append((guard in filters, "203.0.113.5" in host.ip("route")))
        await apply(self, filters)

    async def story() -> None:
        async with opened(runtime) as linux:
            await linux.apply(only(PIN) | NetworkState(filters=frozenset({guard})))
            monkeypatch.setattr(Firewall, "apply", spy)
            await linux.apply(NetworkState(filters=frozenset({DropOutsideTunnel(6)})))
            assert seen == [(True, True), (False, False)]

    host.play(story)
