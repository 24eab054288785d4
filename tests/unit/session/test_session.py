"""The life of a session, told with both of its ends and no socket."""

from collections import Counter
from ipaddress import IPv4Network

import pytest
from hypothesis import given, settings, strategies as st

from dtun.dtls.records import AeadRecords
from dtun.dtls.suites import PSK_AES_128_GCM
from dtun.protocol.channel import MAX_QUEUED
from dtun.protocol.messages import Hello, Renew
from dtun.session.session import EARLY_PACKETS, OPENING_TIME, WEAR_CHECK, Closed, Established, WornOut
from tests.unit.pair import KEEPALIVE, TIMEOUT, WELCOME, End, World

PACKET = b"\x45" + bytes(19)
GCM = (PSK_AES_128_GCM,)


def records(end: End) -> AeadRecords:
    found = end.session.association.records
    assert isinstance(found, AeadRecords)
    return found


def test_both_sides_open_and_know_what_the_other_said() -> None:
    world = World()
    world.subnets = (IPv4Network("10.0.0.0/16"),)
    client, server = world.pair()
    assert isinstance(client.events[0], Established)
    assert isinstance(server.events[0], Established)
    assert client.heard == [WELCOME]
    assert server.heard == [Hello(subnets=world.subnets)]


def test_a_quiet_session_stays_alive_and_measures_its_round_trips() -> None:
    world = World()
    client, server = world.pair()
    world.network.longest_delay = 0.05
    world.advance(20 * TIMEOUT)
    for end in (client, server):
        assert end.closed is None
        liveness = end.session.dialect.liveness if end.session.dialect else None
        assert liveness is not None
        assert liveness.rtt is not None
        assert 0 < liveness.rtt <= 0.1


def test_it_lives_through_a_network_that_loses_a_third() -> None:
    world = World()
    client, server = world.pair()
    world.network.drop, world.network.double, world.network.longest_delay = 0.33, 0.1, 1.0
    for _ in range(20):
        client.session.send(Renew(), world.now)
        world.advance(5)
    world.network.drop = 0.0
    world.advance(60)
    assert client.closed is None
    assert server.heard[1:] == [Renew()] * 20


def test_when_nothing_comes_any_more_both_sides_notice_in_time() -> None:
    world = World()
    client, server = world.pair()
    world.advance(3.0)
    world.network.drop = 1.0
    world.advance(TIMEOUT + KEEPALIVE)
    for end in (client, server):
        assert end.closed == Closed("timeout", "nothing was received for 30 s")


def test_a_goodbye_is_heard_at_once_with_its_reason() -> None:
    world = World()
    client, server = world.pair()
    server.session.close("stopped", "the server stops", world.now)
    world.settle()
    assert client.closed == Closed("stopped", "the server stops", by_peer=True)
    assert server.closed == Closed("stopped", "the server stops")
    assert client.session.next_timer() is None
    assert not client.session.open


def test_a_close_notify_alone_ends_a_session_too() -> None:
    world = World()
    client, server = world.pair()
    client.session.receive(records(server).seal_close(), world.now)
    world.settle()
    assert client.closed == Closed("other", "the peer closed the session", by_peer=True)


def test_a_goodbye_in_one_datagram_with_its_close_notify_is_still_heard() -> None:
    world = World()
    client, server = world.pair()
    server.session.close("replaced", "another host", world.now)
    datagram = b"".join(server.session.take_outgoing())
    client.session.receive(datagram, world.now)
    assert client.session.closed == Closed("replaced", "another host", by_peer=True)


def test_a_session_that_ends_without_a_word_sends_nothing() -> None:
    world = World()
    client, server = world.pair()
    server.session.close("replaced", "the client has started anew", world.now, tell=False)
    assert server.session.take_outgoing() == []
    world.settle()
    assert client.closed is None


@given(st.text(max_size=400))
@settings(max_examples=20)
def test_a_goodbye_arrives_whatever_its_text(text: str) -> None:
    world = World()
    client, server = world.pair()
    server.session.close("other", text, world.now)
    world.settle()
    assert client.closed is not None
    assert (client.closed.reason, client.closed.by_peer) == ("other", True)
    assert client.closed.text.isprintable()


def test_a_closed_session_is_deaf_and_mute() -> None:
    world = World()
    client, server = world.pair()
    late = records(server).seal(PACKET)
    client.session.close("stopped", "", world.now)
    client.session.close("other", "again", world.now)
    client.session.take_outgoing()
    client.session.receive(late, world.now)
    client.session.send(Renew(), world.now)
    client.session.poll(world.now + 1000)
    assert client.session.take_outgoing() == []
    assert client.session.take_early_packets() == []
    assert client.session.take_events() == [Closed("stopped", "")]


def test_packets_that_come_before_the_data_plane_are_kept_up_to_a_bound() -> None:
    world = World()
    client, server = world.pair()
    for number in range(EARLY_PACKETS + 10):
        packet = PACKET + number.to_bytes(2)
        client.session.receive(records(server).seal(packet), world.now)
    early = client.session.take_early_packets()
    assert early == [PACKET + number.to_bytes(2) for number in range(EARLY_PACKETS)]
    assert client.session.drops == Counter({"early packet": 10})
    assert client.session.take_early_packets() == []


def wear(end: End, share: float) -> None:
    """Have the key of this end done as much of what it may do."""
    found = records(end)
    found.sending.reserve(round(share * found.keys.suite.seal_limit) - found.sending.next)


def test_a_key_that_has_done_half_is_reported_once() -> None:
    world = World(suites=GCM)
    client, _ = world.pair()
    wear(client, 0.49)
    world.advance(2 * WEAR_CHECK)
    assert WornOut() not in client.events
    wear(client, 0.5)
    world.advance(5 * WEAR_CHECK)
    assert client.events.count(WornOut()) == 1
    assert client.closed is None


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_key_that_nothing_replaces_ends_with_its_limit(side: str) -> None:
    """Also one that comes there by forgeries."""
    world = World(suites=GCM)
    pair = world.pair()
    end, other = pair if side == "client" else pair[::-1]
    records(end).forgeries = records(end).keys.suite.forgery_limit // 2 + 1
    world.advance(WEAR_CHECK)
    assert end.events.count(WornOut()) == 1
    for share, ended in ((0.93, False), (0.94, True)):
        wear(end, share)
        world.advance(5)
        assert ("reached its usage limit" in str(end.closed)) == ended
    assert other.closed is not None, "it is told"


def test_a_key_of_an_original_is_reported_and_goes_on() -> None:
    """It would not come back."""
    world = World(go=True)
    for end in world.pair():
        wear(end, 0.95)
        world.advance(2 * WEAR_CHECK)
        assert end.events.count(WornOut()) == 1
        assert end.closed is None


def test_a_peer_that_does_not_introduce_itself_is_given_up() -> None:
    world = World()
    world.welcomes = False
    path = world.connect()
    world.settle()
    world.servers[path].session.send(Renew(), world.now)  # words, but no introduction
    world.advance(OPENING_TIME)
    closed = world.clients[path].closed
    assert closed == Closed("timeout", "the peer sent no Hello or Welcome within 10 s")


def test_a_session_with_two_reasons_to_end_at_once_ends_once() -> None:
    world = World()
    world.welcomes = False
    path = world.connect()
    world.settle()
    dialect = world.clients[path].session.dialect
    assert dialect is not None
    assert dialect.liveness is not None
    dialect.liveness.timeout = OPENING_TIME
    world.network.drop = 1.0
    world.advance(OPENING_TIME)
    assert world.clients[path].closed is not None


def test_a_peer_that_acknowledges_nothing_is_given_up_and_not_hoarded_for() -> None:
    world = World()
    client, server = world.pair()
    world.network.drop = 1.0
    for _ in range(MAX_QUEUED + 2):
        server.session.send(Renew(), world.now)
    assert server.session.closed is not None
    assert "has not acknowledged" in server.session.closed.text
    assert client.closed is None


def test_a_server_that_is_not_there_gives_no_answer() -> None:
    world = World()
    world.network.drop = 1.0
    path = world.connect(deadline=5.0)
    world.advance(4.9)
    assert world.clients[path].closed is None
    world.advance(0.1)
    assert world.clients[path].closed == Closed("no answer", "no answer")


def test_a_wrong_key_looks_like_a_refusal_and_ends_with_the_deadline() -> None:
    world = World(server_key=b"another key")
    path = world.connect(deadline=5.0)
    world.advance(5.0)
    closed = world.clients[path].closed
    assert closed is not None
    assert "does not" in closed.text
    assert world.servers == {}
    assert [failed.reason for failed in world.failed] == ["wrong key"]


def test_a_handshake_that_fails_at_its_deadline_ends_once() -> None:
    world = World(server_key=b"another key")
    path = world.connect(deadline=0.0)
    world.settle()
    client = world.clients[path]
    client.session.poll(world.now + 1)
    client.session.poll(world.now + 2)
    world.settle()
    assert client.closed is not None


@given(st.lists(st.binary(max_size=80), max_size=20))
@settings(max_examples=30)
def test_no_datagrams_from_strangers_disturb_a_session(datagrams: list[bytes]) -> None:
    world = World()
    client, server = world.pair()
    forged = b"\x17\xfe\xfd\x00\x01\x00\x00\x00\x00\x00\x63"
    for datagram in datagrams:
        for end in (client, server):
            end.session.receive(datagram, world.now)
            end.session.receive(forged + len(datagram).to_bytes(2) + datagram, world.now)
    world.advance(KEEPALIVE)
    assert client.closed is None
    assert server.closed is None


@given(st.lists(st.binary(max_size=40), max_size=20))
@settings(max_examples=30)
def test_no_plaintexts_from_an_authentic_peer_raise(plaintexts: list[bytes]) -> None:
    world = World()
    client, server = world.pair()
    for plaintext in plaintexts:
        for start in (b"", b"\x01\x00\x01\x00\x01", b"\x07"):
            client.session.receive(records(server).seal(start + plaintext), world.now)
    world.advance(1.0)
    assert client.closed is None or client.closed.by_peer


def test_unknown_frames_and_messages_are_counted() -> None:
    world = World()
    client, server = world.pair()
    for plaintext in (b"", b"\x09later", b"\x07{}"):
        client.session.receive(records(server).seal(plaintext), world.now)
    assert client.session.drops == Counter({"unknown frame": 2, "unknown control message": 1})


def test_a_replayed_goodbye_of_another_session_does_nothing() -> None:
    world = World()
    client, _ = world.pair()
    other_client, _ = world.pair()
    other_client.session.close("stopped", "", world.now)
    for datagram in other_client.session.take_outgoing():
        client.session.receive(datagram, world.now)
    assert client.session.closed is None


@pytest.mark.parametrize("subnets", [(), (IPv4Network("10.0.0.0/16"),)])
def test_the_dialect_of_the_original_opens_both_sides(subnets: tuple[IPv4Network, ...]) -> None:
    world = World(go=True)
    world.subnets = subnets
    client, server = world.pair()
    assert client.heard == [WELCOME]
    assert server.heard == [Hello(subnets=subnets)]
    world.advance(3600)
    assert client.closed is server.closed is None, "nobody expects a keepalive"
    client.session.receive(records(server).seal(PACKET), world.now)
    assert client.session.take_early_packets() == [PACKET]


def test_an_original_client_that_sends_packets_before_its_answer_has_to_reconnect() -> None:
    world = World(go=True)
    path = world.connect()
    client = world.clients[path].session
    while path not in world.servers:  # carry the handshake, but not the answer to the greeting
        for datagram in client.take_outgoing():
            world.listener.receive(datagram, path, world.now)
        world.collect()
        for _, datagram in world.network.arrivals(world.now):
            client.receive(datagram, world.now)
    server = world.servers[path]
    assert server.session.dialect is not None
    assert server.session.dialect.opening
    server.session.receive_plaintext(PACKET, world.now)
    world.collect()
    assert server.closed == Closed("other", "the client did not name the IPv4 subnet behind it", by_peer=True)
