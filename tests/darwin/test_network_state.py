"""DarwinKernel on the fake kernel, byte by byte."""

import asyncio
import logging
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from fake_kernel import OURS, Entry, FakeKernel

from dtun.errors import PermissionDeniedError, UnavailableError
from dtun.network.plan import Hop, Policy, Routing, TunnelSettings, UnderlayRoutes, plan_client
from dtun.network.state import (
    ClampMss,
    Dns,
    DropOtherTrafficToServer,
    DropOutsideTunnel,
    Masquerade,
    NetDevice,
    NetworkState,
    PointToPoint,
    Route,
    Sysctl,
)
from dtun.platform.darwin import monitor
from dtun.platform.darwin.kernel import DarwinKernel
from dtun.platform.interface import ChangesRefusedError, NextHop

SERVER = ip_address("203.0.113.5")
HOME = UnderlayRoutes({SERVER: Hop("en0", ip_address("192.168.1.1"))}, frozenset({(SERVER, 443)}))
PAIR = (ip_address("10.86.0.2"), ip_address("10.86.0.1"))
PAIR6 = (ip_address("fd00:86::2"), ip_address("fd00:86::1"))
ALL = (ip_network("0.0.0.0/0"), ip_network("::/0"))

OUTSIDE = "en0 192.168.1.1"
OUTSIDE6 = "en0 fe80::1"


def tunnel(*pairs: tuple[object, object], mtu: int = 1400) -> TunnelSettings:
    return TunnelSettings(mtu, pairs or (PAIR,))  # type: ignore[arg-type]


def one_pair(device: str, local: str = "10.86.0.2", peer: str = "10.86.0.1", mtu: int = 1400) -> NetworkState:
    return NetworkState(
        frozenset({NetDevice(device, mtu)}),
        frozenset({PointToPoint(device, ip_address(local), ip_address(peer))}),
    )


def routes(*wanted: Route) -> NetworkState:
    return NetworkState(routes=frozenset(wanted))


async def eventually(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition, up to 10 seconds."""
    deadline = asyncio.get_running_loop().time() + 10
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"timed out waiting for {what}"
        await asyncio.sleep(0.01)


def _assert_clean(mac: FakeKernel) -> None:
    assert not [entry for entry in mac.routes if entry.flags & OURS]
    assert not [one for one in mac.interfaces.values() if one.name.startswith("utun")]


# A client


async def test_a_network_behind_the_server(mac: FakeKernel, kernel: DarwinKernel) -> None:
    tun = kernel.create_tun("dtun0")
    assert tun.name == "utun0"
    routing = Routing(tun.name, (ip_network("10.9.0.0/16"), ip_network("203.0.113.0/24")))
    await kernel.apply(plan_client(routing, tunnel(PAIR, PAIR6), HOME))
    assert mac.interface("utun0").mtu == 1400
    assert mac.pairs("utun0") == {("10.86.0.2", "10.86.0.1"), ("fd00:86::2", "fd00:86::1")}
    assert mac.way("10.9.1.1") == mac.way("203.0.113.6") == mac.way("10.86.0.1") == "utun0"
    # The server's address is inside a network of the tunnel; its packets stay outside.
    assert mac.way("203.0.113.5") == mac.way("198.51.100.1") == OUTSIDE
    await kernel.close()
    tun.close()
    _assert_clean(mac)


async def test_everything_goes_through_the_tunnel(mac: FakeKernel, kernel: DarwinKernel) -> None:
    tun = kernel.create_tun("dtun0")
    outside = UnderlayRoutes(HOME.servers, HOME.ports, {4: Hop("en0", ip_address("192.168.1.1"))})
    routing = Routing(tun.name, ALL[:1], bypassed=(ip_network("198.51.100.0/24"),))
    await kernel.apply(plan_client(routing, tunnel(), outside))
    assert mac.way("1.1.1.1") == mac.way("192.0.2.1") == "utun0"
    assert mac.way("203.0.113.5") == mac.way("198.51.100.9") == OUTSIDE
    assert mac.way("192.168.1.7") == "en0"
    # The tunnel has no IPv6: it must not leave outside the tunnel.
    assert mac.way("2606:4700::1") == "refused"
    default = mac.entry("0.0.0.0/0")
    assert default is not None
    assert str(default.via) == "192.168.1.1"
    tun.close()


async def test_the_kill_switch_outlives_the_process(
    mac: FakeKernel, kernel: DarwinKernel, tmp_path: Path
) -> None:
    routing = Routing("utun0", ALL, block=True)
    # Before the first session.
    assert [change for change, _ in await _refused(kernel, plan_client(routing, None, HOME))] == ["filter"]
    assert mac.way("1.1.1.1") == mac.way("2606:4700::1") == "refused"
    tun = kernel.create_tun("dtun0")
    await _refused(kernel, plan_client(routing, tunnel(PAIR, PAIR6), HOME))
    assert mac.way("1.1.1.1") == mac.way("129.0.0.1") == mac.way("2606:4700::1") == "utun0"
    assert mac.way("203.0.113.5") == OUTSIDE

    await _kill(mac, kernel)
    assert mac.way("1.1.1.1") == mac.way("129.0.0.1") == mac.way("2606:4700::1") == "refused"

    # The successor takes the kill switch over without changing a single route of it.
    mac.requests.clear()
    successor = DarwinKernel("demo", tmp_path / "run", tmp_path / "resolver")
    await successor.open()
    await _refused(successor, plan_client(routing, None, HOME))
    own_address = mac.requests.pop()
    assert (own_address[3], own_address[96:100]) == (2, PAIR[0].packed), "the tunnel has no address now"
    assert mac.requests == []
    await successor.close()
    assert mac.way("1.1.1.1") == OUTSIDE
    assert mac.way("2606:4700::1") == OUTSIDE6
    _assert_clean(mac)
    assert tun.fileno() < 0


async def test_the_kernel_keeps_the_kill_switch(
    mac: FakeKernel, kernel: DarwinKernel, tmp_path: Path
) -> None:
    routing = Routing("utun0", ALL, block=True)
    await _refused(kernel, plan_client(routing, None, HOME))
    # The kernel sweeps cached routes away that nobody has looked up.
    mac.sweep()
    assert mac.way("1.1.1.1") == mac.way("2606:4700::1") == "refused"
    await _kill(mac, kernel)
    mac.sweep()
    assert mac.way("129.0.0.1") == mac.way("8000::1") == "refused"
    successor = DarwinKernel("demo", tmp_path / "run", tmp_path / "resolver")
    await successor.open()
    await successor.close()
    assert mac.way("1.1.1.1") == OUTSIDE
    _assert_clean(mac)


async def test_routes_that_were_used_are_still_ours(mac: FakeKernel, kernel: DarwinKernel) -> None:
    tun = kernel.create_tun("dtun0")
    await kernel.apply(plan_client(Routing(tun.name, ALL[:1]), tunnel(), HOME))
    assert mac.way("203.0.113.5") == OUTSIDE, "a look-up, as each datagram makes one"
    mac.connect("1.1.1.1")
    clone = mac.routes[-1]
    assert clone.flags & OURS, "it has the flags of the route that it was cloned from"
    tun.close()
    await kernel.close()
    assert mac.entry("203.0.113.5/32") is None
    _assert_clean(mac)


async def test_a_new_address_is_the_source_from_now_on(mac: FakeKernel, kernel: DarwinKernel) -> None:
    tun = kernel.create_tun("dtun0")
    inside = routes(Route(ip_network("10.9.0.0/16"), tun.name))
    await kernel.apply(one_pair(tun.name) | inside)
    await kernel.apply(one_pair(tun.name, local="10.86.0.9") | inside)
    assert mac.pairs(tun.name) == {("10.86.0.9", "10.86.0.1")}
    assert mac.way("10.86.0.1") == mac.way("10.9.1.1") == tun.name
    entry = mac.entry("10.9.0.0/16")
    assert entry is not None
    assert str(entry.source) == "10.86.0.9"
    tun.close()


async def test_another_peer_for_the_same_address(mac: FakeKernel, kernel: DarwinKernel) -> None:
    tun = kernel.create_tun("dtun0")
    await kernel.apply(one_pair(tun.name))
    await kernel.apply(one_pair(tun.name, peer="10.86.0.8"))
    assert mac.pairs(tun.name) == {("10.86.0.2", "10.86.0.8")}
    assert (mac.way("10.86.0.8"), mac.way("10.86.0.1")) == (tun.name, OUTSIDE)
    tun.close()


async def test_another_peer_for_the_same_ipv6_address(mac: FakeKernel, kernel: DarwinKernel) -> None:
    tun = kernel.create_tun("dtun0")
    inside = routes(Route(ip_network("fd10::/16"), tun.name))
    await kernel.apply(one_pair(tun.name, "fd00:86::2", "fd00:86::1") | inside)
    await kernel.apply(one_pair(tun.name, "fd00:86::2", "fd00:86::8") | inside)
    assert mac.pairs(tun.name) == {("fd00:86::2", "fd00:86::8")}
    assert (mac.way("fd00:86::8"), mac.way("fd00:86::1")) == (tun.name, OUTSIDE6)
    assert mac.way("fd10::1") == tun.name
    tun.close()


async def test_the_own_address_is_on_loopback(mac: FakeKernel, kernel: DarwinKernel, tmp_path: Path) -> None:
    tun = kernel.create_tun("dtun0")
    await kernel.apply(plan_client(Routing(tun.name, ALL), tunnel(PAIR, PAIR6), HOME))
    assert mac.way("10.86.0.2") == "lo0 127.0.0.1"
    assert mac.way("fd00:86::2") == "lo0", "the kernel's own route"
    # With another address it moves.
    moved = (ip_address("10.86.0.9"), PAIR[1])
    await kernel.apply(plan_client(Routing(tun.name, ALL), tunnel(moved), HOME))
    assert (mac.way("10.86.0.9"), mac.way("10.86.0.2")) == ("lo0 127.0.0.1", tun.name)
    # It outlives the process, so the next one takes it over.
    await _kill(mac, kernel)
    assert mac.way("10.86.0.9") == "lo0 127.0.0.1"
    successor = DarwinKernel("demo", tmp_path / "run", tmp_path / "resolver")
    await successor.open()
    await successor.close()
    _assert_clean(mac)


async def test_two_clients_share_the_servers_address(mac: FakeKernel, kernel: DarwinKernel) -> None:
    one, two = kernel.create_tun("dtun-one"), kernel.create_tun("dtun-two")
    first, second = one_pair(one.name, "10.86.0.1", "10.86.0.2"), one_pair(two.name, "10.86.0.1", "10.86.0.3")
    await kernel.apply(first | second)
    one.close()
    await kernel.apply(second)
    assert mac.way("10.86.0.1") == "lo0 127.0.0.1"
    two.close()
    await kernel.apply(NetworkState())
    assert mac.way("10.86.0.1") == OUTSIDE


async def test_the_gateway_changes(mac: FakeKernel, kernel: DarwinKernel) -> None:
    calls: list[str] = []
    kernel.watch(lambda: calls.append("changed"))
    host_route = Route(ip_network(SERVER), "en0", ip_address("192.168.1.1"))
    await kernel.apply(routes(host_route))
    mac.plug("en1", "10.0.0.5/24")
    mac.default("en1", "10.0.0.1")
    await eventually(lambda: calls, "the watcher to be called")
    # Our own host route does not hide the better route.
    assert await kernel.next_hop(SERVER) == NextHop(
        "en1", ip_address("10.0.0.1"), ip_address("10.0.0.5"), 1500
    )
    await kernel.apply(routes(Route(ip_network(SERVER), "en1", ip_address("10.0.0.1"))))
    assert mac.way("203.0.113.5") == "en1 10.0.0.1"
    assert mac.requests[-1][3] == 3, "it was changed in place, without a gap"


async def test_a_route_to_a_gateway_becomes_one_to_the_link(mac: FakeKernel, kernel: DarwinKernel) -> None:
    await kernel.apply(routes(Route(ip_network("198.51.100.0/24"), "en0", ip_address("192.168.1.1"))))
    await kernel.apply(routes(Route(ip_network("198.51.100.0/24"), "en0")))
    assert mac.way("198.51.100.1") == "en0"


async def test_name_servers_of_the_other_site(mac: FakeKernel, kernel: DarwinKernel, tmp_path: Path) -> None:
    file = tmp_path / "resolver" / "corp.example"
    tun = kernel.create_tun("dtun0")
    dns = Dns(tun.name, (ip_address("10.86.0.1"),), ("~corp.example",))
    wanted = one_pair(tun.name) | NetworkState(dns=frozenset({dns}))
    await kernel.apply(wanted)
    assert "nameserver 10.86.0.1" in file.read_text()
    await kernel.apply(one_pair(tun.name))
    assert not file.exists()
    await kernel.apply(wanted)
    await _kill(mac, kernel)
    assert file.exists()
    successor = DarwinKernel("demo", tmp_path / "run", tmp_path / "resolver")
    await successor.open()
    assert not file.exists(), "the name server was behind a tunnel that no longer exists"
    # Also if the device is closed first.
    tun = successor.create_tun("dtun0")
    await successor.apply(wanted)
    tun.close()
    await successor.close()
    assert not file.exists()


# A server


async def test_a_server_with_two_clients(mac: FakeKernel, kernel: DarwinKernel) -> None:
    one, two = kernel.create_tun("dtun-one"), kernel.create_tun("dtun-two")
    assert (one.name, two.name) == ("utun0", "utun1")
    first = one_pair(one.name, "10.86.0.1", "10.86.0.2") | routes(Route(ip_network("10.1.0.0/16"), one.name))
    second = one_pair(two.name, "10.86.0.1", "10.86.0.3") | routes(Route(ip_network("10.2.0.0/16"), two.name))
    await kernel.apply(first | second)
    assert (mac.way("10.1.2.3"), mac.way("10.2.2.3")) == ("utun0", "utun1")
    assert (mac.way("10.86.0.2"), mac.way("10.86.0.3")) == ("utun0", "utun1")
    one.close()
    # What the kernel removed with the device is not added again.
    assert await kernel.apply(first | second) == []
    assert (mac.way("10.1.2.3"), mac.way("10.2.2.3")) == (OUTSIDE, "utun1")
    two.close()


async def test_forwarding_is_enabled_and_restored(mac: FakeKernel, kernel: DarwinKernel) -> None:
    wanted = NetworkState(sysctls=frozenset({Sysctl("net.ipv4.ip_forward", "1")}))
    await kernel.apply(wanted)
    assert mac.settings["net.inet.ip.forwarding"] == 1
    await kernel.apply(NetworkState())
    assert mac.settings["net.inet.ip.forwarding"] == 0


async def test_forwarding_is_restored_after_a_crash(
    mac: FakeKernel, kernel: DarwinKernel, tmp_path: Path
) -> None:
    await kernel.apply(NetworkState(sysctls=frozenset({Sysctl("net.ipv4.ip_forward", "1")})))
    await _kill(mac, kernel)
    successor = DarwinKernel("demo", tmp_path / "run", tmp_path / "resolver")
    await successor.open()
    await successor.close()
    assert mac.settings["net.inet.ip.forwarding"] == 0


async def test_forwarding_stays_for_the_other_instance(
    mac: FakeKernel, kernel: DarwinKernel, tmp_path: Path
) -> None:
    wanted = NetworkState(sysctls=frozenset({Sysctl("net.ipv4.ip_forward", "1")}))
    other = DarwinKernel("other", tmp_path / "run", tmp_path / "resolver")
    await other.open()
    await kernel.apply(wanted)
    await other.apply(wanted)
    await kernel.apply(NetworkState())
    assert mac.settings["net.inet.ip.forwarding"] == 1
    await other.close()
    assert mac.settings["net.inet.ip.forwarding"] == 0


# Changes by other programs


async def test_a_route_that_another_program_removes_is_restored(
    mac: FakeKernel, kernel: DarwinKernel, caplog: pytest.LogCaptureFixture
) -> None:
    tun = kernel.create_tun("dtun0")
    await kernel.apply(one_pair(tun.name) | routes(Route(ip_network("10.9.0.0/16"), tun.name)))
    with caplog.at_level(logging.WARNING):
        mac.remove("10.9.0.0/16")
        await eventually(lambda: mac.way("10.9.1.1") == tun.name, "the route to be restored")
    assert "restored after removal by another program: route 10.9.0.0/16 dev utun0" in caplog.text
    tun.close()


async def test_a_device_that_another_program_sets_down_is_restored(
    mac: FakeKernel, kernel: DarwinKernel
) -> None:
    tun = kernel.create_tun("dtun0")
    await kernel.apply(one_pair(tun.name))
    mac.interface(tun.name).flags &= ~0x1
    mac.plug("en1", "10.0.0.5/24")
    await eventually(lambda: mac.interface(tun.name).flags & 0x1, "the device to be up again")
    tun.close()


async def test_two_instances_with_the_same_host_route(
    mac: FakeKernel, kernel: DarwinKernel, tmp_path: Path
) -> None:
    host_route = routes(Route(ip_network(SERVER), "en0", ip_address("192.168.1.1")))
    mac.process += 1
    other = DarwinKernel("other", tmp_path / "run", tmp_path / "resolver")
    await other.open()
    await kernel.apply(host_route)
    await other.apply(host_route)
    await other.close()
    await eventually(lambda: mac.entry("203.0.113.5/32"), "the remaining instance to restore its route")


async def test_a_cable_that_is_unplugged_for_a_moment(mac: FakeKernel, kernel: DarwinKernel) -> None:
    await kernel.apply(routes(Route(ip_network(SERVER), "en0", ip_address("192.168.1.1"))))
    mac.unplug("en0")
    assert mac.way("203.0.113.5") == "nowhere"
    mac.plug("en0", "192.168.1.10/24")
    mac.default("en0", "192.168.1.1")
    await eventually(lambda: mac.entry("203.0.113.5/32"), "the host route to be restored")


async def test_our_own_changes_do_not_call_the_watchers(mac: FakeKernel, kernel: DarwinKernel) -> None:
    calls: list[str] = []
    kernel.watch(lambda: calls.append("changed"))
    tun = kernel.create_tun("dtun0")
    await kernel.apply(
        one_pair(tun.name) | routes(Route(ip_network(SERVER), "en0", ip_address("192.168.1.1")))
    )
    mac.default("en0", "192.168.1.254")
    await eventually(lambda: calls, "the watcher to be called")
    assert calls == ["changed"]
    tun.close()


async def test_a_change_after_an_overflow_is_found_by_the_periodic_check(
    mac: FakeKernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "PERIOD", 0.05)
    mac.drops_messages = True
    kernel = DarwinKernel("demo", tmp_path / "run", tmp_path / "resolver")
    await kernel.open()
    calls: list[str] = []
    kernel.watch(lambda: calls.append("changed"))
    mac.default("en0", "192.168.1.254")
    await eventually(lambda: calls, "the periodic check")
    await kernel.close()


async def test_a_route_of_another_program_is_kept(mac: FakeKernel, kernel: DarwinKernel) -> None:
    mac.add("10.9.0.0/16", "en0", "192.168.1.7")
    tun = kernel.create_tun("dtun0")
    wanted = Route(ip_network("10.9.0.0/16"), tun.name)
    with pytest.raises(ChangesRefusedError) as refusal:
        await kernel.apply(one_pair(tun.name) | routes(wanted))
    ((change, reason),) = refusal.value.refused
    assert change.what == wanted
    assert reason.startswith(
        "10.9.0.0/16 is routed through en0 via 192.168.1.7 already, by another program; "
    )
    await kernel.apply(NetworkState())
    assert mac.way("10.9.1.1") == "en0 192.168.1.7"
    tun.close()


async def test_a_route_in_place_of_ours_is_kept(mac: FakeKernel, kernel: DarwinKernel) -> None:
    await kernel.apply(routes(Route(ip_network(SERVER), "en0", ip_address("192.168.1.1"))))
    mac.routes.remove(mac.entry("203.0.113.5/32"))  # type: ignore[arg-type]
    mac.routes.append(_foreign(mac))
    await kernel.apply(NetworkState())
    assert mac.way("203.0.113.5") == "en0 192.168.1.7"


async def test_an_arp_entry_is_replaced(mac: FakeKernel, kernel: DarwinKernel) -> None:
    mac.add("192.168.1.9/32", "en0", flags=0x20000 | 0x4 | 0x400)
    await kernel.apply(routes(Route(ip_network("192.168.1.9"), "en0")))
    entry = mac.entry("192.168.1.9/32")
    assert entry is not None
    assert entry.flags & OURS


# Refusals


async def test_what_macos_does_not_support_is_refused_with_a_reason(kernel: DarwinKernel) -> None:
    routing = Routing("utun0", ALL, policy=Policy(7217, 0x6474), block=True)
    thrown = Route(ip_network("192.0.2.0/24"), kind="throw")
    wanted = plan_client(routing, None, HOME) | NetworkState(
        routes=frozenset({thrown}),
        filters=frozenset(
            {Masquerade("utun0", "en0"), ClampMss("utun0", 1400), DropOtherTrafficToServer(SERVER, 443)}
        ),
        sysctls=frozenset({Sysctl("net.ipv4.conf.all.rp_filter", "0")}),
        dns=frozenset({Dns("utun0", (ip_address("10.86.0.1"),), ("~.",))}),
    )
    with pytest.raises(ChangesRefusedError) as refusal:
        await kernel.apply(wanted)
    reasons = {str(change.what).partition("(")[0]: reason for change, reason in refusal.value.refused}
    assert reasons["Rule"] == "policy routing is not available on macOS; use `routing: main`"
    assert reasons["Route"] == reasons["Rule"]
    switch_on = "and run `pfctl -f /etc/pf.conf; pfctl -E` (docs/macos.md)"
    assert reasons["Masquerade"] == (
        "dtun does not do NAT on macOS; add 'nat on en0 from NETWORK to any -> (en0)' to /etc/pf.conf, "
        f"below the line of nat-anchor, {switch_on}"
    )
    assert reasons["ClampMss"] == (
        "dtun has no packet filter on macOS; add 'scrub all max-mss 1360' to /etc/pf.conf, "
        f"below the line of scrub-anchor, {switch_on}"
    )
    assert (
        reasons["DropOtherTrafficToServer"]
        == "dtun has no packet filter on macOS; only routes keep traffic in the tunnel"
    )
    assert reasons["Sysctl"] == "macOS has no such setting"
    assert "only for listed domains" in reasons["Dns"]
    # Filters for programs that bind to a device are explained in docs/routing.md, not at each start.
    filters = {one for one in wanted.filters if not isinstance(one, DropOutsideTunnel)}
    everything = wanted.routes | wanted.rules | filters | wanted.sysctls | wanted.dns
    assert {change.what for change, _ in refusal.value.refused} == everything
    assert len(refusal.value.refused) == len(everything)


async def test_ipv6_needs_a_large_mtu(kernel: DarwinKernel) -> None:
    tun = kernel.create_tun("dtun0")
    with pytest.raises(ChangesRefusedError, match="IPv6 needs an MTU of 1280 or more"):
        await kernel.apply(one_pair(tun.name, "fd00::2", "fd00::1", mtu=1279))
    with pytest.raises(ChangesRefusedError, match="cannot replace link utun0 mtu 71: invalid argument"):
        await kernel.apply(one_pair(tun.name, "10.86.0.2", "10.86.0.1", mtu=71))
    tun.close()


async def test_a_route_without_a_reachable_gateway_is_refused(kernel: DarwinKernel) -> None:
    with pytest.raises(ChangesRefusedError, match="the gateway is unreachable"):
        await kernel.apply(routes(Route(ip_network(SERVER), "en0", ip_address("172.16.0.1"))))
    with pytest.raises(ChangesRefusedError, match="there is no such device"):
        await kernel.apply(routes(Route(ip_network(SERVER), "en7")))
    tun = kernel.create_tun("dtun0")
    with pytest.raises(ChangesRefusedError, match="the device has no address of that IP version"):
        await kernel.apply(routes(Route(ip_network("10.0.0.0/8"), tun.name)))
    tun.close()


async def test_a_refused_half_is_reported_as_the_whole_route(mac: FakeKernel, kernel: DarwinKernel) -> None:
    tun = kernel.create_tun("dtun0")
    mac.add("64.0.0.0/2", "en0", "192.168.1.7")
    wanted = Route(ip_network("0.0.0.0/1"), tun.name)
    block = Route(ip_network("0.0.0.0/1"), metric=1 << 31, kind="unreachable")
    with pytest.raises(ChangesRefusedError) as refusal:
        await kernel.apply(one_pair(tun.name) | routes(wanted, block))
    assert [change.what for change, _ in refusal.value.refused] == [wanted]
    tun.close()


async def test_the_name_of_the_device(kernel: DarwinKernel) -> None:
    seven = kernel.create_tun("utun7")
    assert seven.name == "utun7"
    with pytest.raises(UnavailableError, match="cannot create the device utun7: it is in use"):
        kernel.create_tun("utun7")
    free = kernel.create_tun("utun-office")
    assert free.name == "utun0"
    seven.close()
    seven.close()
    free.close()


async def test_a_kernel_that_cannot_be_read(mac: FakeKernel, kernel: DarwinKernel) -> None:
    wanted = routes(Route(ip_network("198.51.100.0/24"), "en0", ip_address("192.168.1.1")))
    await kernel.apply(wanted)
    mac.unreadable = 55
    for refused in (
        kernel.apply(NetworkState()),
        kernel.next_hop(SERVER),
        kernel.default_hop(4),
        kernel.local_networks(),
    ):
        with pytest.raises(
            UnavailableError, match="cannot read the kernel's routes: no buffer space available"
        ):
            await refused
    # The reason of a refusal is read, too.
    mac.add("10.9.0.0/16", "en0", "192.168.1.7")
    mac.refuses[ip_network("198.18.0.0/15")] = 17
    with pytest.raises(UnavailableError, match="cannot read"):
        await kernel.apply(
            wanted | routes(Route(ip_network("198.18.0.0/15"), "en0", ip_address("192.168.1.1")))
        )
    mac.unreadable = 0
    await kernel.apply(NetworkState())
    assert mac.way("198.51.100.1") == OUTSIDE


async def test_the_computer_wakes_up_and_cannot_be_read(
    mac: FakeKernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("dtun.platform.darwin.kernel.SLEEP_INTERVAL", 0.02)
    kernel = DarwinKernel("demo", tmp_path / "run", tmp_path / "resolver")
    await kernel.open()
    woken: list[float] = []
    kernel.watch(lambda: None, woken.append)
    mac.unreadable = 55
    mac.asleep += 3600
    await eventually(lambda: woken, "the watcher to be called all the same")
    assert "cannot check the host's network: no buffer space available" in caplog.text
    mac.unreadable = 0
    await kernel.close()


async def test_only_root_may(mac: FakeKernel, tmp_path: Path) -> None:
    mac.root = False
    kernel = DarwinKernel("demo", tmp_path / "run")
    with pytest.raises(PermissionDeniedError, match="only root may"):
        await kernel.open()
    with pytest.raises(PermissionDeniedError, match="run dtun as root"):
        kernel.create_tun("dtun0")
    await kernel.close()


async def test_one_process_an_instance(mac: FakeKernel, kernel: DarwinKernel, tmp_path: Path) -> None:
    del mac, kernel
    second = DarwinKernel("demo", tmp_path / "run", tmp_path / "resolver")
    with pytest.raises(UnavailableError, match="dtun is running already as 'demo'"):
        await second.open()
    await second.close()


# Looking up the host's network


async def test_next_hops_and_local_networks(mac: FakeKernel, kernel: DarwinKernel) -> None:
    tun = kernel.create_tun("dtun0")
    await kernel.apply(one_pair(tun.name) | routes(Route(ip_network("0.0.0.0/1"), tun.name)))
    mac.add("198.51.100.0/24", "en0", "192.168.1.7")
    mac.add("0.0.0.0/0", "en1", "10.0.0.1", flags=0x1000000)
    mac.add("1.0.0.0/8", "en1", "10.0.0.1", flags=0x1000000)
    mac.add("203.0.113.9/32", "en0", "192.168.1.7", flags=0x20000 | 0x4)
    mac.add("203.0.113.64/26", "lo0", "127.0.0.1", flags=0x8)
    gateway, source = ip_address("192.168.1.1"), ip_address("192.168.1.10")
    default = NextHop("en0", gateway, source, 1500)
    assert await kernel.default_hop(4) == await kernel.next_hop(ip_address("1.1.1.1")) == default
    assert await kernel.next_hop(ip_address("203.0.113.9")) == default
    assert await kernel.next_hop(ip_address("10.86.0.1")) == default, "as if there were no tunnel"
    assert await kernel.next_hop(ip_address("203.0.113.70")) is None
    assert await kernel.next_hop(ip_address("192.168.1.20")) == NextHop("en0", None, source, 1500)
    there = await kernel.next_hop(ip_address("198.51.100.1"))
    assert there is not None
    assert there.gateway == ip_address("192.168.1.7")
    six = await kernel.default_hop(6)
    assert six == NextHop("en0", ip_address("fe80::1"), ip_address("2001:db8:1::10"), 1500)
    assert [(local.device, str(local.network)) for local in await kernel.local_networks()] == [
        ("en0", "192.168.1.0/24"),
        ("en0", "2001:db8:1::/64"),
    ]
    mac.unplug("en0")
    mac.plug("en1", "10.0.0.5/24")
    there = await kernel.default_hop(4)
    assert there is not None
    assert there.device == "en1", "its scoped default route"
    mac.unplug("en1")
    assert await kernel.default_hop(4) is None
    tun.close()


async def test_another_vpn_has_the_default_route(mac: FakeKernel, kernel: DarwinKernel) -> None:
    mac.add_utun("utun9")
    mac.default("utun9", "10.200.0.1")
    assert await kernel.default_hop(4) is None
    mac.add("0.0.0.0/0", "en0", "192.168.1.1", flags=0x1000000)
    own = await kernel.default_hop(4)
    assert own is not None
    assert own.gateway == ip_address("192.168.1.1")


async def test_a_successor_takes_everything_over(
    mac: FakeKernel, kernel: DarwinKernel, tmp_path: Path
) -> None:
    host_route = routes(Route(ip_network(SERVER), "en0", ip_address("192.168.1.1")))
    await kernel.apply(host_route)
    await kernel.detach()
    assert mac.entry("203.0.113.5/32") is not None
    successor = DarwinKernel("demo", tmp_path / "run", tmp_path / "resolver")
    await successor.open()
    assert await successor.apply(host_route) == []
    with pytest.raises(UnavailableError, match="macOS does not keep devices over a restart"):
        successor.create_tun("dtun0", 5)
    await successor.close()
    assert mac.entry("203.0.113.5/32") is None


async def test_a_thousand_routes_do_not_block_the_event_loop(mac: FakeKernel, kernel: DarwinKernel) -> None:
    del mac
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    gateway = ip_address("192.168.1.1")
    many = [Route(ip_network((0x0A000000 + (n << 8), 24)), "en0", gateway) for n in range(1000)]
    assert len(await kernel.apply(routes(*many))) == 1000
    assert turns >= 3
    counting.cancel()


async def test_the_computer_sleeps(mac: FakeKernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dtun.platform.darwin.kernel.SLEEP_INTERVAL", 0.02)
    kernel = DarwinKernel("demo", tmp_path / "run", tmp_path / "resolver")
    await kernel.open()
    calls: list[object] = []
    kernel.watch(lambda: calls.append("changed"))
    kernel.watch(lambda: None, calls.append)
    mac.asleep += 3600
    await eventually(lambda: len(calls) == 2, "the watchers to be called")
    assert calls[0] == "changed"
    assert calls[1] == pytest.approx(3600, abs=1)
    await kernel.close()


def _foreign(mac: FakeKernel) -> Entry:
    mac.add("203.0.113.5/32", "en0", "192.168.1.7", flags=0x4)
    return mac.routes.pop()


async def _kill(mac: FakeKernel, kernel: DarwinKernel) -> None:
    """Like kill -9: locks are released and descriptors closed, and nothing else is changed."""
    await kernel.detach()
    mac.kill_owner()


async def _refused(kernel: DarwinKernel, state: NetworkState) -> list[tuple[str, str]]:
    """Apply a state of which macOS refuses a part: the kill switch wants a packet filter, too."""
    with pytest.raises(ChangesRefusedError) as refusal:
        await kernel.apply(state)
    return [(str(change).split()[1], reason) for change, reason in refusal.value.refused]
