"""A server, and clients, on loopback sockets: only the kernel's devices and routes are made up."""

import asyncio
import itertools
import logging
import socket
import time
from collections.abc import Callable
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from dtun.client import dialer, states
from dtun.client.dialer import Dialer
from dtun.dtls import key_takeover
from dtun.dtls.records import AeadRecords
from dtun.dtls.status import ExportError
from dtun.network.state import Address, Route
from dtun.pacing import Backoff
from dtun.protocol.messages import Hello, Renew
from dtun.protocol.record import hello_request
from dtun.server import demux
from dtun.session.link import Link
from dtun.session.session import Closed, Session
from tests.unit.sites import (
    LAN,
    Home,
    RawClient,
    Site,
    in_service,
    packet,
    sees_packet,
    serving,
    settled,
    started,
    through,
    wait_for,
    waiting_at,
)


async def test_a_client_gets_its_address_and_its_packets_through(
    site: Site, make_client: Callable[..., RawClient]
) -> None:
    client = make_client()
    welcome = await client.connect()
    assert (str(welcome.address), str(welcome.peer)) == ("10.86.0.2", "10.86.0.1")
    assert site.routes() == {Route(LAN, "dtun-demo")}
    await sees_packet(site, client, packet("10.0.5.5"))
    site.tun().host.send(packet("192.0.2.9", "10.0.5.5"))
    assert await client.next_packets() == [packet("192.0.2.9", "10.0.5.5")]
    await wait_for(lambda: site.hooks.ran == ["/up demo connected demo: up hook"], "the up hook")


async def test_a_spoofed_source_is_dropped(site: Site, make_client: Callable[..., RawClient]) -> None:
    client = make_client()
    await client.connect()
    client.send(packet("172.16.0.1"))
    await sees_packet(site, client, packet("10.86.0.2"))
    assert waiting_at(site.tun().host) == []
    assert site.server.identities.by_name["demo"].counters.drops["source not allowed"] == 1


async def test_a_client_whose_nat_forgets_it_is_found_again_by_its_next_record(
    site: Site, make_client: Callable[..., RawClient]
) -> None:
    client = make_client()
    await client.connect()
    await sees_packet(site, client, packet("10.0.0.1"))
    with client.socket:
        client.socket = client.new_socket()
        await sees_packet(site, client, packet("10.0.0.1", number=1))
        site.tun().host.send(packet("192.0.2.9", "10.0.0.1", number=2))
        await client.next_packets()
    assert not any(isinstance(event, Closed) for event in client.events)


async def test_a_forged_replayed_or_old_record_moves_nothing_and_gets_a_hint(
    site: Site, make_client: Callable[..., RawClient]
) -> None:
    client = make_client()
    await client.connect()
    old = client.session.association.seal(packet("10.0.0.1"))
    await sees_packet(site, client, packet("10.0.0.1", number=1))
    forged = bytearray(client.session.association.seal(packet("10.0.0.1", number=2)))
    forged[-1] ^= 1
    with client.new_socket() as stranger:
        for datagram in (old, bytes(forged)):
            stranger.send(datagram)
            hints: list[bytes] = []
            while not hints:
                await asyncio.sleep(0.002)
                hints += waiting_at(stranger)
            assert hints == [hello_request(0)]
        site.tun().host.send(packet("192.0.2.9", "10.0.0.1"))
        await client.next_packets()
        assert waiting_at(stranger) == []
    assert site.drops()["record of no session"] == 2


async def test_hints_are_rate_limited_and_never_larger_than_what_they_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demux, "HINTS_PER_SECOND", 10.0)
    record = b"\x17\xfe\xfd\x00\x01\x00\x00\x00\x00\x00\x07\x00\x20" + bytes(32)
    async with serving(tmp_path) as site:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.setblocking(False)
            stranger.connect(("127.0.0.1", site.port))
            for size in range(13, 25):
                stranger.send(record[:size])
            await wait_for(lambda: site.drops()["record of no session"] == 12, "the short ones")
            assert waiting_at(stranger) == []
            began = time.monotonic()
            for _ in range(60):
                stranger.send(record)
            await wait_for(lambda: site.drops()["record of no session"] == 72, "all records")
            hints = waiting_at(stranger)
            assert 10 <= len(hints) <= 11 + 10 * (time.monotonic() - began)
            assert set(hints) == {hello_request(0)}


async def test_strays_are_counted_and_not_answered(site: Site) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.setblocking(False)
        stranger.connect(("127.0.0.1", site.port))
        for datagram in (b"x", b"\x15\xfe\xfd" + bytes(20), b"\x16" + bytes(40), bytes(1400)):
            stranger.send(datagram)
        await wait_for(lambda: sum(site.drops().values()) == 4, "the count")
        assert waiting_at(stranger) == []
    assert site.server.status()["half_open"] == 0


async def test_a_client_that_starts_anew_takes_its_own_place(
    site: Site, make_client: Callable[..., RawClient]
) -> None:
    first, second = make_client(), make_client()
    await first.connect()
    await second.connect()
    await sees_packet(site, first, packet("10.0.0.1", number=1))
    await sees_packet(site, second, packet("10.0.0.1", number=2))
    site.tun().host.send(packet("192.0.2.9", "10.0.0.1"))
    await second.next_packets()
    assert first.packets() == []


async def test_another_host_with_the_same_id_is_told_to_the_first(
    make_client: Callable[..., RawClient],
) -> None:
    first, second = make_client(), make_client()
    second.hello = Hello(instance="0b", subnets=(LAN,))
    await first.connect()
    await second.connect()
    await first.until(lambda: any(isinstance(event, Closed) for event in first.events), "the goodbye")
    closed = first.events[-1]
    assert isinstance(closed, Closed)
    assert closed.reason == "replaced"


async def test_a_client_that_asks_for_much_that_it_may_not_have_is_welcome_all_the_same(
    site: Site, make_client: Callable[..., RawClient]
) -> None:
    client = make_client()
    subnets = tuple(IPv4Network((f"172.16.{number >> 8}.{number & 255}", 32)) for number in range(1024))
    client.hello = Hello(instance="0a", subnets=subnets)
    welcome = await client.connect()
    assert 0 < len(welcome.refused) < len(subnets)
    assert site.routes() == frozenset()


async def test_an_original_client_is_greeted_and_served(
    site: Site, make_client: Callable[..., RawClient]
) -> None:
    client = make_client("old", go=True)
    welcome = await client.connect()
    assert str(welcome.peer) == "10.86.0.1"
    await wait_for(
        lambda: site.server.identities.by_name["old"].link is not None, "the answer to the greeting"
    )
    client.send(packet("10.9.0.7"))
    host = site.tun("dtun-old").host
    await wait_for(lambda: packet("10.9.0.7") in waiting_at(host), "its packet")
    assert Route(IPv4Network("10.9.0.0/16"), "dtun-old") in site.kernel.state.routes


async def test_a_tunnel_comes_up_and_carries_packets(site: Site, home: Home) -> None:
    await in_service(home)
    await through(site, home, 1)
    assert {str(route.destination) for route in home.kernel.state.routes} == {"192.0.2.0/24"}
    await wait_for(lambda: home.hooks.ran == ["/up demo connected dtun0: up hook"], "the up hook")
    assert home.client.summary().startswith("connected to 127.0.0.1")


def ask_for_renewal(site: Site) -> None:
    for link in site.server.demux.links:
        link.send(Renew())


async def test_a_renewed_session_takes_over_without_a_gap(site: Site, home: Home) -> None:
    before = await in_service(home)
    ask_for_renewal(site)
    await in_service(home, other_than=before)
    await through(site, home, 1)
    assert len(home.hooks.ran) == 1, "the tunnel was up all the time"


@pytest.fixture
def unknown_layout(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> str:
    """Mbed TLS keeps its state in another way; what is said of it."""

    def parse(*_: object) -> None:
        raise ExportError("a layout of next year")

    monkeypatch.setattr(key_takeover, "read_keys", parse)
    caplog.set_level(logging.INFO)
    return "records stay in Mbed TLS, which is slow: a layout of next year"


async def test_both_ends_say_that_records_stay_inside_of_mbed_tls(
    unknown_layout: str, site: Site, home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    await in_service(home)
    await through(site, home, 1)
    for end in (site.server, home.client):
        assert unknown_layout in str(end.status()["tunnels"])
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert said.count(("WARNING", unknown_layout)) == 1
    assert said.count(("WARNING", f"demo: {unknown_layout}")) == 1


@pytest.mark.parametrize("side", ["client", "server"])
async def test_a_key_that_has_done_half_of_what_it_may_is_replaced(site: Site, home: Home, side: str) -> None:
    before = await in_service(home)
    link = before if side == "client" else site.server.identities.by_name["demo"].link
    assert isinstance(link, Link)
    records = link.session.association.records
    assert isinstance(records, AeadRecords)
    records.forgeries = records.keys.suite.forgery_limit // 2 + 1
    link.session.poll(time.monotonic())
    link.flush()
    await in_service(home, other_than=before)
    await through(site, home, 1)
    assert len(home.hooks.ran) == 1, "the tunnel was up all the time"


async def test_the_worn_out_key_of_an_original_client_is_logged(
    site: Site, make_client: Callable[..., RawClient], caplog: pytest.LogCaptureFixture
) -> None:
    client = make_client("old", go=True)
    await client.connect()
    identities = site.server.identities.by_name
    await wait_for(lambda: identities["old"].link is not None, "the answer to the greeting")
    link = identities["old"].link
    assert isinstance(link, Link)
    records = link.session.association.records
    assert isinstance(records, AeadRecords)
    records.forgeries = records.keys.suite.forgery_limit
    link.session.poll(time.monotonic())
    link.flush()
    assert "old: the key of this session is half worn out; restart the original dtun at 127" in caplog.text
    assert not link.ended()


async def test_a_server_that_forgot_us_is_found_again_by_its_hint(site: Site, home: Home) -> None:
    before = await in_service(home)
    await site.restart()
    home.kernel.tuns["dtun0"].host.send(packet("10.0.0.1"))
    await in_service(home, other_than=before)
    await through(site, home, 1)


async def test_forged_hints_cause_a_bounded_number_of_new_sessions(
    site: Site, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "HINT_INTERVAL", 3600.0)
    connect, attempts = Dialer.connect, itertools.count()

    async def counted(dialer: Dialer) -> str | None:
        next(attempts)
        return await connect(dialer)

    first = await in_service(home)
    await settled()
    monkeypatch.setattr(Dialer, "connect", counted)
    for _ in range(100):
        first.receive(hello_request(0))
    second = await in_service(home, other_than=first)
    await settled()
    for _ in range(100):
        second.receive(hello_request(0))
    await through(site, home, 1)
    assert next(attempts) == 1


async def test_a_server_that_stops_says_so_and_the_client_waits_for_the_next(site: Site, home: Home) -> None:
    before = await in_service(home)
    await site.server.stop()
    await wait_for(lambda: home.link() is None, "the goodbye")
    assert home.client.summary().startswith("connecting to")
    site.server = site.make_server()
    await site.server.start()
    await in_service(home, other_than=before)
    await through(site, home, 2)
    await wait_for(
        lambda: [line.split()[0] for line in home.hooks.ran] == ["/up", "/down", "/up"], "the hooks"
    )


async def test_a_session_that_cannot_be_used_after_all_is_given_up_for_another(
    site: Site, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await in_service(home)

    def fail_once(offloads: frozenset[str]) -> None:
        monkeypatch.undo()
        raise OSError(f"{offloads} is not for this device")

    monkeypatch.setattr(home.kernel.tuns["dtun0"], "enable_offloads", fail_once)
    ask_for_renewal(site)
    await wait_for(lambda: home.row()["last_error"] is not None, "the failure")
    await wait_for(lambda: home.row()["last_error"] is None, "another try that worked")
    assert home.link() not in (None, before)


async def test_an_up_hook_does_not_run_for_a_session_that_was_lost_meanwhile(site: Site, home: Home) -> None:
    gate = asyncio.Event()

    async def slow_hop(address: Address, mark: int | None = None) -> None:
        """Quick before the session is made, slow when it is in service."""
        del address, mark
        if home.link() is not None:
            await gate.wait()

    home.kernel.next_hop = slow_hop  # type: ignore[method-assign]
    await in_service(home)
    await site.server.stop()
    await wait_for(lambda: home.link() is None, "the goodbye")
    gate.set()
    await settled()
    assert [line for line in home.hooks.ran if line.startswith("/up")] == []


class LongWait(Backoff):
    def next(self) -> float:
        return 3600.0


async def test_a_change_of_the_host_ends_the_wait_for_the_next_try(site: Site, tmp_path: Path) -> None:
    async with started(Home(site, tmp_path, backoff=LongWait())) as home:
        await in_service(home)
        for link in list(site.server.demux.links):
            link.close("other", "for the test")
        await wait_for(lambda: home.link() is None, "the goodbye")
        home.kernel.changed()
        await in_service(home)


class HastySession(Session):
    """The server closes it as soon as the handshake is over."""

    def receive(self, datagram: bytes, now: float) -> None:
        super().receive(datagram, now)
        if self.dialect is not None:
            self.close("other", "too bad", now)


async def test_a_session_that_ends_at_once_is_reported(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialer, "Session", HastySession)
    async with started(Home(site, tmp_path)) as home:
        await wait_for(lambda: home.row()["last_error"] is not None, "the failure")
        assert home.row()["last_error"] == f"127.0.0.1:{site.port}: too bad"
