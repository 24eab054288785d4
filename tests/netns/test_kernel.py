"""LinuxKernel against a real kernel, in a network namespace of its own."""

import asyncio
import json
import os
import subprocess
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from ipaddress import ip_address, ip_network
from pathlib import Path
from unittest import mock

import kernels
import pytest
from kernels import (
    GATEWAY,
    PIN,
    TUN,
    into,
    kill,
    opened,
    routes,
    start_victim,
    state,
    tunnel,
    until,
)
from topology import Host, wait_for

from dtun.errors import UnavailableError
from dtun.network.difference import Action
from dtun.network.state import NetDevice, NetworkState, PointToPoint, Route
from dtun.platform import kernel
from dtun.platform.interface import ChangesRefusedError, LocalNetwork, NextHop
from dtun.platform.linux import lookup
from dtun.platform.linux.netlink.route_batches import RouteBatches
from dtun.protocol import virtio

host, runtime = kernels.host, kernels.runtime


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_tunnel_is_set_up_and_gone_after_the_end(host: Host, runtime: Path) -> None:
    before = host.ip("-4 address"), host.ip("-4 route"), host.ip("-brief link")

    async def story() -> None:
        async with tunnel(runtime) as (linux, tun):
            assert os.get_blocking(tun.fileno()) is False
            assert os.get_inheritable(tun.fileno()) is False
            changes = await linux.apply(state(into("10.1.0.0/16"), into("fd01::/48"), PIN))
            assert [str(change) for change in changes] == [
                "add link dtun-demo mtu 1400",
                "add address 10.86.0.1 peer 10.86.0.2 dev dtun-demo",
                "add address fd86::1 peer fd86::2 dev dtun-demo",
                "add route 203.0.113.5/32 via 192.0.2.1 dev eth0",
                "add route 10.1.0.0/16 dev dtun-demo",
                "add route fd01::/48 dev dtun-demo",
            ]
            (link,) = json.loads(host.ip(f"-j address show dev {TUN}"))
            assert (link["mtu"], "UP" in link["flags"]) == (1400, True)
            # No fe80:: of the kernel's own, and the IPv6 address is usable at once.
            assert [(pair["local"], pair["address"]) for pair in link["addr_info"]] == [
                ("10.86.0.1", "10.86.0.2"),
                ("fd86::1", "fd86::2"),
            ]
            assert "nodad" in link["addr_info"][1]
            assert routes(host) == {
                "203.0.113.5 via 192.0.2.1 dev eth0 onlink",
                "10.1.0.0/16 dev dtun-demo",
                "fd01::/48 dev dtun-demo",
            }

    host.play(story)
    assert (host.ip("-4 address"), host.ip("-4 route"), host.ip("-brief link")) == before
    assert routes(host) == set()
    assert list(runtime.iterdir()) == []


def test_packets_pass_between_the_device_and_the_host(host: Host, runtime: Path) -> None:
    async def story() -> bytes:
        async with tunnel(runtime) as (linux, tun):
            await linux.apply(state(into("10.1.0.0/16")))
            host.popen("ping", "-c1", "-W1", "10.1.2.3", stdout=subprocess.DEVNULL)
            arrived = asyncio.Event()
            asyncio.get_running_loop().add_reader(tun.fileno(), arrived.set)
            await asyncio.wait_for(arrived.wait(), 10)
            asyncio.get_running_loop().remove_reader(tun.fileno())
            return os.read(tun.fileno(), 2000)

    packet = host.play(story)[virtio.SIZE :]
    # Behind the header, an IPv4 packet: version 4, source 10.86.0.1, destination 10.1.2.3.
    assert (packet[0] >> 4, packet[12:16], packet[16:20]) == (4, bytes([10, 86, 0, 1]), bytes([10, 1, 2, 3]))


def test_applying_the_same_again_changes_nothing(host: Host, runtime: Path) -> None:
    async def story() -> None:
        async with tunnel(runtime) as (linux, _):
            await linux.apply(state(into("10.1.0.0/16"), PIN))
            assert await linux.apply(state(into("10.1.0.0/16"), PIN)) == []

    host.play(story)


def test_a_route_is_replaced_without_a_gap(host: Host, runtime: Path) -> None:
    async def story() -> None:
        async with tunnel(runtime) as (linux, _):
            await linux.apply(state(PIN, into("fd01::/48")))
            monitor = host.popen("ip", "monitor", "route", stdout=subprocess.PIPE)
            assert monitor.stdout is not None
            pipe = monitor.stdout.fileno()
            os.set_blocking(pipe, False)
            heard = ""

            def hears(words: str) -> bool:
                nonlocal heard
                host.ip("route add 198.18.0.0/15 dev eth1")
                host.ip("route del 198.18.0.0/15 dev eth1")
                with suppress(BlockingIOError):
                    heard += os.read(pipe, 65536).decode()
                return words in heard

            # The monitor listens once it has told us of something.
            await until(lambda: hears("198.18.0.0/15"), "the monitor")
            other = Route(PIN.destination, "eth1", ip_address("198.51.100.1"))
            other6 = into("fd01::/48", "eth1")
            await linux.apply(state(other, other6))
            await until(lambda: hears("203.0.113.5") and hears("fd01::/48"), "the replacement")
            assert "Deleted 203.0.113.5" not in heard
            assert "Deleted fd01::/48" not in heard
            assert routes(host) == {
                "203.0.113.5 via 198.51.100.1 dev eth1 onlink",
                "fd01::/48 dev eth1",
            }

    host.play(story)


def test_mtu_and_peers_are_replaced(host: Host, runtime: Path) -> None:
    async def story() -> None:
        async with tunnel(runtime) as (linux, _):
            await linux.apply(state(into("fd01::/48")))
            await linux.apply(state(into("fd01::/48"), mtu=1300, peer="10.86.0.9", peer6="fd86::9"))
            (link,) = json.loads(host.ip(f"-j address show dev {TUN}"))
            assert link["mtu"] == 1300
            assert [pair["address"] for pair in link["addr_info"]] == ["10.86.0.9", "fd86::9"]
            assert "fd01::/48 dev dtun-demo" in routes(host)

    host.play(story)


@pytest.mark.parametrize(
    ("foreign", "reason"),
    [
        (
            "10.1.0.0/16 via 192.0.2.9 dev eth0 proto static",
            "through eth0 via 192.0.2.9 already, by the administra",
        ),
        (
            "unreachable 10.1.0.0/16 proto bgp",
            "10.1.0.0/16 is unreachable by another program's route already",
        ),
    ],
)
def test_a_foreign_route_is_left_alone(host: Host, runtime: Path, foreign: str, reason: str) -> None:
    host.ip(f"route add {foreign}")
    before = host.ip("route show 10.1.0.0/16")

    async def story() -> None:
        async with tunnel(runtime) as (linux, _):
            with pytest.raises(ChangesRefusedError) as caught:
                await linux.apply(state(into("10.1.0.0/16"), into("10.2.0.0/16")))
            assert str(caught.value).startswith("cannot add route 10.1.0.0/16 dev dtun-demo: 10.1.0.0/16 is ")
            assert reason in str(caught.value)
            assert [change.what for change, _ in caught.value.refused] == [into("10.1.0.0/16")]
            # The rest is in place, and a second attempt succeeds once the foreign route is gone.
            assert routes(host) == {"10.2.0.0/16 dev dtun-demo"}
            assert host.ip("route show 10.1.0.0/16") == before
            host.ip("route del 10.1.0.0/16")
            await linux.apply(state(into("10.1.0.0/16"), into("10.2.0.0/16")))
            assert routes(host) == {"10.1.0.0/16 dev dtun-demo", "10.2.0.0/16 dev dtun-demo"}

    host.play(story)


def test_a_default_route_of_the_hosts_own_is_left_alone(host: Host, runtime: Path) -> None:
    async def story() -> None:
        async with tunnel(runtime) as (linux, _):
            with pytest.raises(
                ChangesRefusedError, match=r"0\.0\.0\.0/0 is routed through eth0 via 192\.0\.2\.1"
            ):
                await linux.apply(state(into("0.0.0.0/0")))

    host.play(story)


def test_a_replacement_spares_what_took_the_place_of_our_route(host: Host, runtime: Path) -> None:
    """Our pin is gone, and another program has added its own route there."""

    async def story() -> None:
        async with tunnel(runtime) as (linux, _):
            await linux.apply(state(PIN))
            host.ip("route del 203.0.113.5")
            host.ip("route add 203.0.113.5 via 192.0.2.77 dev eth0")
            with pytest.raises(ChangesRefusedError):
                await linux.apply(state(Route(PIN.destination, "eth1", ip_address("198.51.100.1"))))
            assert "via 192.0.2.77" in host.ip("route show 203.0.113.5")

    host.play(story)
    assert "via 192.0.2.77" in host.ip("route show 203.0.113.5")


def test_what_is_gone_already_need_not_be_removed(host: Host, runtime: Path) -> None:
    async def story() -> None:
        async with tunnel(runtime) as (linux, _):
            await linux.apply(state(into("10.1.0.0/16"), into("10.2.0.0/16"), PIN))
            host.ip("route del 10.1.0.0/16")
            host.ip("route del 203.0.113.5")
            host.ip(f"address del 10.86.0.1 peer 10.86.0.2 dev {TUN}")
            await linux.apply(NetworkState())

    host.play(story)


def test_a_closed_device_takes_its_part_of_the_state_along(host: Host, runtime: Path) -> None:
    async def story() -> None:
        async with tunnel(runtime) as (linux, tun):
            wanted = state(into("10.1.0.0/16"), PIN)
            await linux.apply(wanted)
            tun.close()
            assert await linux.apply(wanted) == []
            # Made again, it gets everything again.
            again = linux.create_tun(TUN)
            assert len(await linux.apply(wanted)) == 4
            again.close()

    host.play(story)


def test_a_device_may_be_closed_while_its_routes_are_added(host: Host, runtime: Path) -> None:
    async def story() -> None:
        async with tunnel(runtime) as (linux, tun):
            wanted = state(PIN, *(into(f"10.{n >> 8}.{n & 255}.0/24") for n in range(20000)))
            applying = asyncio.create_task(linux.apply(wanted))
            await until(lambda: len(linux.applied.routes) > 10, "some routes")
            assert not applying.done()
            tun.close()
            await applying
            assert routes(host) == {"203.0.113.5 via 192.0.2.1 dev eth0 onlink"}
            assert linux.applied.routes == {PIN}

    host.play(story)


def test_a_missing_device_is_said(host: Host, runtime: Path) -> None:
    async def story() -> None:
        async with opened(runtime) as linux:
            with pytest.raises(ChangesRefusedError, match="dev eth7: there is no such device"):
                await linux.apply(NetworkState(routes=frozenset({into("10.1.0.0/16", "eth7")})))

    host.play(story)


def test_ipv6_that_is_switched_off_is_said_and_ipv4_works(host: Host, runtime: Path) -> None:
    host.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")

    async def story() -> None:
        async with tunnel(runtime) as (linux, _):
            with pytest.raises(
                ChangesRefusedError, match=r"fd86::1 .*: IPv6 is disabled on this host"
            ) as caught:
                await linux.apply(state(into("10.1.0.0/16")))
            assert len(caught.value.refused) == 1
            assert routes(host) == {"10.1.0.0/16 dev dtun-demo"}

    host.play(story)


def test_a_gateway_outside_every_network_of_the_host_will_do(host: Host, runtime: Path) -> None:
    """As at some hosting providers: one address, and a gateway outside its network."""
    host.ip("route replace default via 172.31.1.1 dev eth0 onlink")

    async def story() -> None:
        async with opened(runtime) as linux:
            address = PIN.destination.network_address
            hop = await linux.next_hop(address)
            assert hop is not None
            assert (hop.device, hop.gateway) == ("eth0", ip_address("172.31.1.1"))
            await linux.apply(
                NetworkState(routes=frozenset({Route(PIN.destination, hop.device, hop.gateway)}))
            )
            assert routes(host) == {"203.0.113.5 via 172.31.1.1 dev eth0 onlink"}

    host.play(story)


def test_a_pin_that_went_with_its_link_comes_back(host: Host, runtime: Path) -> None:
    """Without another apply; and an apply at the same time does no harm."""

    async def story() -> None:
        async with tunnel(runtime) as (linux, _):
            changed = asyncio.Event()
            linux.watch(changed.set)
            await linux.apply(state(PIN))
            host.ip("link set eth0 down")
            host.ip("link set eth0 up")
            assert "203.0.113.5 via 192.0.2.1 dev eth0 onlink" not in routes(host)
            await asyncio.wait_for(changed.wait(), 10)
            await until(lambda: "203.0.113.5 via 192.0.2.1 dev eth0 onlink" in routes(host), "the pin")
            assert await linux.apply(state(PIN)) == []

    host.play(story)


LEFT_BEHIND = frozenset({PIN, Route(ip_network("2001:db8:5::5/128"), "eth0", ip_address("2001:db8::1"))})


def wanted_by(instance: str) -> NetworkState:
    """A device that is up, a route through it, and two pins."""
    device = f"dtun-{instance}"
    return NetworkState(
        frozenset({NetDevice(device, 1400)}), routes=LEFT_BEHIND | {into("10.1.0.0/16", device)}
    )


def test_what_a_killed_process_left_is_cleaned_up_by_the_next(host: Host, runtime: Path) -> None:
    victim = start_victim(host, runtime, "demo", wanted_by("demo"))
    kill(victim)
    wait_for(lambda: "dtun-demo" not in host.ip("link"), "the kernel to remove the device")
    pins = {"203.0.113.5 via 192.0.2.1 dev eth0 onlink", "2001:db8:5::5 via 2001:db8::1 dev eth0 onlink"}
    assert routes(host) == pins, "the test needs something to clean up"
    # A route of the same number that is not in the journal, and one in the journal that is another's by now.
    host.ip("route add 203.0.113.6 dev eth0 proto 217")
    host.ip("-6 route del 2001:db8:5::5")
    host.ip("-6 route add 2001:db8:5::5 via 2001:db8::1 dev eth0 proto static")

    async def story() -> None:
        async with opened(runtime) as linux:
            assert routes(host) == {
                "203.0.113.5 via 192.0.2.1 dev eth0 onlink",
                "203.0.113.6 dev eth0 scope link",
            }
            await linux.apply(NetworkState())
            assert routes(host) == {"203.0.113.6 dev eth0 scope link"}
            assert "proto static" in host.ip("-6 route show 2001:db8:5::5")

    host.play(story)
    assert list(runtime.iterdir()) == []


def test_a_leftover_whose_device_is_gone_is_no_obstacle(host: Host, runtime: Path) -> None:
    victim = start_victim(host, runtime, "demo", wanted_by("demo"))
    kill(victim)
    host.ip("link del eth0")

    async def story() -> None:
        async with opened(runtime):
            pass

    host.play(story)
    assert list(runtime.iterdir()) == []


def test_living_instances_do_not_disturb_each_other(host: Host, runtime: Path) -> None:
    start_victim(host, runtime, "one", wanted_by("one"))
    before = routes(host)

    async def story() -> None:
        with pytest.raises(UnavailableError, match="dtun is running already as 'one'"):
            await kernel("one", runtime).open()
        async with opened(runtime, "two"):
            assert routes(host) == before

    host.play(story)
    assert routes(host) == before


def test_the_next_hop_to_an_address(host: Host, runtime: Path) -> None:
    host.ip("link set eth1 mtu 1400")
    host.ip("route add 198.18.0.0/24 via 192.0.2.1 mtu 1300")
    host.ip("route add unreachable 198.18.1.0/24")

    async def story() -> None:
        async with tunnel(runtime) as (linux, _):
            source, source6 = ip_address("192.0.2.2"), ip_address("2001:db8::2")
            direct, server = ip_address("198.51.100.7"), PIN.destination.network_address
            assert await linux.next_hop(server) == NextHop("eth0", GATEWAY, source, 1500)
            own = ip_address("198.51.100.2")  # which the kernel's route for the link prescribes
            assert await linux.next_hop(direct) == NextHop("eth1", None, own, 1400, route_source=own)
            assert await linux.next_hop(ip_address("198.18.0.1")) == NextHop("eth0", GATEWAY, source, 1300)
            assert await linux.next_hop(ip_address("2001:db8::9")) == NextHop("eth0", None, source6, 1500)
            assert await linux.next_hop(ip_address("198.18.1.1")) is None
            assert await linux.next_hop(ip_address("2001:db8:5::5")) is None

    host.play(story)


def test_the_next_hop_to_the_server_ignores_the_tunnel_and_our_pin(host: Host, runtime: Path) -> None:
    async def story() -> None:
        async with tunnel(runtime) as (linux, _):
            await linux.apply(state(PIN, into("0.0.0.0/1"), into("128.0.0.0/1")))
            for address in ("203.0.113.5", "8.8.8.8", "10.86.0.2"):
                hop = await linux.next_hop(ip_address(address))
                assert hop is not None
                assert (hop.device, hop.gateway) == ("eth0", GATEWAY)
            host.ip("route replace default via 198.51.100.1")
            hop = await linux.next_hop(PIN.destination.network_address)
            assert hop is not None
            assert (hop.device, hop.gateway) == ("eth1", ip_address("198.51.100.1"))

    host.play(story)


def test_the_hosts_own_networks_are_those_of_others_devices(host: Host, runtime: Path) -> None:
    host.ip("tuntap add dev vpn0 mode tun")
    host.ip("address add 10.8.0.1/24 dev vpn0")
    start_victim(host, runtime, "other", wanted_by("other"))
    host.ip("address add 10.86.7.1 peer 10.86.7.2 dev dtun-other")

    async def story() -> None:
        async with tunnel(runtime) as (linux, _):
            await linux.apply(state())
            assert await linux.local_networks() == [
                LocalNetwork("eth0", ip_network("192.0.2.0/24")),
                LocalNetwork("eth0", ip_network("2001:db8::/64")),
                LocalNetwork("eth1", ip_network("198.51.100.0/24")),
                LocalNetwork("vpn0", ip_network("10.8.0.0/24")),
            ]

    host.play(story)


def test_links_and_addresses_are_read_once_and_again_after_a_change(host: Host, runtime: Path) -> None:
    async def story() -> None:
        reads = 0
        read = lookup.local_networks

        async def counted(own: Collection[str]) -> list[LocalNetwork]:
            nonlocal reads
            reads += 1
            return await read(own)

        async with tunnel(runtime) as (linux, _):
            with mock.patch.object(lookup, "local_networks", counted):
                await linux.apply(state(into("10.9.0.0/24")))
                before = await linux.local_networks()
                for _ in range(100):
                    reads = 0
                    await asyncio.sleep(0.01)
                    assert await linux.local_networks() == before
                    if not reads:
                        break  # no notification of the beginning is under way any more
                for number in range(20):
                    await linux.apply(state(into(f"10.{number}.0.0/24")))
                    assert await linux.local_networks() == before
                assert reads == 0
                new = LocalNetwork("eth1", ip_network("203.0.113.0/24"))
                for change, has in (("add", True), ("del", False)):
                    host.ip(f"address {change} 203.0.113.9/24 dev eth1")
                    while (new in await linux.local_networks()) != has:  # noqa: ASYNC110 - the kernel's doing
                        await asyncio.sleep(0.01)
                host.ip("link set eth1 name lan7")
                while "lan7" not in {one.device for one in await linux.local_networks()}:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

    host.play(story)


@pytest.mark.parametrize(
    "news",
    [
        "address add 192.0.2.33/24 dev eth0",
        "address del 192.0.2.2/24 dev eth0",
        "address add 2001:db8::33/64 dev eth0",
        "address add 2001:db8::33/64 dev eth0 nodad",
        "route replace default via 192.0.2.9",
        "route del default",
        "route add default via 192.0.2.9 metric 50",
        "-6 route add default via 2001:db8::1",
        "route add 128.0.0.0/1 via 192.0.2.9",
        "link set eth0 down",
    ],
)
def test_the_watch_sees_changes_of_the_host(host: Host, runtime: Path, news: str) -> None:
    async def story() -> None:
        async with opened(runtime) as linux:
            changed = asyncio.Event()
            linux.watch(changed.set)
            host.ip(news)
            await asyncio.wait_for(changed.wait(), 10)

    host.play(story)


def test_the_watch_does_not_see_our_own_work_nor_details(host: Host, runtime: Path) -> None:
    async def story() -> None:
        async with tunnel(runtime) as (linux, tun):
            calls: list[None] = []
            linux.watch(lambda: calls.append(None))
            await linux.apply(state(into("0.0.0.0/1"), into("128.0.0.0/1"), into("::/0"), PIN))
            await linux.apply(state(into("0.0.0.0/1"), mtu=1300))
            # What an `up` hook would do on our device, and what is none of our business.
            host.ip(f"route add 0.0.0.0/0 dev {TUN} metric 9")
            host.ip("route add 198.18.0.0/15 via 192.0.2.1")
            host.ip("link set eth0 mtu 1400")
            host.ip("address change 192.0.2.2/24 dev eth0 valid_lft 1000 preferred_lft 900")
            host.ip("tuntap add dev vpn0 mode tun")
            host.ip("address add 10.8.0.1/24 dev vpn0")
            await linux.apply(NetworkState())
            tun.close()
            # The kernel has queued all notifications by now; the next turn of the event loop reads them.
            await asyncio.sleep(0.1)
            assert calls == []
            host.ip("route add default via 192.0.2.9 metric 77")
            await until(lambda: bool(calls), "the watch")
            assert len(calls) == 1

    host.play(story)


def test_the_watch_survives_an_overflow_and_takes_it_for_a_change(host: Host, runtime: Path) -> None:
    async def story() -> None:
        async with opened(runtime) as linux:
            calls = 0

            def changed() -> None:
                nonlocal calls
                calls += 1
                if calls == 2:
                    # At once, because until it has caught up, the kernel loses more without a word.
                    host.ip("address add 192.0.2.33/24 dev eth0")

            linux.watch(changed)
            host.ip("address add 192.0.2.33/24 dev eth0")
            await until(lambda: calls == 1, "the address")
            # The routes do not matter, but while the event loop stands still, they are too many to be kept: of the
            # address it never hears.
            batch = [f"route add 10.{n >> 8}.{n & 255}.0/24 dev eth0\n" for n in range(5000)]
            host.run("ip", "-batch", "-", text="".join(batch) + "address del 192.0.2.33/24 dev eth0\n")
            await until(lambda: calls >= 2, "the overflow")
            await until(lambda: calls >= 3, "the address that came back after the overflow")

    host.play(story)


def test_a_device_name_that_is_taken_is_said(host: Host, runtime: Path) -> None:
    host.ip("tuntap add dev dtun-idle mode tun")

    async def story() -> None:
        async with tunnel(runtime) as (linux, _):
            for name in (TUN, "eth0", "dtun-idle"):
                with pytest.raises(
                    UnavailableError, match=f"TUN device {name}: a device of that name exists"
                ):
                    linux.create_tun(name)

    host.play(story)


POWERLESS = """
import asyncio, sys
from pathlib import Path
from dtun.errors import PermissionDeniedError
from dtun.platform import kernel

async def main():
    linux = kernel("demo", Path(sys.argv[1]))
    for attempt in (linux.open, lambda: asyncio.to_thread(linux.create_tun, "dtun-demo")):
        try:
            await attempt()
        except PermissionDeniedError as error:
            print(error)

asyncio.run(main())
"""


def test_a_missing_capability_is_said(host: Host, runtime: Path) -> None:
    drop = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]
    process = host.python("-c", POWERLESS, str(runtime), before=drop, stdout=subprocess.PIPE)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    first, second = said.splitlines()
    assert first.startswith("may not change the host's network: CAP_NET_ADMIN is missing; run dtun as root")
    assert second.startswith("cannot create the TUN device dtun-demo: CAP_NET_ADMIN is missing")
    assert not runtime.exists(), "an attempt without the right leaves no trace"


def test_500_routes_and_50_clients_are_quick(
    host: Host, runtime: Path, record_property: Callable[[str, object], None]
) -> None:
    async def story() -> None:
        async with opened(runtime) as linux:
            tuns = [linux.create_tun(f"dtun-{number}") for number in range(50)]
            wanted = NetworkState()
            for number, tun in enumerate(tuns):
                local, peer = ip_address("10.86.0.1"), ip_address(f"10.86.1.{number}")
                wanted |= NetworkState(
                    frozenset({NetDevice(tun.name, 1400)}),
                    frozenset({PointToPoint(tun.name, local, peer)}),
                    frozenset(into(f"10.{number}.{network}.0/24", tun.name) for network in range(10)),
                )
            started = time.perf_counter()
            assert len(await linux.apply(wanted)) == 600
            seconds = time.perf_counter() - started
            record_property("seconds_for_600_changes", seconds)
            assert len(routes(host)) == 500
            assert seconds < 6, "a change takes milliseconds"
            started = time.perf_counter()
            assert await linux.apply(wanted) == []
            assert time.perf_counter() - started < 0.5
            for tun in tuns:
                tun.close()
            await linux.apply(NetworkState())

    host.play(story)


def test_calls_at_the_same_time_wait_for_each_other(host: Host, runtime: Path) -> None:
    async def story() -> None:
        async with tunnel(runtime) as (linux, _):
            wanted = [state(*(into(f"10.{m}.0.0/16") for m in range(n))) for n in range(1, 30)]
            await asyncio.gather(*(linux.apply(one) for one in wanted))
            assert len(routes(host)) == 29

    host.play(story)


def test_an_apply_that_was_cut_short_is_completed_by_the_next(host: Host, runtime: Path) -> None:
    async def story() -> None:
        async with tunnel(runtime) as (linux, _):
            wanted = state(*(into(f"10.{n}.0.0/16") for n in range(100)))
            # Cancelled at each of its first awaits in turn: also between a request and its answer.
            for turns in range(40):
                attempt = asyncio.create_task(linux.apply(wanted))
                for _ in range(turns):
                    await asyncio.sleep(0)
                attempt.cancel()
                await asyncio.wait([attempt])
            await linux.apply(wanted)
            assert len(routes(host)) == 100

    host.play(story)


def test_a_pin_is_in_the_journal_before_it_is_in_the_kernel(
    host: Host, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install = RouteBatches.send
    seen: list[str] = []

    def look_and_install(self: RouteBatches, action: Action, routes: Sequence[Route]) -> list[int]:
        seen.append((runtime / "demo.json").read_text() if action == "add" else "")
        return install(self, action, routes)

    monkeypatch.setattr(RouteBatches, "send", look_and_install)

    async def story() -> None:
        async with opened(runtime) as linux:
            await linux.apply(NetworkState(routes=frozenset({PIN})))

    host.play(story)
    assert len(seen) == 2
    assert "203.0.113.5/32" in seen[0]


def test_closing_twice_is_closing_once_and_lets_go_of_every_descriptor(host: Host, runtime: Path) -> None:
    async def story() -> None:
        before = descriptors()
        async with tunnel(runtime) as (linux, tun):
            await linux.apply(state(PIN))
            await linux.close()
            tun.close()
            assert descriptors() == before

    host.play(story)


def test_a_refused_start_can_be_tried_again(host: Host, runtime: Path) -> None:
    runtime.mkdir()
    (runtime / "demo.json").write_text('{"version": 99}\n')

    async def story() -> None:
        linux = kernel("demo", runtime)
        with pytest.raises(UnavailableError, match=r"demo\.json was written by a later version"):
            await linux.open()
        (runtime / "demo.json").unlink()
        await linux.open()
        await linux.close()

    host.play(story)
