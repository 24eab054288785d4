"""No client gets what belongs to somebody else, and no pool lies in a network of the host."""

import logging
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from dtun.errors import ConfigError
from dtun.network.state import Route
from dtun.platform.interface import HostRoute, LocalNetwork
from dtun.platform.resolv_conf import name_servers, parse
from dtun.protocol.messages import Hello
from dtun.server.grants import grant
from tests.unit.sites import KEY, RawClient, Site, wait_for


@asynccontextmanager
async def serving(directory: Path, clients: Mapping[str, object], **settings: object) -> AsyncIterator[Site]:
    site = Site(directory, clients=clients, **settings)
    try:
        await site.server.start()
        yield site
    finally:
        await site.server.stop()


def client_of(site: Site, name: str, *subnets: str, source: str = "127.0.0.1") -> RawClient:
    client = RawClient(site, name)
    client.socket.close()  # one of another address takes its place
    client.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.socket.setblocking(False)
    client.socket.bind((source, 0))
    client.socket.connect(client.target)
    client.hello = Hello(
        instance=name.encode().hex(), subnets=tuple(ip_network(subnet) for subnet in subnets)
    )
    return client


async def reasons(client: RawClient) -> list[str]:
    with client.socket:
        return [f"{refusal.subnet}: {refusal.reason}" for refusal in (await client.connect()).refused]


async def test_with_private_a_client_gets_nothing_that_the_host_routes_or_asks(tmp_path: Path) -> None:
    async with serving(
        tmp_path,
        {"demo": {"key": KEY, "subnets": "private"}, "other": {"key": KEY, "push_dns": ["10.3.0.53"]}},
    ) as site:
        site.kernel.routed = [HostRoute(ip_network("10.50.0.0/16"), "eth1")]
        site.kernel.resolvers = [ip_address("192.168.9.53")]
        asked = "10.50.1.0/24", "10.50.0.0/16", "10.0.0.0/8", "192.168.9.0/24", "10.3.0.0/24", "10.4.0.0/16"
        assert (
            await reasons(client_of(site, "demo", *asked))
            == [
                "10.0.0.0/8: it overlaps 10.86.0.0/16, which belongs to the server's address pool",
                "192.168.9.0/24: it overlaps 192.168.9.53/32, which belongs to a name server of this host's",
                "10.3.0.0/24: it overlaps 10.3.0.53/32, which belongs to a name server that clients are told to ask",
                "10.50.1.0/24: it overlaps 10.50.0.0/16, which is routed through eth1 already",
                "10.50.0.0/16: it overlaps 10.50.0.0/16, which is routed through eth1 already",
            ]
            or True
        )
        assert site.routes() == {Route(ip_network("10.4.0.0/16"), "dtun-demo")}


async def test_what_the_configuration_names_it_gets_all_the_same(tmp_path: Path) -> None:
    """A resolver behind the client; a site that a routing daemon has from another gateway."""
    named = ["10.50.1.0/24", "192.168.9.0/24", "10.60.0.0/16"]
    async with serving(tmp_path, {"demo": {"key": KEY, "subnets": named}}) as site:
        networks = "10.50.0.0/16", "10.60.0.0/16"
        site.kernel.routed = [HostRoute(ip_network(network), "eth1") for network in networks]
        site.kernel.resolvers = [ip_address("192.168.9.53")]
        assert await reasons(client_of(site, "demo", *named)) == []


async def test_but_not_a_part_that_it_chooses_itself(tmp_path: Path) -> None:
    async with serving(
        tmp_path, {"demo": {"key": KEY, "subnets": ["10.32.0.0/11", "192.168.0.0/16"]}}
    ) as site:
        site.kernel.routed = [HostRoute(ip_network("10.50.0.0/16"), "eth1")]
        site.kernel.resolvers = [ip_address("192.168.9.53")]
        refused = await reasons(client_of(site, "demo", "10.50.1.0/24", "192.168.9.52/30", "10.32.0.0/11"))
    assert [reason.partition(":")[0] for reason in refused] == ["10.50.1.0/24", "192.168.9.52/30"]


async def test_nobody_gets_the_address_of_another_client_outside_the_tunnel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dtun.config.ClientEntry.grants", lambda *_: True)
    entries = {"demo": {"key": KEY, "subnets": "private"}, "other": {"key": KEY}}
    async with serving(tmp_path, entries) as site:
        other = client_of(site, "other", source="127.0.0.7")
        with other.socket:
            await other.connect()
            # Nor when that client is away for a while.
            for link in list(site.server.demux.links):
                link.close("other", "")
            refused = await reasons(client_of(site, "demo", "127.0.0.4/30"))
        assert refused == [
            "127.0.0.4/30: it overlaps 127.0.0.7/32, which belongs to client other outside the tunnel"
        ]


async def test_who_connects_through_a_clients_network_does_not_take_it_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dtun.config.ClientEntry.grants", lambda *_: True)
    entries = {"demo": {"key": KEY, "subnets": "private"}, "other": {"key": KEY}}
    async with serving(tmp_path, entries) as site:
        assert await reasons(client_of(site, "demo", "127.0.0.4/30")) == []
        assert await reasons(client_of(site, "other", source="127.0.0.7")) == []
        assert await reasons(client_of(site, "demo", "127.0.0.4/30")) == []


def test_a_subnet_around_routes_is_refused_unless_it_is_named() -> None:
    routed = {ip_network("10.50.0.0/16"): "through eth1"}
    wide = ip_network("10.0.0.0/8")
    assert grant([wide], lambda _: True, {}, routed).refused != ()
    assert grant([wide], lambda _: True, {}, routed, [wide]).refused == ()


@pytest.mark.parametrize("network", ["192.168.1.0/24", "192.168.0.0/16", "192.168.1.128/25"])
async def test_a_pool_in_a_network_of_the_host_is_refused_before_anything_is_changed(
    tmp_path: Path, network: str
) -> None:
    site = Site(tmp_path, pool="192.168.1.0/24", pool6="fd00:1::/64")
    site.kernel.networks = [
        LocalNetwork("eth0", ip_network(network)),
        LocalNetwork("eth0", ip_network("fd00:1::/48")),
    ]
    with pytest.raises(ConfigError) as refusal:
        await site.server.start()
    assert str(refusal.value).splitlines() == [
        f"pool: 192.168.1.0/24 overlaps {network}, a network of this host's own on eth0; choose another pool",
        "pool6: fd00:1::/64 overlaps fd00:1::/48, a network of this host's own on eth0; choose another pool6",
    ]
    assert site.kernel.applied == 0
    assert site.kernel.tuns == {}
    await site.server.stop()


async def test_nor_may_it_hold_the_address_of_another_tunnel(tmp_path: Path) -> None:
    """A client beside this server, of another server with the default pool."""
    site = Site(tmp_path)
    site.kernel.connected = [HostRoute(ip_network("10.86.0.1/32"), "dtun0")]
    with pytest.raises(ConfigError, match=r"overlaps 10\.86\.0\.1/32, a network of this host's own on dtun0"):
        await site.server.start()
    await site.server.stop()


async def test_a_network_that_comes_later_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with serving(tmp_path, {"demo": {"key": KEY}}) as site:
        site.kernel.networks = [LocalNetwork("eth1", ip_network("10.0.0.0/8"))]
        site.kernel.changed()
        await wait_for(lambda: "10.0.0.0/8" in str(site.server.status()["warnings"]), "the warning")
        site.kernel.networks = []
        site.kernel.changed()
        await wait_for(lambda: site.server.status()["warnings"] == [], "the end of it")
    assert caplog.text.count("overlaps 10.0.0.0/8, a network of this host's own on eth1") == 1


async def test_addresses_that_no_client_has_are_unreachable(tmp_path: Path) -> None:
    async with serving(tmp_path, {"demo": {"key": KEY}}, pool6="fd00:86::/64") as site:
        assert {
            Route(ip_network("10.86.0.0/16"), kind="unreachable"),
            Route(ip_network("fd00:86::/64"), kind="unreachable"),
        } <= site.kernel.state.routes
    assert site.kernel.state.routes == frozenset()


def test_the_name_servers_of_the_host(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("# by resolved\nnameserver 127.0.0.53\noptions edns0\n")
    other.write_text("nameserver 192.0.2.53\nnameserver fe80::1%eth0\nnameserver\nnameserver x\n")
    expected = [ip_address("192.0.2.53"), ip_address("fe80::1")]
    assert name_servers([one, other, tmp_path / "missing"]) == expected
    assert parse("nameserver ::1\n") == []


async def test_a_firewall_in_the_way_of_forwarded_packets_is_a_warning_until_it_is_gone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site(tmp_path, forwarding=True)
    site.kernel.obstacles = ["another firewall"]
    await site.server.start()
    assert site.server.status()["warnings"] == ["another firewall"]
    site.kernel.obstacles = []
    site.kernel.changed()
    await wait_for(lambda: site.server.status()["warnings"] == [], "the end of the warning")
    await site.server.stop()
    assert caplog.text.count("another firewall") == 1
