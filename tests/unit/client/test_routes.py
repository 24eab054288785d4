"""What a client has in the kernel: before, during and after a session, and when the host or the file changes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path

import pytest

from dtun.config import Config
from dtun.errors import ConfigError, UnavailableError
from dtun.network.difference import Change, difference
from dtun.network.plan import BLOCK_METRIC
from dtun.network.state import Dns, DropOtherTrafficToServer, NetworkState, PointToPoint, Route, Rule, Sysctl
from dtun.platform.interface import LocalNetwork, NextHop
from dtun.session.config_change import AGAIN
from tests.unit.sites import Home, Site, in_service, settled, started, wait_for

TUN = "dtun0"
FIRST_HALF = ip_network("0.0.0.0/1")
BLOCKED = Route(FIRST_HALF, metric=BLOCK_METRIC, kind="unreachable")
INTO = Route(FIRST_HALF, TUN)
LOOPBACK = ip_network("127.0.0.1/32")


@asynccontextmanager
async def connected(site: Site, directory: Path, **settings: object) -> AsyncIterator[Home]:
    async with started(Home(site, directory, None, **settings)) as home:
        await in_service(home)
        await settled()
        yield home


async def lose(site: Site, home: Home) -> None:
    """The server goes away and says so."""
    await site.server.stop()
    await wait_for(lambda: home.link() is None, "the goodbye")
    await settled()


def routes(home: Home) -> frozenset[Route]:
    return home.kernel.state.routes


async def test_the_kill_switch_is_there_before_the_first_session(site: Site, tmp_path: Path) -> None:
    home = Home(site, tmp_path, routes="everything", on_disconnect="block")
    await home.client.start()
    assert BLOCKED in routes(home)
    assert INTO not in routes(home)
    await home.client.stop()
    assert routes(home) == frozenset()


async def test_and_stays_below_the_tunnel_and_after_it(site: Site, tmp_path: Path) -> None:
    async with connected(site, tmp_path, routes="everything", on_disconnect="block") as home:
        assert {BLOCKED, INTO} <= routes(home)
        assert DropOtherTrafficToServer(IPv4Address("127.0.0.1"), site.port) in home.kernel.state.filters
        await lose(site, home)
        assert BLOCKED in routes(home)


async def test_by_default_routes_stay_while_the_server_is_away(site: Site, tmp_path: Path) -> None:
    async with connected(site, tmp_path, routes="everything") as home:
        await lose(site, home)
        assert INTO in routes(home)
        assert BLOCKED not in routes(home)


async def test_they_are_released_if_that_is_wanted(site: Site, tmp_path: Path) -> None:
    settings = {"routes": "everything", "on_disconnect": "release", "dns": ["192.0.2.53"]}
    async with connected(site, tmp_path, **settings) as home:
        assert INTO in routes(home)
        assert home.kernel.state.dns
        await lose(site, home)
        assert routes(home) == frozenset()
        assert home.kernel.state.dns == frozenset()


async def test_what_goes_around_follows_the_host(site: Site, tmp_path: Path) -> None:
    def way(device: str, gateway: str) -> NextHop:
        return NextHop(device, IPv4Address(gateway), None, 1500)

    bypass = ip_network("203.0.113.0/24")
    home = Home(site, tmp_path, routes="everything", bypass=[str(bypass)])
    home.kernel.gateways[4] = way("eth0", "192.168.1.1")
    async with started(home):
        await in_service(home)
        old = Route(bypass, "eth0", IPv4Address("192.168.1.1"))
        await wait_for(lambda: old in routes(home), "the way around")
        home.kernel.gateways[4] = home.kernel.hop = way("wlan0", "10.1.1.1")
        home.kernel.changed()
        new = {
            Route(bypass, "wlan0", IPv4Address("10.1.1.1")),
            Route(LOOPBACK, "wlan0", IPv4Address("10.1.1.1")),
        }
        await wait_for(lambda: new <= routes(home), "the new way around")
        assert old not in routes(home)


async def test_policy_routing_marks_the_tunnels_own_packets(site: Site, tmp_path: Path) -> None:
    async with connected(site, tmp_path, routes="everything", routing="policy", table=77, mark=5) as home:
        assert Rule(4, 7217, 77, unless_mark=5) in home.kernel.state.rules
        assert all(route.table == 77 for route in routes(home))


async def test_forwarding(site: Site, tmp_path: Path) -> None:
    async with connected(site, tmp_path, forwarding=True) as home:
        assert home.kernel.state.sysctls == {Sysctl("net.ipv4.ip_forward", "1")}


async def test_a_router_keeps_taking_router_advertisements(tmp_path: Path) -> None:
    async with with_pool6(tmp_path) as site:
        home = Home(site, tmp_path, forwarding=True)
        home.kernel.advertised = ["eth0", "wlan0"]
        async with started(home):
            await in_service(home)
            await settled()
            wanted = [change.what for change in difference(home.kernel.state, NetworkState())]
    names = [thing.name for thing in wanted if isinstance(thing, Sysctl)]
    assert names == [
        "net.ipv6.conf.eth0.accept_ra",
        "net.ipv6.conf.wlan0.accept_ra",
        "net.ipv4.ip_forward",
        "net.ipv6.conf.all.forwarding",
    ], "before the host forwards"


@pytest.mark.parametrize(
    ("accepted", "taken"),
    [
        ("none", set()),
        ("all", {"198.18.0.0/15", "198.51.100.0/24"}),
        (["198.51.100.0/23"], {"198.51.100.0/24"}),
    ],
)
async def test_pushed_routes_come_in_as_far_as_they_are_accepted(
    tmp_path: Path, accepted: object, taken: set[str]
) -> None:
    site = Site(tmp_path, push_routes=["198.18.0.0/15", "198.51.100.0/24"])
    await site.server.start()
    async with connected(site, tmp_path, routes=[], accept_routes=accepted) as home:
        assert {str(route.destination) for route in routes(home) if route.device == TUN} == taken
    await site.server.stop()


@pytest.mark.parametrize("accepts", [True, False])
async def test_pushed_name_servers(tmp_path: Path, accepts: bool) -> None:
    site = Site(tmp_path, push_dns=["10.86.0.1"], push_domains=["~example.org"])
    await site.server.start()
    async with connected(site, tmp_path, accept_dns=accepts) as home:
        dns = Dns(TUN, (IPv4Address("10.86.0.1"),), ("~example.org",))
        assert home.kernel.state.dns == ({dns} if accepts else frozenset())
    await site.server.stop()


async def test_what_the_kernel_refuses_is_told_once_and_in_the_status(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home = Home(site, tmp_path)
    wanted = Route(ip_network("192.0.2.0/24"), TUN)
    home.kernel.refuses[wanted] = "it is routed through wg0 already"
    async with started(home):
        await in_service(home)
        await settled()
        home.kernel.changed()
        assert home.row()["warnings"] == [
            "route 192.0.2.0/24 dev dtun0 is not in place: it is routed through wg0 already"
        ]
        assert caplog.text.count("it is routed through wg0 already") == 1


def changed(home: Home, **settings: object) -> Config:
    return Config(None, home.config(**settings), None)


async def test_what_a_reload_could_not_apply_the_next_one_does(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(Home(site, tmp_path)) as home:
        link = await in_service(home)
        await settled()
        wanted = changed(home, routes=["198.18.0.0/15"], subnets=["10.0.5.0/24"])
        with monkeypatch.context() as patch:

            async def fail(_: NetworkState) -> list[Change]:
                raise UnavailableError("the disk is full")

            patch.setattr(home.kernel, "apply", fail)
            with pytest.raises(UnavailableError):
                await home.client.reload(wanted, dry_run=False)
            await settled()
        assert await home.client.reload(wanted, dry_run=False) == [AGAIN]
        assert await home.client.reload(wanted, dry_run=False) == []
        assert ip_network("198.18.0.0/15") in {route.destination for route in home.kernel.state.routes}
        await in_service(home, other_than=link)
        assert home.row()["subnets"] == ["10.0.5.0/24"]


async def test_a_reload_changes_routes_without_a_new_session(site: Site, tmp_path: Path) -> None:
    async with connected(site, tmp_path) as home:
        link = home.link()
        lines = await home.client.reload(changed(home, routes=["198.18.0.0/15"], rekey=120), dry_run=False)
        assert set(lines) == {
            "routes: 198.18.0.0/15 instead of 192.0.2.0/24 (at once)",
            "rekey: 120 instead of 3600 (at once)",
        }
        assert {route.destination for route in routes(home)} == {ip_network("198.18.0.0/15")}
        assert home.link() is link


async def test_a_dry_run_changes_nothing(site: Site, tmp_path: Path) -> None:
    async with connected(site, tmp_path) as home:
        before = home.kernel.state
        lines = await home.client.reload(changed(home, routes=[], subnets=[]), dry_run=True)
        assert set(lines) == {
            "subnets: none instead of 10.0.0.0/16 (reconnects)",
            "routes: none instead of 192.0.2.0/24 (at once)",
        }
        assert home.kernel.state == before


async def test_what_the_server_has_to_know_comes_with_a_new_session(site: Site, tmp_path: Path) -> None:
    async with connected(site, tmp_path) as home:
        link = home.link()
        await home.client.reload(changed(home, subnets=["10.0.5.0/24"]), dry_run=False)
        await in_service(home, other_than=link)
        subnet = {ip_network("10.0.5.0/24")}
        await wait_for(
            lambda: {route.destination for route in site.routes()} == subnet,
            "the server to route the new subnet",
        )


async def test_what_cannot_change_is_kept_and_said(site: Site, tmp_path: Path) -> None:
    async with connected(site, tmp_path) as home:
        (line,) = await home.client.reload(changed(home, tun="other0"), dry_run=False)
        assert line == "tun: other0 instead of dtun0 (needs a restart, kept as it was)"
        assert home.row()["device"] == TUN


async def test_a_servers_file_is_no_file_for_a_client(site: Site, tmp_path: Path) -> None:
    async with connected(site, tmp_path) as home:
        with pytest.raises(ConfigError, match="this is a client"):
            await home.client.reload(Config(site.config, None, None), dry_run=False)


async def test_after_a_sleep_a_new_session_is_made_at_once(site: Site, tmp_path: Path) -> None:
    async with connected(site, tmp_path) as home:
        link = home.link()
        assert home.kernel.woke is not None
        home.kernel.woke(3600.0)
        await in_service(home, other_than=link)


async def test_a_tunnel_in_a_network_of_the_hosts_own_is_worth_a_warning(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home = Home(site, tmp_path)
    home.kernel.networks = [LocalNetwork("eth0", ip_network("10.86.0.0/24"))]
    async with started(home):
        await in_service(home)
        warnings = [warning for warning in home.row()["warnings"] if "10.86.0" in warning]
        assert [warning.partition(":")[0] for warning in warnings] == [
            f"the tunnel's address {address} lies in this host's own network 10.86.0.0/24 (eth0)"
            for address in ("10.86.0.2", "10.86.0.1")
        ]
        await home.client._tunnel.refresh()
        assert caplog.text.count("lies in this host's own network") == 2


IPV6_OFF = "IPv6 is disabled on this host (sysctl net.ipv6.conf.all.disable_ipv6)"
BLOCKED6 = Route(ip_network("::/1"), metric=BLOCK_METRIC, kind="unreachable")
PAIR6 = PointToPoint(TUN, IPv6Address("fd00:86::2"), IPv6Address("fd00:86::1"))


@asynccontextmanager
async def with_pool6(directory: Path) -> AsyncIterator[Site]:
    site = Site(directory, pool6="fd00:86::/64")
    await site.server.start()
    yield site
    await site.server.stop()


async def test_a_host_without_ipv6_goes_on_with_ipv4(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    warning = f"the tunnel is without IPv6: {IPV6_OFF}; if that is intended, set `ipv6: off`"
    async with with_pool6(tmp_path) as site:
        home = Home(site, tmp_path, routes="everything")
        home.kernel.refuses[PAIR6] = IPV6_OFF
        async with started(home):
            await in_service(home)
            await settled()
            assert {INTO, BLOCKED6} <= routes(home), "as if the server had no IPv6"
            assert home.row()["warnings"] == [warning]
            home.kernel.changed()
            await wait_for(lambda: home.kernel.applied > 3, "another attempt")
            await settled()
            assert {INTO, BLOCKED6} <= routes(home)
            assert caplog.messages.count(warning) == 1
            del home.kernel.refuses[PAIR6]
            home.kernel.changed()
            await wait_for(lambda: PAIR6 in home.kernel.state.addresses, "IPv6 as soon as it is there")
            await wait_for(lambda: Route(ip_network("::/1"), TUN) in routes(home), "its routes")
            assert home.row()["warnings"] == []


async def test_nothing_is_unblocked_for_another_attempt(tmp_path: Path) -> None:
    async with with_pool6(tmp_path) as site:
        home = Home(site, tmp_path, routes="everything")
        home.kernel.refuses[PAIR6] = IPV6_OFF
        async with started(home):
            await in_service(home)
            await settled()
            seen = []
            apply = home.kernel.apply

            async def watched(desired: NetworkState) -> list[Change]:
                seen.append(BLOCKED6 in desired.routes)
                return await apply(desired)

            home.kernel.apply = watched  # type: ignore[method-assign]
            home.kernel.changed()
            await wait_for(lambda: seen != [], "another attempt")
            await settled()
            assert all(seen)


async def test_ipv6_off(tmp_path: Path) -> None:
    async with (
        with_pool6(tmp_path) as site,
        connected(site, tmp_path, routes="everything", ipv6="off") as home,
    ):
        assert {address.local.version for address in home.kernel.state.addresses} == {4}
        assert {INTO, BLOCKED6} <= routes(home)
        assert home.row()["warnings"] == []


async def test_a_server_without_ipv6_offers_none(tmp_path: Path) -> None:
    site = Site(tmp_path, pool6="fd00:86::/64")
    (there,) = (PointToPoint("dtun-demo", PAIR6.peer, PAIR6.local),)
    site.kernel.refuses[there] = IPV6_OFF
    await site.server.start()
    async with connected(site, tmp_path) as home:
        assert {address.local.version for address in home.kernel.state.addresses} == {4}
        assert any(IPV6_OFF in line for line in site.row()["warnings"])
    await site.server.stop()


async def test_many_refusals_are_one_line(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bypassed = [f"203.0.{n}.0/24" for n in range(0, 200, 2)]
    home = Home(site, tmp_path, routes="everything", bypass=bypassed, on_disconnect="block")
    home.kernel.gateways[4] = NextHop("eth0", IPv4Address("192.168.1.1"), None, 1500)
    for network in bypassed:
        route = Route(ip_network(network), "eth0", IPv4Address("192.168.1.1"))
        home.kernel.refuses[route] = "the device is down"
    async with started(home):
        await in_service(home)
        await settled()
        (line,) = home.row()["warnings"]
        assert line.endswith("via 192.168.1.1 dev eth0 is not in place: the device is down (and 99 more)")
        assert len([message for message in caplog.messages if "is down" in message]) == 1


async def test_connections_that_change_their_way_are_forgotten_at_both_changes(
    site: Site, tmp_path: Path
) -> None:
    """Else they would keep the addresses that NAT gave them on the former one."""
    async with connected(site, tmp_path, on_disconnect="release", exclude="192.0.2.128/25") as home:
        ((networks, but),) = home.kernel.forgotten
        assert networks == {ip_network("192.0.2.0/24")}
        assert {ip_network("192.0.2.128/25"), LOOPBACK} <= but
        await home.client._tunnel.refresh()
        assert len(home.kernel.forgotten) == 1, "nothing has changed"
        await lose(site, home)
        assert [each for each, _ in home.kernel.forgotten] == [networks, networks]
