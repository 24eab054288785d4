"""What a client with a valid key must not be able to do to the server or to other clients."""

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path

import pytest

from dtun.config import ClientEntry
from dtun.errors import PermissionDeniedError
from dtun.network.difference import Change
from dtun.network.state import NetworkState
from dtun.platform.interface import LocalNetwork
from dtun.protocol.messages import Hello, Renew, Welcome
from dtun.server import identity, login
from tests.unit.sites import KEY, LAN, RawClient, Site, packet, sees_packet, serving, wait_for

MakeClient = Callable[..., RawClient]


class Gate:
    """A request to the kernel that takes until the gate is open."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.waiting = 0

    async def wait(self) -> None:
        self.waiting += 1
        await self.open.wait()


def slow_look(site: Site) -> Gate:
    """Make the server wait for the kernel in the middle of a login."""
    gate, look = Gate(), site.kernel.local_networks

    async def slow() -> list[LocalNetwork]:
        await gate.wait()
        return await look()

    site.kernel.local_networks = slow  # type: ignore[method-assign]
    return gate


def slow_apply(site: Site) -> Gate:
    gate, apply = Gate(), site.kernel.apply

    async def slow(desired: NetworkState) -> list[Change]:
        await gate.wait()
        return await apply(desired)

    site.kernel.apply = slow  # type: ignore[method-assign]
    return gate


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.fixture
async def tiny(tmp_path: Path) -> AsyncIterator[Site]:
    """A server for any id with its key, with an address for one client."""
    entry = {"key": KEY, "subnets": "private"}
    made = Site(tmp_path, clients={"*": entry}, pool="10.86.0.0/30")
    await made.server.start()
    yield made
    await made.server.stop()


@pytest.fixture
async def shared(tmp_path: Path) -> AsyncIterator[Site]:
    """A server for any id with its key, and any private subnet behind such a client."""
    made = Site(tmp_path, clients={"*": {"key": KEY, "subnets": "private"}})
    await made.server.start()
    yield made
    await made.server.stop()


async def until_waiting(gate: Gate, client: RawClient) -> None:
    await client.until(lambda: gate.waiting > 0, "the server to ask its kernel")


async def test_a_client_that_repeats_its_hello_logs_in_once(site: Site, make_client: MakeClient) -> None:
    client = make_client()
    await client.connect()
    looks = slow_look(site)
    (link,) = site.server.demux.links
    assert client.hello is not None
    for _ in range(20):
        client.session.send(client.hello, time.monotonic())
    await client.until(lambda: link.drops["repeated greeting"] == 20, "all of them to arrive")
    assert looks.waiting == 0
    await sees_packet(site, client, packet("10.0.0.1"))


@pytest.mark.parametrize(
    "message",
    [Welcome(address=IPv4Address("10.86.0.9"), peer=IPv4Address("10.86.0.1")), Renew()],
    ids=["welcome", "renew"],
)
async def test_a_client_that_sends_a_servers_message_is_disconnected(
    make_client: MakeClient, message: Welcome | Renew
) -> None:
    client = make_client()
    client.hello = message
    await client.until(lambda: client.closed is not None, "the goodbye")
    assert client.closed is not None
    assert client.closed.text == "the client sent a message that only a server sends"


async def test_sessions_without_a_hello_are_limited(
    site: Site, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(login, "MAX_WAITING", 2)
    silent = [make_client() for _ in range(4)]
    for client in silent:
        client.hello = None
        await client.until(lambda client=client: client.events != [], "the handshake")  # type: ignore[misc]
    await silent[0].until(lambda: silent[0].closed is not None, "the oldest to be disconnected")
    await wait_for(lambda: len(list(site.server.demux.links)) == 2, "the others")
    honest = make_client()
    await honest.connect()


async def test_replaced_sessions_are_limited(site: Site, make_client: MakeClient) -> None:
    for _ in range(5):
        await make_client().connect()
    assert len(list(site.server.demux.links)) == 2


async def test_a_client_that_comes_and_goes_does_not_fill_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "LOG_LINES", 3)
    with caplog.at_level(logging.INFO, "dtun"):
        async with serving(tmp_path) as site:
            for number in range(6):
                client = RawClient(site)
                client.hello = Hello(instance=f"0{number}", subnets=(LAN, IPv4Network("172.16.0.0/24")))
                with client.socket:
                    await client.connect()
    assert len([line for line in caplog.messages if line.startswith("demo: ")]) == 3


async def test_a_client_that_leaves_while_it_is_let_in_does_no_harm(
    site: Site, make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    gate = slow_look(site)
    client = make_client()
    await until_waiting(gate, client)
    client.session.close("stopped", "never mind", time.monotonic())
    client.turn()
    await wait_for(lambda: not list(site.server.demux.links), "the goodbye to arrive")
    tasks = len(asyncio.all_tasks())
    gate.open.set()
    await wait_for(lambda: len(asyncio.all_tasks()) < tasks, "the server to be done with it")
    assert errors(caplog) == []
    await make_client().connect()


async def test_an_address_is_not_taken_away_from_a_client_that_is_being_let_in(
    tiny: Site, caplog: pytest.LogCaptureFixture
) -> None:
    first, again, other = RawClient(tiny, "a"), RawClient(tiny, "a"), RawClient(tiny, "b")
    with first.socket, again.socket, other.socket:
        await first.connect()
        first.session.close("stopped", "restarting", time.monotonic())
        first.turn()
        await wait_for(lambda: not list(tiny.server.demux.links), "the goodbye to arrive")
        gate = slow_look(tiny)
        await until_waiting(gate, again)
        await other.until(lambda: other.events != [], "the handshake of another client")
        tasks = len(asyncio.all_tasks())
        await other.until(lambda: len(asyncio.all_tasks()) > tasks, "its hello to arrive")
        gate.open.set()
        await again.connect()
        await other.until(lambda: other.closed is not None, "the refusal")
        assert other.closed is not None
        assert other.closed.reason == "refused"
    assert errors(caplog) == []


async def test_two_that_ask_for_overlapping_subnets_at_once_do_not_both_get_them(shared: Site) -> None:
    first, second = RawClient(shared, "a"), RawClient(shared, "b")
    second.hello = Hello(instance="0b", subnets=(IPv4Network("10.0.1.0/24"),))
    with first.socket, second.socket:
        for client in (first, second):
            # Their devices are there already, so that only the subnets are left to be seen to.
            await shared.server.identities.create("a" if client is first else "b")
        gate = slow_apply(shared)
        await until_waiting(gate, first)
        tasks = len(asyncio.all_tasks())
        await second.until(lambda: len(asyncio.all_tasks()) > tasks, "the second hello")
        gate.open.set()
        assert (await first.connect()).refused == ()
        (refusal,) = (await second.connect()).refused
    assert refusal.reason == f"it overlaps {LAN}, which belongs to client a"


async def test_a_client_cannot_have_the_tunnel_run_through_itself(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClientEntry, "grants", lambda *_: True)
    client = make_client()
    client.hello = Hello(instance="0a", subnets=(LAN, IPv4Network("127.0.0.0/16")))
    (refusal,) = (await client.connect()).refused
    assert refusal.reason == "it overlaps 127.0.0.1/32, which belongs to this client outside the tunnel"


async def test_a_record_that_arrives_at_another_address_of_the_server_does_not_move_its_session(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as stranger:
        try:
            stranger.bind(("::1", 0))
        except OSError:
            pytest.skip("this host has no IPv6")
        site = Site(tmp_path)
        site.config = site.config.model_copy(
            update={
                "listen": (*site.config.listen, site.config.listen[0]._replace(address=IPv6Address("::1")))
            }
        )
        site.server = site.make_server()
        await site.server.start()
        failures: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
        client = RawClient(site)
        with client.socket:
            await client.connect()
            record = client.session.association.seal(packet("10.0.0.1"))
            stranger.sendto(record, ("::1", site.port))
            await wait_for(lambda: site.drops()["record of no session"] == 1 or failures != [], "the record")
            site.tun().host.send(packet("192.0.2.9", "10.0.0.1"))
            await client.next_packets()
        await site.server.stop()
        assert failures == []
    assert errors(caplog) == []


@pytest.mark.parametrize("error", [PermissionDeniedError("no CAP_NET_ADMIN"), RuntimeError("a bug")])
async def test_a_client_that_cannot_be_served_is_told_so(
    site: Site, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def fail(desired: NetworkState) -> list[Change]:
        del desired
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(site.kernel, "apply", fail)
        client = make_client()
        await client.until(lambda: client.closed is not None, "the refusal")
        assert client.closed is not None
        assert client.closed.reason == "refused"
    await make_client().connect()


async def test_down_hooks_of_all_clients_run_at_once_when_the_server_stops(
    site: Site, make_client: MakeClient
) -> None:
    await make_client().connect()
    await make_client("old", go=True).connect()
    await wait_for(lambda: len(site.hooks.ran) == 2, "the up hooks")
    gate = site.hooks.gate = asyncio.Event()
    stopping = asyncio.create_task(site.server.stop())
    await wait_for(lambda: len(site.hooks.ran) == 4, "both down hooks to begin")
    gate.set()
    await stopping


async def test_a_device_name_from_the_configuration_is_kept_for_its_client(tmp_path: Path) -> None:
    clients = {"demo": {"key": KEY}, "other": {"key": KEY, "tun": "dtun-demo"}}
    site = Site(tmp_path, clients=clients)
    await site.server.start()
    assert site.server.identities.by_name["other"].tun.name == "dtun-demo"
    assert site.server.identities.by_name["demo"].tun.name != "dtun-demo"
    await site.server.stop()
