"""The Go dtun's greeting, byte for byte, both ends of the conversation, and when the other end counts as dead."""

from collections import Counter
from ipaddress import IPv4Address, IPv4Network, IPv6Network

import pytest
from hypothesis import given, settings, strategies as st

from dtun.protocol.messages import Goodbye, Hello, Renew, Welcome
from dtun.session.go import (
    GREETING_RESEND,
    GoClientDialect,
    GoLiveness,
    GoServerDialect,
    decode_answer,
    decode_greeting,
    encode_answer,
    encode_greeting,
)
from tests.unit.protocol.terrible_network import TerribleNetwork

CLIENT, SERVER = IPv4Address("10.86.0.2"), IPv4Address("10.86.0.1")
WELCOME = Welcome(address=CLIENT, peer=SERVER)
HELLO = Hello(subnets=(IPv6Network("fd00::/64"), IPv4Network("10.0.0.0/16"), IPv4Network("10.9.0.0/16")))
GREETING = bytes([10, 86, 0, 2, 10, 86, 0, 1])
PACKET = b"\x45" + bytes(19)


def uncounted(reason: str) -> None:
    raise AssertionError(f"dropped: {reason}")


def test_the_greeting_is_the_clients_address_and_then_the_servers() -> None:
    assert encode_greeting(CLIENT, SERVER) == bytes([10, 86, 0, 2, 10, 86, 0, 1])


@given(st.ip_addresses(v=4), st.ip_addresses(v=4), st.binary(max_size=30))
def test_what_follows_the_greeting_is_ignored(client: IPv4Address, server: IPv4Address, rest: bytes) -> None:
    assert decode_greeting(encode_greeting(client, server) + rest) == (client, server)


@given(st.binary(max_size=7))
def test_a_greeting_has_eight_bytes(record: bytes) -> None:
    assert decode_greeting(record) is None


def test_the_answer_is_text() -> None:
    assert encode_answer(IPv4Network("10.0.0.0/16")) == b"10.0.0.0/16"
    assert encode_answer(None) == b"empty"
    assert decode_answer(b"empty") == ()


@given(st.ip_addresses(v=4), st.integers(0, 32))
def test_any_subnet_survives_and_host_bits_are_cut_off(address: IPv4Address, length: int) -> None:
    subnet = IPv4Network((address, length), strict=False)
    assert decode_answer(encode_answer(subnet)) == (subnet,)
    assert decode_answer(f"{address}/{length}".encode()) == (subnet,)


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"Empty",
        b"empty\n",
        b"10.0.0.0",
        b"10.0.0.0/",
        b"10.0.0.0/33",
        b"10.0.0.0/-1",
        b"10.0.0.0/8 ",
        b"10.0.0.0/255.0.0.0",
        b"10.0.0.0/0.0.0.255",
        b"fd00::/8",
        "10.0.0.0/\u0668".encode(),
        b"\xff\xfe/8",
        bytes.fromhex("4500001400000000400100000a5600020a560001"),
        b"10.0.0.0/8" + b" " * 9000,
    ],
)
def test_other_text_is_not_an_answer(record: bytes) -> None:
    assert decode_answer(record) is None


@given(st.binary(max_size=30))
def test_any_bytes_are_an_answer_or_none(record: bytes) -> None:
    subnets = decode_answer(record)
    assert subnets is None or len(subnets) <= 1


def test_the_server_greets_first_and_the_client_answers() -> None:
    client, server = GoClientDialect(uncounted), GoServerDialect(uncounted)
    client.send(HELLO, 0)
    assert client.take_outgoing() == [], "it waits for the greeting"
    server.send(WELCOME, 0)
    assert server.take_outgoing() == [GREETING]
    assert client.receive(GREETING, 0) == WELCOME
    assert client.take_outgoing() == [b"10.0.0.0/16"]
    assert server.receive(b"10.0.0.0/16", 0) == Hello(subnets=(IPv4Network("10.0.0.0/16"),))
    assert not client.opening
    assert not server.opening


def test_a_greeting_before_our_hello_is_answered_with_our_subnet() -> None:
    client = GoClientDialect(uncounted)
    assert client.receive(GREETING, 0) == WELCOME
    assert client.take_outgoing() == []
    client.send(HELLO, 0)
    client.send(HELLO, 0)
    assert client.take_outgoing() == [b"10.0.0.0/16"]


@given(st.integers(), st.floats(0, 0.8))
@settings(max_examples=40)
def test_a_lost_greeting_is_sent_again(seed: int, drop: float) -> None:
    """A Go client never repeats its answer, so only the path to the client loses records here."""
    client, server = GoClientDialect(uncounted), GoServerDialect(lambda _: None)
    client.send(HELLO, 0)
    server.send(WELCOME, 0)
    network = TerribleNetwork[str](seed, drop=drop)
    now = 0.0
    while client.opening:
        assert now < 1000, "the greeting is not sent again"
        server.poll(0, now)
        for greeting in server.take_outgoing():
            network.send("client", greeting, now)
        for _, greeting in network.arrivals(now):
            if client.opening:
                assert client.receive(greeting, now) == WELCOME
        timer = server.next_timer()
        assert timer is not None
        assert timer <= now + GREETING_RESEND
        now = timer
    (answer,) = client.take_outgoing()
    assert server.receive(answer, now) == Hello(subnets=(IPv4Network("10.0.0.0/16"),))
    assert server.next_timer() is None


def test_a_second_greeting_is_dropped() -> None:
    drops = Counter[str]()
    client = GoClientDialect(lambda reason: drops.update([reason]))
    client.send(HELLO, 0)
    client.receive(GREETING, 0)
    client.take_outgoing()
    assert client.receive(GREETING, 0) is None
    assert client.take_outgoing() == []
    assert drops == Counter({"unknown frame": 1})


def test_the_server_accepts_no_answer_before_its_greeting() -> None:
    drops = Counter[str]()
    server = GoServerDialect(lambda reason: drops.update([reason]))
    assert server.receive(b"10.0.0.0/16", 0) is None
    assert server.opening
    assert drops == Counter({"unknown frame": 1})


def test_a_packet_instead_of_the_answer_ends_the_session() -> None:
    server = GoServerDialect(uncounted)
    server.send(WELCOME, 0)
    assert isinstance(server.receive(PACKET, 0), Goodbye)


def test_other_messages_are_not_sent() -> None:
    for dialect in (GoClientDialect(uncounted), GoServerDialect(uncounted)):
        for message in (Renew(), Goodbye()):
            dialect.send(message, 0)
        assert dialect.take_outgoing() == []


@given(st.lists(st.binary(max_size=40), max_size=30))
def test_no_plaintexts_raise(plaintexts: list[bytes]) -> None:
    for dialect in (GoClientDialect(lambda _: None), GoServerDialect(lambda _: None)):
        dialect.send(WELCOME, 0)
        for plaintext in plaintexts:
            dialect.receive(plaintext, 0)
        assert len(dialect.take_outgoing()) <= 2 * len(plaintexts) + 1


def test_a_peer_is_dead_when_a_packet_stays_unanswered_for_the_timeout() -> None:
    liveness = GoLiveness(timeout=60)
    assert not liveness.dead(sent=0, received=0, now=0)
    assert not liveness.dead(sent=0, received=0, now=1000), "nothing was sent, so nothing was to be answered"
    assert not liveness.dead(sent=1, received=0, now=1005)
    assert not liveness.dead(sent=2, received=0, now=1064)
    assert liveness.dead(sent=2, received=0, now=1065)


def test_any_record_shows_that_the_peer_lives() -> None:
    liveness = GoLiveness(timeout=60)
    liveness.dead(sent=0, received=0, now=0)
    liveness.dead(sent=1, received=0, now=5)
    assert not liveness.dead(sent=2, received=1, now=64)
    assert not liveness.dead(sent=2, received=1, now=500), "all that was sent before may have been answered"
    assert not liveness.dead(sent=3, received=1, now=505)
    assert liveness.dead(sent=9, received=1, now=565)


def test_packets_before_the_first_check_do_not_count() -> None:
    liveness = GoLiveness(timeout=60)
    assert not liveness.dead(sent=1000, received=500, now=0)
    assert not liveness.dead(sent=1000, received=500, now=100)
