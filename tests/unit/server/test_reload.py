"""A server gets another configuration while its clients are there."""

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from dtun.config import Config
from dtun.dtls.engine import ClientEngine
from dtun.dtls.suites import by_name
from dtun.errors import ConfigError, UnavailableError
from dtun.network.difference import Change
from dtun.network.state import ClampMss, Masquerade, NetworkState, Route, Sysctl
from dtun.platform.interface import NextHop
from dtun.protocol.messages import Hello, Renew
from dtun.server import reload
from dtun.session.config_change import AGAIN
from dtun.session.session import PathMtuChanged, Received
from tests.unit.fakes import FakeKernel
from tests.unit.sites import KEY, LAN, RawClient, Site, closed_text, packet, sees_packet, wait_for

NEXT = "ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8="
NEXT_SECRET = bytes(range(32, 64))
DEMO: dict[str, Any] = {"key": KEY, "subnets": [str(LAN)]}
OTHER: dict[str, Any] = {"key": NEXT, "subnets": ["10.7.0.0/16"]}


class Reloading:
    """A site whose settings can be changed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.settings: dict[str, Any] = {"clients": {"demo": DEMO, "other": OTHER}}
        self.site = Site(directory, **self.settings)

    async def reload(self, *, dry_run: bool = False, **changes: Any) -> list[str]:
        self.settings |= {"listen": f"127.0.0.1:{self.site.port}", **changes}
        made = Site(self.directory, **self.settings).config
        return await self.site.server.reload(Config(made, None, None), dry_run=dry_run)

    async def client(self, name: str, **changes: Any) -> list[str]:
        """Reload with another entry of this client."""
        clients = self.settings["clients"]
        return await self.reload(clients=clients | {name: clients[name] | changes})

    def warnings(self) -> list[str]:
        found = self.site.server.status()["warnings"]
        assert isinstance(found, list)
        return found


@pytest.fixture
async def reloading(tmp_path: Path) -> AsyncIterator[Reloading]:
    made = Reloading(tmp_path)
    await made.site.server.start()
    yield made
    await made.site.server.stop()
    assert made.site.kernel.state.devices == frozenset()
    assert all(tun.closed for tun in made.site.kernel.tuns.values())


Make = Callable[..., RawClient]


@pytest.fixture
async def make(reloading: Reloading) -> AsyncIterator[Make]:
    made: list[RawClient] = []

    def make(name: str = "demo", key: bytes | None = None) -> RawClient:
        client = RawClient(reloading.site, name)
        made.append(client)
        if key is not None:
            client.session.association = ClientEngine(name, key, native=True).associate(0)
        return client

    yield make
    for client in made:
        client.socket.close()


def heard(client: RawClient) -> list[type]:
    return [type(event.message) for event in client.events if isinstance(event, Received)]


async def asked_to_renew(client: RawClient) -> None:
    await client.until(lambda: Renew in heard(client), "the request for a new session")


async def test_a_client_that_is_not_concerned_is_not_disturbed(reloading: Reloading, make: Make) -> None:
    client = make()
    await client.connect()
    applied, tun = reloading.site.kernel.applied, reloading.site.tun()
    for keepalive in range(5, 10):
        await reloading.reload(keepalive=keepalive, clients={"demo": DEMO, f"new{keepalive}": {"key": KEY}})
        await sees_packet(reloading.site, client, packet("10.0.0.1", number=keepalive))
    assert reloading.site.tun() is tun
    assert heard(client).count(Renew) == 0
    assert reloading.site.kernel.applied > applied, "other devices came and went meanwhile"
    assert await reloading.reload() == []
    assert "dtun-new9" in reloading.site.kernel.tuns


async def test_a_dry_run_changes_nothing(reloading: Reloading) -> None:
    said = await reloading.reload(dry_run=True, clients={"demo": DEMO})
    assert said == ["client other: is removed and its session ends (reconnects)"]
    assert not reloading.site.tun("dtun-other").closed
    assert await reloading.reload() == said


async def test_a_removed_client_is_disconnected_and_its_device_removed(
    reloading: Reloading, make: Make
) -> None:
    client = make()
    await client.connect()
    await reloading.reload(clients={"other": OTHER})
    assert await closed_text(client) == "the server's configuration does not have this id any more"
    assert client.closed is not None
    assert client.closed.reason == "refused"
    assert reloading.site.tun().closed
    assert reloading.site.routes() == frozenset()
    assert {link.name for link in reloading.site.kernel.state.devices} == {"dtun-other"}
    assert reloading.site.hooks.ran[-1].startswith("/down demo")
    again = make()
    await again.until(lambda: again.closed is not None, "the refusal")
    assert reloading.site.server.identities.leases.current("demo") is None


async def test_a_slow_hook_of_a_removed_client_delays_no_other(reloading: Reloading, make: Make) -> None:
    await make().connect()
    await wait_for(lambda: len(reloading.site.hooks.ran) == 1, "the up hook")
    gate = reloading.site.hooks.gate = asyncio.Event()
    going = asyncio.create_task(reloading.reload(clients={"other": OTHER}))
    await wait_for(lambda: len(reloading.site.hooks.ran) == 2, "the down hook to begin")
    await make("other", NEXT_SECRET).connect()
    assert not going.done()
    gate.set()
    await going


async def test_a_client_whose_key_is_changed_renews_or_is_disconnected(
    reloading: Reloading, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "RENEWAL_TIME", 0.3)
    client = make()
    await client.connect()
    await reloading.client("demo", key=NEXT.replace("I", "J"))
    await asked_to_renew(client)
    assert reloading.site.row()["key"] == "former"
    assert reloading.site.server.status()["old_key_in_use"] == ["demo"]
    await sees_packet(reloading.site, client, packet("10.0.0.1"))
    assert await closed_text(client) == "its key is not valid any more"
    again = make()
    await again.until(lambda: again.closed is not None, "the refusal")
    assert reloading.site.row()["state"] == "away"


async def test_a_client_that_has_renewed_with_its_new_key_stays(
    reloading: Reloading, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "RENEWAL_TIME", 0.2)
    await make().connect()
    await reloading.client("demo", key=NEXT)
    ended = asyncio.get_running_loop().time() + 0.3
    client = make(key=NEXT_SECRET)
    await client.connect()
    await wait_for(lambda: asyncio.get_running_loop().time() > ended, "the end of the patience")
    await sees_packet(reloading.site, client, packet("10.0.0.1"))
    assert reloading.site.row()["key"] == "present"


async def test_a_key_is_changed_over_without_a_break(
    reloading: Reloading, make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "next"
    path.touch(0o600)
    path.write_text(NEXT)
    old = make()
    await old.connect()
    await reloading.client("demo", next_key_file=str(path))
    assert Renew not in heard(old)
    assert reloading.site.server.status()["old_key_in_use"] == ["demo"]

    first, second = make(key=NEXT_SECRET), make(key=NEXT_SECRET)
    await first.until(lambda: first.closed is not None, "the try with the old key")
    await second.connect()
    assert "failed" not in caplog.text, "this is expected, so nothing to warn of"
    assert reloading.site.row()["key"] == "next"
    assert reloading.site.server.status()["old_key_in_use"] == []

    clients = {"demo": DEMO | {"key": NEXT}, "other": OTHER | {"key": KEY}}
    await reloading.reload(clients=clients)
    assert reloading.site.row()["key"] == "present"
    await sees_packet(reloading.site, second, packet("10.0.0.1"))
    assert Renew not in heard(second)


def forbid_shared_addresses(kernel: FakeKernel) -> None:
    """Fail if two devices are to have the same address, even for a moment."""
    apply = kernel.apply

    async def watched(desired: NetworkState) -> list[Change]:
        peers = [pair.peer for pair in desired.addresses]
        assert len(peers) == len(set(peers)), peers
        return await apply(desired)

    kernel.apply = watched  # type: ignore[method-assign]


async def test_two_clients_change_their_addresses_with_each_other(reloading: Reloading, make: Make) -> None:
    fixed = {"demo": DEMO | {"address": "10.86.0.8"}, "other": OTHER | {"address": "10.86.0.9"}}
    await reloading.reload(clients=fixed)
    clients = [make(), make("other", NEXT_SECRET)]
    for client in clients:
        await client.connect()
    forbid_shared_addresses(reloading.site.kernel)
    swapped = {"demo": DEMO | {"address": "10.86.0.9"}, "other": OTHER | {"address": "10.86.0.8"}}
    said = await reloading.reload(clients=swapped)
    assert not any(line.startswith("error: ") for line in said)
    for client in clients:
        assert await closed_text(client) == "its address in the tunnel has changed; reconnect"
    assert not reloading.site.tun().closed, "the device stays"
    again = make()
    assert (await again.connect()).address == IPv4Address("10.86.0.9")
    pairs = {(pair.device, str(pair.peer)) for pair in reloading.site.kernel.state.addresses}
    assert pairs == {("dtun-demo", "10.86.0.9"), ("dtun-other", "10.86.0.8")}
    await sees_packet(reloading.site, again, packet("10.86.0.9"))


async def test_an_address_that_becomes_fixed_for_one_client_is_taken_from_another(
    reloading: Reloading, make: Make
) -> None:
    client = make()
    address = (await client.connect()).address
    await reloading.client("other", address=str(address))
    await closed_text(client)
    assert (await make().connect()).address != address
    assert (await make("other", NEXT_SECRET).connect()).address == address


async def test_subnets_go_from_one_client_to_another_at_once(reloading: Reloading, make: Make) -> None:
    moved = IPv4Network("10.0.7.0/24")
    first, second = make("other", NEXT_SECRET), make()
    for client in (first, second):
        client.hello = Hello(instance="0a", subnets=(moved,))
    assert (await first.connect()).refused != ()
    assert (await second.connect()).refused == ()
    assert reloading.site.routes() == {Route(moved, "dtun-demo")}
    await reloading.reload(
        clients={"demo": DEMO | {"subnets": []}, "other": OTHER | {"subnets": [str(moved)]}}
    )
    assert reloading.site.routes() == {Route(moved, "dtun-other")}
    first.send(packet("10.0.7.1"))
    host = reloading.site.tun("dtun-other").host
    await wait_for(lambda: _received(host) == packet("10.0.7.1"), "the packet by the new way")
    second.send(packet("10.0.7.1"))
    drops = reloading.site.server.identities.by_name["demo"].counters.drops
    await wait_for(lambda: drops["source not allowed"] == 1, "the drop by the old way")


def _received(host: socket.socket) -> bytes:
    with suppress(BlockingIOError):
        return host.recv(65535)
    return b""


async def test_what_is_pushed_comes_with_the_welcome_and_anew_when_it_changes(
    reloading: Reloading, make: Make
) -> None:
    await reloading.reload(
        push_routes=["192.168.0.0/16"], push_dns=["10.86.0.1"], push_domains=["~corp.example"]
    )
    first, other = make(), make("other", NEXT_SECRET)
    welcome = await first.connect()
    await other.connect()
    assert [*map(str, welcome.routes)] == ["192.168.0.0/16"]
    assert [*map(str, welcome.dns), *welcome.domains] == ["10.86.0.1", "~corp.example"]
    await reloading.client("demo", push_routes=["172.16.0.0/12"])
    await asked_to_renew(first)
    assert [*map(str, (await make().connect()).routes)] == ["172.16.0.0/12"]
    other.turn()
    assert Renew not in heard(other), "it gets what it got before"


async def test_compat_is_changed(reloading: Reloading, make: Make) -> None:
    client = make()
    await client.connect()
    await reloading.client("demo", key="original", compat="go")
    assert await closed_text(client) == "`compat` of its entry has changed on the server"
    old = RawClient(reloading.site, "demo", go=True)
    old.hello = Hello(subnets=(LAN,))
    with old.socket:
        await old.connect()


async def test_other_suites_are_for_new_sessions(reloading: Reloading, make: Make) -> None:
    before = make()
    await before.connect()
    await reloading.reload(suites=["PSK-AES-256-GCM"])
    await sees_packet(reloading.site, before, packet("10.0.0.1"))
    refused, welcome = make(), make()
    await refused.until(lambda: refused.closed is not None, "the refusal")
    engine = ClientEngine("demo", bytes(range(32)), [by_name("PSK-AES-256-GCM")], native=True)
    welcome.session.association = engine.associate(0)
    await welcome.connect()
    assert reloading.site.row()["suite"] == "PSK-AES-256-GCM"


async def test_the_server_moves_to_another_address(
    reloading: Reloading, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "RENEWAL_TIME", 0.3)
    client = make()
    await client.connect()
    new = f"127.0.0.2:{reloading.site.port}"
    said = await _listen(reloading, [new])
    assert said[0] == f"listen: {new} is new (at once)"
    await asked_to_renew(client)
    await sees_packet(reloading.site, client, packet("10.0.0.1"))
    moved = make()
    moved.socket.close()
    moved.target = ("127.0.0.2", reloading.site.port)
    moved.socket = moved.new_socket()
    await moved.connect()
    await sees_packet(reloading.site, moved, packet("10.0.0.1", number=1))
    late = make()
    with pytest.raises(ConnectionRefusedError):
        await late.connect()


async def test_an_old_session_at_a_former_address_ends(
    reloading: Reloading, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "RENEWAL_TIME", 0.1)
    client = make()
    await client.connect()
    await _listen(reloading, [f"127.0.0.2:{reloading.site.port}"])
    assert await closed_text(client) == "the server does not listen on this address any more"


async def _listen(
    reloading: Reloading, addresses: list[str], *, dry_run: bool = False, **changes: Any
) -> list[str]:
    made = Site(reloading.directory, **(reloading.settings | {"listen": addresses} | changes)).config
    return await reloading.site.server.reload(Config(made, None, None), dry_run=dry_run)


async def test_a_listen_address_that_is_taken_changes_nothing(reloading: Reloading, make: Make) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.3", 0))
        address = f"127.0.0.3:{taken.getsockname()[1]}"
        other = f"127.0.0.4:{taken.getsockname()[1]}"
        for dry_run in (True, False, False):
            with pytest.raises(UnavailableError, match=f"^listen: UDP port {address} is taken by another"):
                await _listen(reloading, [other, address], dry_run=dry_run, clients={"demo": DEMO})
        assert reloading.site.row("other")["state"] == "away", "it is still a client"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind(("127.0.0.4", taken.getsockname()[1]))
        await make().connect()
    assert not any(line.startswith("error: ") for line in await _listen(reloading, [address]))


async def test_a_listen_address_may_come_back_at_once(reloading: Reloading, make: Make) -> None:
    """Though a session that was made there still has the port."""
    client = make()
    await client.connect()
    port = reloading.site.port
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        other = probe.getsockname()[1]
    await _listen(reloading, [f"127.0.0.1:{other}"])
    await _listen(reloading, [f"127.0.0.1:{port}"])
    await sees_packet(reloading.site, client, packet("10.0.0.1"))
    await make("other", key=NEXT_SECRET).connect()


async def test_forwarding_and_nat_are_switched_on_and_off(
    reloading: Reloading, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dtun")
    kernel = reloading.site.kernel
    kernel.gateways[4] = NextHop("eth0", IPv4Address("192.0.2.1"), None, 1500)
    client = make()
    await client.connect()
    mtu = reloading.site.row()["mtu"]
    await reloading.reload(masquerade=True)
    assert kernel.state.sysctls == {Sysctl("net.ipv4.ip_forward", "1")}
    assert "this host forwards packets of the clients (net.ipv4.ip_forward=1)" in caplog.messages
    assert kernel.state.filters == {
        Masquerade("dtun-demo", "eth0"),
        Masquerade("dtun-other", "eth0"),
        ClampMss("dtun-demo", mtu),
        ClampMss("dtun-other", 1400),
    }
    await sees_packet(reloading.site, client, packet("10.0.0.1"))
    await reloading.reload(masquerade=["eth7"])
    assert Masquerade("dtun-demo", "eth7") in kernel.state.filters
    assert Masquerade("dtun-demo", "eth0") not in kernel.state.filters
    await reloading.reload(masquerade=False)
    assert not kernel.state.filters
    assert not kernel.state.sysctls


async def test_what_a_reload_could_not_apply_the_next_one_does(
    reloading: Reloading, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a full /run. The file has not changed in between, or has been changed back."""
    kernel = reloading.site.kernel
    client = make()
    await client.connect()
    clients = {"demo": DEMO | {"subnets": ["10.7.0.0/16"]}, "other": OTHER | {"subnets": [str(LAN)]}}
    before = kernel.state
    for changes in ({"masquerade": ["eth7"]}, {"masquerade": False}, {"clients": clients}):
        with monkeypatch.context() as patch:

            async def fail(_: NetworkState) -> list[Change]:
                raise UnavailableError("the disk is full")

            patch.setattr(kernel, "apply", fail)
            lines = await reloading.reload(**changes)
            assert any(line.startswith("error: ") and "disk is full" in line for line in lines), lines
            assert AGAIN in await reloading.reload(dry_run=True)
        assert kernel.state == before
        assert await reloading.reload() == [AGAIN]
        assert kernel.state != before, changes
        assert await reloading.reload() == []
        before = kernel.state
    assert not kernel.state.filters
    assert not any(route.destination == LAN for route in kernel.state.routes), "which is the other's now"


async def test_nat_follows_the_default_route_and_new_devices(reloading: Reloading) -> None:
    kernel = reloading.site.kernel
    await reloading.reload(masquerade=True)
    (warning,) = reloading.warnings()
    assert "no default route" in warning
    for device in ("eth0", "wlan0"):
        kernel.gateways[4] = NextHop(device, None, None, 1500)
        kernel.changed()
        await wait_for(
            lambda device=device: Masquerade("dtun-demo", device) in kernel.state.filters,  # type: ignore[misc]
            "NAT on the new way out",
        )
    assert reloading.warnings() == []
    await reloading.reload(clients={"demo": DEMO, "new": OTHER})
    outside = {what.inside for what in kernel.state.filters if isinstance(what, Masquerade)}
    assert outside == {"dtun-demo", "dtun-new"}


async def test_what_the_kernel_refuses_of_forwarding_is_logged_once_and_shown(
    reloading: Reloading, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    kernel, switch = reloading.site.kernel, Sysctl("net.ipv4.ip_forward", "1")
    kernel.refuses[switch] = "read-only"
    await reloading.reload(forwarding=True)
    await make().connect()
    (warning,) = reloading.warnings()
    assert warning.endswith(": read-only")
    assert len([line for line in caplog.messages if "read-only" in line]) == 1


async def test_the_device_follows_the_mtu_of_the_path(
    reloading: Reloading, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    await reloading.reload(forwarding=True)
    await make().connect()
    identity = reloading.site.server.identities.by_name["demo"]
    link = identity.link
    assert link is not None
    monkeypatch.setattr(link, "agree_mtu", lambda *_, **__: 1234)
    with monkeypatch.context() as patch:
        patch.setattr(link.session, "take_events", lambda: [PathMtuChanged()])
        link.flush()
    await wait_for(lambda: identity.mtu == 1234, "the new size")
    assert {one.mtu for one in reloading.site.kernel.state.devices if one.name == "dtun-demo"} == {1234}
    assert ClampMss("dtun-demo", 1234) in reloading.site.kernel.state.filters
    assert Route(LAN, "dtun-demo") in reloading.site.kernel.state.routes


async def test_a_client_is_kicked_and_comes_back(reloading: Reloading, make: Make) -> None:
    server = reloading.site.server
    client = make()
    await client.connect()
    assert server.kick("demo").startswith("the session of client 'demo' from 127.0.0.1:")
    assert await closed_text(client) == "ended by the administrator of the server"
    with pytest.raises(UnavailableError, match="client 'demo' is not connected"):
        server.kick("demo")
    with pytest.raises(UnavailableError, match="there is no client 'nobody'"):
        server.kick("nobody")
    await make().connect()


async def test_a_configuration_without_a_server_section_is_refused(reloading: Reloading) -> None:
    with pytest.raises(ConfigError, match="no server section any more"):
        await reloading.site.server.reload(Config(None, None, Path("x.yaml")), dry_run=False)


async def test_a_client_that_is_removed_during_its_handshake_is_not_let_in(
    reloading: Reloading, make: Make
) -> None:
    client = make()
    hello, client.hello = client.hello, None
    await client.until(lambda: client.events != [], "the handshake")
    await wait_for(lambda: list(reloading.site.server.demux.links) != [], "it at the server")
    await reloading.reload(clients={"other": OTHER})
    assert hello is not None
    assert await closed_text(client) == "the server's configuration does not have this id any more"
    assert "dtun-demo" not in {link.name for link in reloading.site.kernel.state.devices}


async def test_a_key_that_is_removed_between_handshake_and_hello_is_refused(
    reloading: Reloading, make: Make
) -> None:
    client = make()
    hello, client.hello = client.hello, None
    await client.until(lambda: client.events != [], "the handshake")
    await wait_for(lambda: list(reloading.site.server.demux.links) != [], "it at the server")
    await reloading.client("demo", key=NEXT)
    assert hello is not None
    client.session.send(hello, time.monotonic())
    assert await closed_text(client) == "the server's configuration has changed meanwhile"
    assert reloading.site.row()["state"] == "away"
