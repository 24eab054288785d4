"""Which next hop LinuxKernel finds outside the tunnel: the one that the kernel itself would take."""

import asyncio
from functools import partial
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from kernels import host, into, opened, runtime, state, tunnel, until
from topology import Host, Topology, wait_for

from dtun.network.state import Address, Route
from dtun.platform.interface import NextHop
from dtun.platform.linux.kernel import LinuxKernel

__all__ = ["host", "runtime"]

SERVER = ip_address("203.0.113.5")
ETH0, ETH1 = ip_address("192.0.2.1"), ip_address("198.51.100.1")


def way(hop: NextHop | None) -> tuple[str, Address | None] | None:
    return None if hop is None else (hop.device, hop.gateway)


def kernels_choice(host: Host, address: str = "192.0.9.9") -> list[str]:
    """What `ip route get` says for an address that no route of dtun's is about: device and gateway."""
    words = host.ip(f"route get {address}").split()
    return [words[words.index("dev") + 1], words[words.index("via") + 1]]


async def both(linux: LinuxKernel) -> set[tuple[str, Address | None] | None]:
    """The ways to the server and of the bypassed networks."""
    return {way(await linux.next_hop(SERVER)), way(await linux.default_hop(SERVER.version))}


def has_link(host: Host, device: str) -> bool:
    return "NO-CARRIER" not in host.ip(f"link show dev {device}")


@pytest.mark.parametrize("kind", ["routes", "multipath", "nexthops"])
@pytest.mark.parametrize("ignored", [True, False])
def test_a_pulled_cable(net: Topology, host: Host, runtime: Path, ignored: bool, kind: str) -> None:
    """The far end of eth1, the better way, goes down. With the server's own route there, and its absence."""
    router = net.hosts[1]
    host.run("sysctl", "-qw", f"net.ipv4.conf.eth1.ignore_routes_with_linkdown={int(ignored)}")
    host.ip("route del default")
    if kind == "routes":
        host.ip("route add default via 198.51.100.1 dev eth1 metric 50")
        host.ip("route add default via 192.0.2.1 dev eth0 metric 100")
    elif kind == "multipath":
        host.ip("route add default nexthop via 198.51.100.1 dev eth1 nexthop via 192.0.2.1 dev eth0")
    else:
        host.run("sysctl", "-qw", "net.ipv4.nexthop_compat_mode=0")
        host.ip("nexthop add id 1 via 198.51.100.1 dev eth1")
        host.ip("nexthop add id 2 via 192.0.2.1 dev eth0")
        host.ip("route add default nhid 1 metric 50")
        host.ip("route add default nhid 2 metric 100")
    pin = Route(ip_network(SERVER), "eth1", ETH1)

    async def story() -> None:
        async with tunnel(runtime) as (linux, _):
            await linux.apply(state(pin, into("128.0.0.0/2"), into("200.0.0.0/6")))
            assert await both(linux) == {("eth1", ETH1)}
            router.ip("link set eth1 down")
            wait_for(lambda: not has_link(host, "eth1"), "the cable to be pulled")
            if kind != "multipath" or ignored:
                device, gateway = kernels_choice(host, "9.9.9.9")
                assert device == ("eth1" if kind == "routes" and not ignored else "eth0")
                assert await both(linux) == {(device, ip_address(gateway))}
            router.ip("link set eth1 up")
            wait_for(lambda: has_link(host, "eth1"), "the cable to be there again")
            # A nexthop object has gone with the link.
            assert await both(linux) == {("eth0", ETH0) if kind == "nexthops" else ("eth1", ETH1)}

    host.play(story)


def test_nexthop_objects(host: Host, runtime: Path) -> None:
    """With compat mode off the kernel tells only the ids; a replaced object changes routes without a notification."""
    host.run("sysctl", "-qw", "net.ipv4.nexthop_compat_mode=0")
    host.ip("route del default")
    host.ip("nexthop add id 7 via 192.0.2.1 dev eth0")
    host.ip("route add default nhid 7")
    host.ip("-6 nexthop add id 8 via 2001:db8::1 dev eth0")
    host.ip("nexthop add id 9 via 198.51.100.1 dev eth1")
    host.ip("nexthop add id 10 group 9/7")
    host.ip("-6 route add default nhid 8")
    host.ip("route add 203.0.112.0/24 nhid 10")
    changed: list[bool] = []

    async def story() -> None:
        async with tunnel(runtime) as (linux, _):
            linux.watch(partial(changed.append, True))
            for _ in range(2):  # by a look-up, then among our own routes
                assert way(await linux.next_hop(SERVER)) == ("eth0", ETH0)
                assert way(await linux.next_hop(ip_address("203.0.112.9"))) in {
                    ("eth0", ETH0),
                    ("eth1", ETH1),
                }
                server6 = await linux.next_hop(ip_address("2001:db8:9::9"))
                assert way(server6) == ("eth0", ip_address("2001:db8::1"))
                await linux.apply(state(into("128.0.0.0/1"), into("203.0.112.0/25"), into("2000::/3")))
            assert way(await linux.default_hop(4)) == ("eth0", ETH0)
            assert way(await linux.default_hop(6)) == ("eth0", ip_address("2001:db8::1"))
            changed.clear()
            host.ip("nexthop replace id 7 via 198.51.100.1 dev eth1")
            await until(lambda: bool(changed), "the notification")
            assert await both(linux) == {("eth1", ETH1)}

    host.play(story)


def test_the_source_that_a_route_prescribes(host: Host, runtime: Path) -> None:
    """It is part of the way; the source that the kernel would choose anyway is not."""
    host.ip("address add 192.0.2.77/24 dev eth0")
    host.ip("route replace default via 192.0.2.1 src 192.0.2.77")
    wanted = ip_address("192.0.2.77")

    async def story() -> None:
        async with tunnel(runtime) as (linux, _):
            first = await linux.next_hop(SERVER)
            assert first is not None
            assert first.route_source == first.source == wanted
            on_link = await linux.next_hop(ip_address("198.51.100.9"))
            assert on_link is not None
            assert on_link.source == ip_address("198.51.100.2")
            default = await linux.default_hop(4)
            assert default is not None
            assert default.route_source == wanted
            await linux.apply(state(into("128.0.0.0/1")))
            again = await linux.next_hop(SERVER)
            assert again is not None
            assert again.route_source == wanted

    host.play(story)


def test_a_tap_device_is_an_uplink(host: Host, runtime: Path) -> None:
    """As in a container with slirp4netns or pasta. A TUN device is another VPN's."""
    host.ip("route del default")
    for mode in ("tap", "tun"):
        host.ip(f"tuntap add dev {mode}0 mode {mode}")
        host.ip(f"link set {mode}0 up")
    host.ip("address add 10.0.2.100/24 dev tap0")
    host.ip("address add 10.8.0.2 peer 10.8.0.1 dev tun0")
    host.ip("route add default dev tun0 metric 10")
    host.ip("route add default via 10.0.2.2 dev tap0 metric 100")
    changed: list[bool] = []

    async def story() -> None:
        async with opened(runtime) as linux:
            assert way(await linux.default_hop(4)) == ("tap0", ip_address("10.0.2.2"))
            linux.watch(partial(changed.append, True))
            host.ip("address add 10.8.0.9 dev tun0")
            host.ip("address add 10.0.2.101/24 dev tap0")
            await until(lambda: bool(changed), "the notification")
            await asyncio.sleep(0)
            assert len(changed) == 1, "the TUN device is none of ours"

    host.play(story)


def test_the_answer_for_the_mark_of_the_tunnels_own_packets(host: Host, runtime: Path) -> None:
    host.ip("route add default via 198.51.100.1 table 100")
    host.ip("rule add fwmark 0x6474 lookup 100 priority 100")

    async def story() -> None:
        async with opened(runtime) as linux:
            assert way(await linux.next_hop(SERVER)) == ("eth0", ETH0)
            assert way(await linux.next_hop(SERVER, 0x6474)) == ("eth1", ETH1)

    host.play(story)
