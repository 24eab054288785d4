"""Tables, policy rules, and routes that send nothing, in a real kernel."""

import json
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import kernels
import pytest
from kernels import PIN, TUN, into, only, opened, state, tunnel
from topology import Host

from dtun.network.state import NetworkState, Route, Rule
from dtun.platform.interface import ChangesRefusedError, NextHop
from dtun.platform.linux.inspect import Decision, decide, existing, foreign_tunnels
from dtun.platform.linux.missing import missing

host, runtime = kernels.host, kernels.runtime

TABLE = 7217
RULES = frozenset({Rule(4, 7217, TABLE, unless_mark=0x2170), Rule(6, 7217, TABLE, unless_mark=0x2170)})
SUPPRESSING = Rule(4, 7216, 254, suppress_prefix_length=0)


def in_table(network: str, kind: Any = "unicast", metric: int | None = None) -> Route:
    return Route(ip_network(network), TUN if kind == "unicast" else "", metric=metric, table=TABLE, kind=kind)


SPLIT = frozenset(
    {
        in_table("0.0.0.0/0"),
        in_table("::/0"),
        in_table("198.18.0.0/15", "throw"),
        in_table("2001:db8:7::/48", "throw"),
        in_table("0.0.0.0/0", "unreachable", 0xFFFF0000),
        in_table("::/0", "unreachable", 0xFFFF0000),
    }
)


def shown(host: Host, family: str) -> list[tuple[str, str, str]]:
    entries = json.loads(host.ip(f"-j {family} route show table {TABLE} proto 217"))
    return sorted((entry.get("type", "unicast"), entry["dst"], entry.get("dev", "")) for entry in entries)


def rules_shown(host: Host) -> list[str]:
    lines = (host.ip("-4 rule") + host.ip("-6 rule")).splitlines()
    return [" ".join(line.split()) for line in lines if line.startswith("72")]


def test_a_table_of_our_own_with_rules_that_lead_there(host: Host, runtime: Path) -> None:
    before = host.ip("-4 rule"), host.ip("-6 rule")

    async def story() -> None:
        async with tunnel(runtime) as (linux, _):
            wanted = state() | NetworkState(routes=SPLIT, rules=RULES | {SUPPRESSING})
            changes = await linux.apply(wanted)
            assert [str(change) for change in changes][-3:] == [
                "add rule priority 7216 table main suppress_prefixlength 0",
                "add rule priority 7217 not fwmark 0x2170 table 7217",
                "add rule -6 priority 7217 not fwmark 0x2170 table 7217",
            ]
            assert shown(host, "-4") == [
                ("throw", "198.18.0.0/15", ""),
                ("unicast", "default", TUN),
                ("unreachable", "default", ""),
            ]
            assert [entry[:2] for entry in shown(host, "-6")] == [
                ("throw", "2001:db8:7::/48"),
                ("unicast", "default"),
                ("unreachable", "default"),
            ]
            assert rules_shown(host) == [
                "7216: from all lookup main suppress_prefixlength 0 proto 217",
                "7217: not from all fwmark 0x2170 lookup 7217 proto 217",
                "7217: not from all fwmark 0x2170 lookup 7217 proto 217",
            ]
            assert await linux.apply(wanted) == []
            assert await missing(linux.applied.things()) == set()
            # Without the tunnel's own route, what is behind it counts: nothing gets out beside the tunnel.
            blocked = state() | NetworkState(
                routes=SPLIT - {in_table("0.0.0.0/0"), in_table("::/0")}, rules=RULES
            )
            await linux.apply(blocked)
            assert (await decide(ip_address("8.8.8.8"))).fate == "unreachable"
            assert (await decide(ip_address("2606:4700::1"))).fate == "unreachable"
            assert (await decide(ip_address("198.18.0.1"))).device == "eth0"

    host.play(story)
    assert (host.ip("-4 rule"), host.ip("-6 rule")) == before
    assert host.ip("route show table all proto 217") == host.ip("-6 route show table all proto 217") == ""


def test_a_kind_is_replaced_by_another(host: Host, runtime: Path) -> None:
    async def story() -> None:
        async with tunnel(runtime) as (linux, _):
            for network in ("10.1.0.0/16", "fd01::/48"):
                await linux.apply(state(into(network)))
                for kind in ("unreachable", "throw", "unicast"):
                    device = TUN if kind == "unicast" else ""
                    wanted = Route(ip_network(network), device, kind=kind)
                    (change,) = await linux.apply(state(wanted))
                    assert change.action == "replace"
                    assert await missing([wanted]) == set()

    host.play(story)


def test_a_foreign_rule_and_table_are_left_alone(host: Host, runtime: Path) -> None:
    host.ip("rule add not fwmark 0x2170 table 7217 priority 7217")
    host.ip(f"route add default via 192.0.2.9 table {TABLE}")

    async def story() -> None:
        async with tunnel(runtime) as (linux, _):
            with pytest.raises(ChangesRefusedError) as caught:
                await linux.apply(
                    state() | NetworkState(routes=frozenset({in_table("0.0.0.0/0")}), rules=RULES)
                )
            assert [reason for _, reason in caught.value.refused] == [
                "another program has a route to 0.0.0.0/0 in table 7217 already"
            ]
            assert len(rules_shown(host)) == 3, "the kernel keeps our rule beside theirs"

    host.play(story)
    assert rules_shown(host) == ["7217: not from all fwmark 0x2170 lookup 7217"]
    assert "192.0.2.9" in host.ip(f"route show table {TABLE}")


def test_the_default_hop_is_the_hosts_own(host: Host, runtime: Path) -> None:
    host.ip("route replace default via 198.51.100.1 metric 50")
    host.ip("route del default via 192.0.2.1")
    host.ip("route add default via 192.0.2.1 metric 100 mtu 1300")
    host.ip("tuntap add dev vpn0 mode tun")
    host.ip("link set vpn0 up")
    host.ip("route add default dev vpn0 metric 7")
    host.ip("route add 0.0.0.0/1 dev vpn0")

    async def story() -> None:
        async with tunnel(runtime) as (linux, _):
            halves = [into("0.0.0.0/0"), Route(ip_network("0.0.0.0/1"), metric=9, kind="unreachable")]
            await linux.apply(state(*halves))
            assert await linux.default_hop(4) == NextHop("eth1", ip_address("198.51.100.1"), None, 1500)
            assert await linux.default_hop(6) is None
            host.ip("route del default via 198.51.100.1")
            assert await linux.default_hop(4) == NextHop("eth0", ip_address("192.0.2.1"), None, 1300)

    host.play(story)


def test_our_own_kill_switch_does_not_hide_the_hosts_route(host: Host, runtime: Path) -> None:
    async def story() -> None:
        async with opened(runtime) as linux:
            server = ip_address("203.0.113.5")
            await linux.apply(only(Route(ip_network("128.0.0.0/1"), kind="unreachable")))
            assert (await decide(server)).fate == "unreachable"
            hop = await linux.next_hop(server)
            assert hop is not None
            assert (hop.device, hop.gateway) == ("eth0", ip_address("192.0.2.1"))

    host.play(story)


def test_looking_tells_where_a_packet_goes_and_what_is_there(host: Host, runtime: Path) -> None:
    host.ip("tuntap add dev vpn0 mode tun")
    host.ip("address add 10.8.0.1/24 dev vpn0")
    host.ip("link set vpn0 up")
    host.ip("route add 10.9.0.0/16 dev vpn0 table 51820 proto static")
    host.ip("route add prohibit 10.10.0.0/16")
    host.ip("route add blackhole 10.11.0.0/16")

    async def story() -> None:
        async with tunnel(runtime) as (linux, _):
            wanted = state(PIN) | NetworkState(routes=SPLIT, rules=RULES)
            await linux.apply(wanted)
            address, source = ip_address("8.8.8.8"), ip_address("192.0.2.2")
            everything = ip_network("0.0.0.0/0")
            assert await decide(address) == Decision(
                address, "unicast", everything, TABLE, 7217, 0, 217, TUN, None, ip_address("10.86.0.1")
            )
            assert await decide(address, mark=0x2170) == Decision(
                address, "unicast", everything, 254, 32766, 0, 3, "eth0", ip_address("192.0.2.1"), source
            )
            address6, everything6 = ip_address("2606:4700::1"), ip_network("::/0")
            assert await decide(address6) == Decision(
                address6, "unicast", everything6, TABLE, 7217, 1024, 217, TUN, None, ip_address("fd86::1")
            )
            assert await decide(address6, mark=0x2170) == Decision(address6, "no route")
            fates = [(await decide(ip_address(f"10.{n}.0.1"), mark=0x2170)).fate for n in (10, 11)]
            assert fates == ["prohibit", "blackhole"]
            found = {
                (str(one.destination), one.device, one.kind, one.table) for one in await foreign_tunnels()
            }
            assert found == {("10.8.0.0/24", "vpn0", "tun", 254), ("10.9.0.0/16", "vpn0", "tun", 51820)}
            more = wanted | only(into("10.77.0.0/16")) | NetworkState(rules=frozenset({SUPPRESSING}))
            assert await existing(more, "demo") == wanted

    host.play(story)
