"""dtun keeps a Mac's network as it should be: every story is played against the fake kernel, byte by byte."""

import asyncio
import logging
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from fake_kernel import Entry, FakeKernel

from dtun.errors import PermissionDeniedError, UnavailableError
from dtun.network.plan import Hop, Policy, Routing, TunnelSettings, UnderlayRoutes, plan_client
from dtun.network.state import (
    ClampMss,
    Dns,
    DropIPv6OutsideTunnel,
    DropOtherTrafficToServer,
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
    """As `wait_for`, for what happens in this very event loop."""
    deadline = asyncio.get_running_loop().time() + 10
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"waited in vain for {what}"
        await asyncio.sleep(0.01)


def _nothing_is_left(mac: FakeKernel) -> None:
    assert not [entry for entry in mac.routes if entry.flags & 0x40000]
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
    # The server is inside of what goes through the tunnel, and is reached outside of it.
    assert mac.way("203.0.113.5") == mac.way("198.51.100.1") == OUTSIDE
    await kernel.close()
    tun.close()
    _nothing_is_left(mac)


async def test_everything_goes_through_the_tunnel(mac: FakeKernel, kernel: DarwinKernel) -> None:
    tun = kernel.create_tun("dtun0")
    outside = UnderlayRoutes(HOME.servers, HOME.ports, {4: Hop("en0", ip_address("192.168.1.1"))})
    routing = Routing(tun.name, ALL[:1], bypassed=(ip_network("198.51.100.0/24"),))
    await kernel.apply(plan_client(routing, tunnel(), outside))
    assert mac.way("1.1.1.1") == mac.way("192.0.2.1") == "utun0"
    assert mac.way("203.0.113.5") == mac.way("198.51.100.9") == OUTSIDE
    assert mac.way("192.168.1.7") == "en0"
    # The tunnel has no IPv6, so that it would go past it.
    assert mac.way("2606:4700::1") == "refused"
    default = mac.entry("0.0.0.0/0")
    assert default is not None
    assert str(default.via) == "192.168.1.1"
    tun.close()


async def test_the_kill_switch_outlives_the_process(
    mac: FakeKernel, kernel: DarwinKernel, tmp_path: Path
) -> None:
    routing = Routing("utun0", ALL, block=True)
    # Before the first session, already.
    assert [change for change, _ in await _refused(kernel, plan_client(routing, None, HOME))] == ["filter"]
    assert mac.way("1.1.1.1") == mac.way("2606:4700::1") == "refused"
    tun = kernel.create_tun("dtun0")
    await _refused(kernel, plan_client(routing, tunnel(PAIR, PAIR6), HOME))
    assert mac.way("1.1.1.1") == mac.way("129.0.0.1") == mac.way("2606:4700::1") == "utun0"
    assert mac.way("203.0.113.5") == OUTSIDE

    _kill(mac, kernel)
    assert mac.way("1.1.1.1") == mac.way("129.0.0.1") == mac.way("2606:4700::1") == "refused"

    # The successor takes it over, and there is no gap at all: not one route that refuses is touched.
    mac.requests.clear()
    successor = DarwinKernel("demo", tmp_path / "run", tmp_path / "resolver")
    await successor.open()
    await _refused(successor, plan_client(routing, None, HOME))
    assert mac.requests == []
    await successor.close()
    assert mac.way("1.1.1.1") == OUTSIDE
    assert mac.way("2606:4700::1") == OUTSIDE6
    _nothing_is_left(mac)
    assert tun.fileno() < 0


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


async def test_the_gateway_changes(mac: FakeKernel, kernel: DarwinKernel) -> None:
    heard: list[str] = []
    kernel.watch(lambda: heard.append("changed"))
    pin = Route(ip_network(SERVER), "en0", ip_address("192.168.1.1"))
    await kernel.apply(routes(pin))
    mac.plug("en1", "10.0.0.5/24")
    mac.default("en1", "10.0.0.1")
    await eventually(lambda: heard, "the watcher to hear of another network")
    # Our own pin does not hide the better way.
    assert await kernel.next_hop(SERVER) == NextHop(
        "en1", ip_address("10.0.0.1"), ip_address("10.0.0.5"), 1500
    )
    await kernel.apply(routes(Route(ip_network(SERVER), "en1", ip_address("10.0.0.1"))))
    assert mac.way("203.0.113.5") == "en1 10.0.0.1"
    assert mac.requests[-1][3] == 3, "it was changed in place, without a moment in which it is missing"


async def test_a_route_to_a_gateway_becomes_one_to_the_link(mac: FakeKernel, kernel: DarwinKernel) -> None:
    await kernel.apply(routes(Route(ip_network("198.51.100.0/24"), "en0", ip_address("192.168.1.1"))))
    await kernel.apply(routes(Route(ip_network("198.51.100.0/24"), "en0")))
    assert mac.way("198.51.100.1") == "en0"


async def test_names_of_the_other_site(mac: FakeKernel, kernel: DarwinKernel, tmp_path: Path) -> None:
    file = tmp_path / "resolver" / "corp.example"
    tun = kernel.create_tun("dtun0")
    dns = Dns(tun.name, (ip_address("10.86.0.1"),), ("~corp.example",))
    wanted = one_pair(tun.name) | NetworkState(dns=frozenset({dns}))
    await kernel.apply(wanted)
    assert "nameserver 10.86.0.1" in file.read_text()
    await kernel.apply(one_pair(tun.name))
    assert not file.exists()
    await kernel.apply(wanted)
    _kill(mac, kernel)
    assert file.exists()
    successor = DarwinKernel("demo", tmp_path / "run", tmp_path / "resolver")
    await successor.open()
    assert not file.exists(), "the name server was behind a tunnel that is gone"
    # Also if the device goes first.
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
    # What went with the device is not asked for again.
    assert await kernel.apply(first | second) == []
    assert (mac.way("10.1.2.3"), mac.way("10.2.2.3")) == (OUTSIDE, "utun1")
    two.close()


async def test_forwarding_is_switched_on_and_comes_back(mac: FakeKernel, kernel: DarwinKernel) -> None:
    wanted = NetworkState(sysctls=frozenset({Sysctl("net.ipv4.ip_forward", "1")}))
    await kernel.apply(wanted)
    assert mac.settings["net.inet.ip.forwarding"] == 1
    await kernel.apply(NetworkState())
    assert mac.settings["net.inet.ip.forwarding"] == 0


async def test_forwarding_comes_back_after_a_crash(
    mac: FakeKernel, kernel: DarwinKernel, tmp_path: Path
) -> None:
    await kernel.apply(NetworkState(sysctls=frozenset({Sysctl("net.ipv4.ip_forward", "1")})))
    _kill(mac, kernel)
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


# What others do


async def test_what_others_take_comes_back(
    mac: FakeKernel, kernel: DarwinKernel, caplog: pytest.LogCaptureFixture
) -> None:
    tun = kernel.create_tun("dtun0")
    await kernel.apply(one_pair(tun.name) | routes(Route(ip_network("10.9.0.0/16"), tun.name)))
    with caplog.at_level(logging.WARNING):
        mac.remove("10.9.0.0/16")
        await eventually(lambda: mac.way("10.9.1.1") == tun.name, "the route to be back")
    assert "restored after removal by another program: route 10.9.0.0/16 dev utun0" in caplog.text
    tun.close()


async def test_a_device_that_others_switch_off(mac: FakeKernel, kernel: DarwinKernel) -> None:
    tun = kernel.create_tun("dtun0")
    await kernel.apply(one_pair(tun.name))
    mac.interface(tun.name).flags &= ~0x1
    mac.plug("en1", "10.0.0.5/24")
    await eventually(lambda: mac.interface(tun.name).flags & 0x1, "the device to be up again")
    tun.close()


async def test_two_that_pin_the_same_server(mac: FakeKernel, kernel: DarwinKernel, tmp_path: Path) -> None:
    pin = routes(Route(ip_network(SERVER), "en0", ip_address("192.168.1.1")))
    other = DarwinKernel("other", tmp_path / "run", tmp_path / "resolver")
    await other.open()
    await kernel.apply(pin)
    await other.apply(pin)
    assert kernel._monitor is not None
    kernel._monitor._process = -1  # Else both would be the same process.
    await other.close()
    await eventually(lambda: mac.entry("203.0.113.5/32"), "the one that is left to have its pin")


async def test_a_cable_that_was_out_for_a_moment(mac: FakeKernel, kernel: DarwinKernel) -> None:
    await kernel.apply(routes(Route(ip_network(SERVER), "en0", ip_address("192.168.1.1"))))
    mac.unplug("en0")
    assert mac.way("203.0.113.5") == "nowhere"
    mac.plug("en0", "192.168.1.10/24")
    mac.default("en0", "192.168.1.1")
    await eventually(lambda: mac.entry("203.0.113.5/32"), "the pin to be back")


async def test_our_own_changes_are_no_news(mac: FakeKernel, kernel: DarwinKernel) -> None:
    heard: list[str] = []
    kernel.watch(lambda: heard.append("changed"))
    tun = kernel.create_tun("dtun0")
    await kernel.apply(
        one_pair(tun.name) | routes(Route(ip_network(SERVER), "en0", ip_address("192.168.1.1")))
    )
    mac.default("en0", "192.168.1.254")
    await eventually(lambda: heard, "real news")
    assert heard == ["changed"]
    tun.close()


async def test_an_overflow_is_found_out_later(
    mac: FakeKernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "SAFETY_NET", 0.05)
    monkeypatch.setattr(FakeKernel, "_broadcast", lambda *_: None)
    kernel = DarwinKernel("demo", tmp_path / "run", tmp_path / "resolver")
    await kernel.open()
    heard: list[str] = []
    kernel.watch(lambda: heard.append("changed"))
    mac.default("en0", "192.168.1.254")
    await eventually(lambda: heard, "the look that nobody asked for")
    await kernel.close()


async def test_somebody_elses_route_is_left_alone(mac: FakeKernel, kernel: DarwinKernel) -> None:
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


async def test_what_took_the_place_of_ours_is_left_alone(mac: FakeKernel, kernel: DarwinKernel) -> None:
    await kernel.apply(routes(Route(ip_network(SERVER), "en0", ip_address("192.168.1.1"))))
    mac.routes.remove(mac.entry("203.0.113.5/32"))  # type: ignore[arg-type]
    mac.routes.append(_foreign(mac))
    await kernel.apply(NetworkState())
    assert mac.way("203.0.113.5") == "en0 192.168.1.7"


async def test_an_arp_entry_makes_room(mac: FakeKernel, kernel: DarwinKernel) -> None:
    mac.add("192.168.1.9/32", "en0", flags=0x20000 | 0x4 | 0x400)
    await kernel.apply(routes(Route(ip_network("192.168.1.9"), "en0")))
    entry = mac.entry("192.168.1.9/32")
    assert entry is not None
    assert entry.flags & 0x40000


# What cannot be


async def test_what_macos_cannot_do_is_said(kernel: DarwinKernel) -> None:
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
    assert reasons["Masquerade"].endswith("into /etc/pf.conf")
    assert "max-mss 1360" in reasons["ClampMss"]
    assert (
        reasons["DropOtherTrafficToServer"]
        == "dtun filters nothing on macOS; the routes alone keep traffic in the tunnel"
    )
    assert reasons["Sysctl"] == "macOS has no such setting"
    assert "only for the domains that are named" in reasons["Dns"]
    # What is for programs that insist on a device is told in docs/routing.md, not at each start.
    filters = wanted.filters - {DropIPv6OutsideTunnel()}
    everything = wanted.routes | wanted.rules | filters | wanted.sysctls | wanted.dns
    assert {change.what for change, _ in refusal.value.refused} == everything
    assert len(refusal.value.refused) == len(everything)


async def test_ipv6_needs_a_large_mtu(kernel: DarwinKernel) -> None:
    tun = kernel.create_tun("dtun0")
    with pytest.raises(ChangesRefusedError, match="IPv6 needs an MTU of 1280 or more"):
        await kernel.apply(one_pair(tun.name, "fd00::2", "fd00::1", mtu=1279))
    with pytest.raises(
        ChangesRefusedError, match="cannot replace link utun0 mtu 71: the kernel finds it invalid"
    ):
        await kernel.apply(one_pair(tun.name, "10.86.0.2", "10.86.0.1", mtu=71))
    tun.close()


async def test_a_route_without_a_way_is_refused(kernel: DarwinKernel) -> None:
    with pytest.raises(ChangesRefusedError, match="there is no way to the gateway"):
        await kernel.apply(routes(Route(ip_network(SERVER), "en0", ip_address("172.16.0.1"))))
    with pytest.raises(ChangesRefusedError, match="there is no such device"):
        await kernel.apply(routes(Route(ip_network(SERVER), "en7")))
    tun = kernel.create_tun("dtun0")
    with pytest.raises(ChangesRefusedError, match="the device has no address of that IP version"):
        await kernel.apply(routes(Route(ip_network("10.0.0.0/8"), tun.name)))
    tun.close()


async def test_a_piece_that_is_refused_speaks_for_the_whole(mac: FakeKernel, kernel: DarwinKernel) -> None:
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
    with pytest.raises(UnavailableError, match="cannot make the device utun7: it is taken"):
        kernel.create_tun("utun7")
    free = kernel.create_tun("utun-office")
    assert free.name == "utun0"
    seven.close()
    seven.close()
    free.close()


async def test_only_root_may(mac: FakeKernel, tmp_path: Path) -> None:
    mac.root = False
    kernel = DarwinKernel("demo", tmp_path / "run")
    with pytest.raises(PermissionDeniedError, match="that takes root"):
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


# What the host is like


async def test_the_ways_of_the_host(mac: FakeKernel, kernel: DarwinKernel) -> None:
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
    assert await kernel.next_hop(ip_address("10.86.0.1")) == default, "the peer, if there were no tunnel"
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
    assert there.device == "en1", "which has one of its own, for whoever is bound to it"
    mac.unplug("en1")
    assert await kernel.default_hop(4) is None
    tun.close()


async def test_another_vpn_has_the_default_route(mac: FakeKernel, kernel: DarwinKernel) -> None:
    vpn = kernel.create_tun("utun9")
    kernel._own.devices.clear()  # Another program's.
    mac.default("utun9", "10.200.0.1")
    assert await kernel.default_hop(4) is None
    mac.add("0.0.0.0/0", "en0", "192.168.1.1", flags=0x1000000)
    own = await kernel.default_hop(4)
    assert own is not None
    assert own.gateway == ip_address("192.168.1.1")
    vpn.close()


async def test_a_successor_finds_everything(mac: FakeKernel, kernel: DarwinKernel, tmp_path: Path) -> None:
    pin = routes(Route(ip_network(SERVER), "en0", ip_address("192.168.1.1")))
    await kernel.apply(pin)
    await kernel.detach()
    assert mac.entry("203.0.113.5/32") is not None
    successor = DarwinKernel("demo", tmp_path / "run", tmp_path / "resolver")
    await successor.open()
    assert await successor.apply(pin) == []
    with pytest.raises(UnavailableError, match="macOS keeps none from one start to the next"):
        successor.create_tun("dtun0", 5)
    await successor.close()
    assert mac.entry("203.0.113.5/32") is None


async def test_a_thousand_routes_leave_the_loop_its_turns(mac: FakeKernel, kernel: DarwinKernel) -> None:
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
    heard: list[object] = []
    kernel.watch(lambda: heard.append("changed"))
    kernel.watch(lambda: None, heard.append)
    mac.asleep += 3600
    await eventually(lambda: len(heard) == 2, "the watchers to hear of it")
    assert heard[0] == "changed"
    assert heard[1] == pytest.approx(3600, abs=1)
    await kernel.close()


def _foreign(mac: FakeKernel) -> Entry:
    mac.add("203.0.113.5/32", "en0", "192.168.1.7", flags=0x4)
    return mac.routes.pop()


def _kill(mac: FakeKernel, kernel: DarwinKernel) -> None:
    """As kill -9 does it: the kernel closes the descriptors, the lock goes, and nothing else happens."""
    for watch in (kernel._monitor, kernel._sleep):
        assert watch is not None
        watch.close()
    assert kernel._repairer is not None
    kernel._repairer._task.cancel()
    mac.kill_owner()
    kernel._journal.close(keep=True)
    kernel._open_changer = None


async def _refused(kernel: DarwinKernel, state: NetworkState) -> list[tuple[str, str]]:
    """Apply what is refused in part: the guard of the kill switch takes a packet filter."""
    with pytest.raises(ChangesRefusedError) as refusal:
        await kernel.apply(state)
    return [(str(change).split()[1], reason) for change, reason in refusal.value.refused]
