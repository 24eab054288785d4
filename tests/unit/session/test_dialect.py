"""The two ways to talk, each side against the other over a network that loses records."""

from collections import Counter
from ipaddress import IPv4Address, IPv4Network, IPv6Network

from hypothesis import given, settings, strategies as st

from dtun.protocol.frames import Notice
from dtun.protocol.messages import Goodbye, Hello, Message, Renew, Welcome
from dtun.session.dialect import GREETING_RESEND, Dialect, GoClientDialect, GoServerDialect, NativeDialect
from tests.unit.protocol.terrible_network import TerribleNetwork

WELCOME = Welcome(address=IPv4Address("10.86.0.2"), peer=IPv4Address("10.86.0.1"))
HELLO = Hello(subnets=(IPv6Network("fd00::/64"), IPv4Network("10.0.0.0/16"), IPv4Network("10.9.0.0/16")))
GREETING = bytes([10, 86, 0, 2, 10, 86, 0, 1])
PACKET = b"\x45" + bytes(19)


def uncounted(reason: str) -> None:
    raise AssertionError(f"dropped: {reason}")


def talk(
    network: TerribleNetwork[str], client: Dialect, server: Dialect, *, longest: float = 120.0
) -> dict[str, list[Message]]:
    """Carry plaintexts to and fro until each side has heard something, or for `longest` seconds."""
    now = 0.0
    heard: dict[str, list[Message]] = {"client": [], "server": []}
    sides = {"client": client, "server": server}
    while now <= longest and not all(heard.values()):
        for name, side in sides.items():
            side.poll(0, now)
            for plaintext in side.take_outgoing():
                network.send("server" if name == "client" else "client", plaintext, now)
        for to, plaintext in network.arrivals(now):
            message = sides[to].receive(plaintext, now)
            if message is not None:
                heard[to].append(message)
        now += 0.05
    return heard


def test_the_original_greets_first_and_the_client_answers() -> None:
    client, server = GoClientDialect(uncounted), GoServerDialect(uncounted)
    client.send(HELLO, 0)
    assert client.take_outgoing() == [], "it waits to be greeted"
    server.send(WELCOME, 0)
    assert server.take_outgoing() == [GREETING]
    assert client.receive(GREETING, 0) == WELCOME
    assert client.take_outgoing() == [b"10.0.0.0/16"]
    assert server.receive(b"10.0.0.0/16", 0) == Hello(subnets=(IPv4Network("10.0.0.0/16"),))
    assert not client.opening
    assert not server.opening


def test_a_greeting_that_comes_before_we_said_hello_is_answered_with_our_subnet() -> None:
    client = GoClientDialect(uncounted)
    assert client.receive(GREETING, 0) == WELCOME
    assert client.take_outgoing() == []
    client.send(HELLO, 0)
    client.send(HELLO, 0)
    assert client.take_outgoing() == [b"10.0.0.0/16"]


@given(st.integers(), st.floats(0, 0.8))
@settings(max_examples=40)
def test_a_lost_greeting_does_not_hang_the_original(seed: int, drop: float) -> None:
    """The answer is not repeated by an original client, so only the way to the client is bad here."""
    client, server = GoClientDialect(uncounted), GoServerDialect(lambda _: None)
    client.send(HELLO, 0)
    server.send(WELCOME, 0)
    network = TerribleNetwork[str](seed, drop=drop)
    now = 0.0
    while client.opening:
        assert now < 1000, "the greeting does not come again"
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


def test_a_second_greeting_is_no_packet_and_changes_nothing() -> None:
    drops = Counter[str]()
    client = GoClientDialect(lambda reason: drops.update([reason]))
    client.send(HELLO, 0)
    client.receive(GREETING, 0)
    client.take_outgoing()
    assert client.receive(GREETING, 0) is None
    assert client.take_outgoing() == []
    assert drops == Counter({"unknown frame": 1})


def test_the_server_takes_nothing_for_an_answer_before_it_has_greeted() -> None:
    drops = Counter[str]()
    server = GoServerDialect(lambda reason: drops.update([reason]))
    assert server.receive(b"10.0.0.0/16", 0) is None
    assert server.opening
    assert drops == Counter({"unknown frame": 1})


def test_packets_instead_of_an_answer_end_the_session_for_a_new_one() -> None:
    server = GoServerDialect(uncounted)
    server.send(WELCOME, 0)
    assert isinstance(server.receive(PACKET, 0), Goodbye)


def test_the_original_has_no_words_for_the_rest() -> None:
    for dialect in (GoClientDialect(uncounted), GoServerDialect(uncounted)):
        for message in (Renew(), Goodbye()):
            dialect.send(message, 0)
        assert dialect.take_outgoing() == []


@given(st.integers())
@settings(max_examples=30)
def test_native_peers_understand_each_other_over_a_terrible_network(seed: int) -> None:
    client, server = NativeDialect(uncounted, 1, 1000, 0), NativeDialect(uncounted, 1, 1000, 0)
    client.send(HELLO, 0)
    server.send(WELCOME, 0)
    network = TerribleNetwork[str](seed, drop=0.4, double=0.3, longest_delay=1.0)
    assert talk(network, client, server) == {"client": [WELCOME], "server": [HELLO]}


def test_a_native_goodbye_waits_for_nobody() -> None:
    dialect = NativeDialect(uncounted, 10, 30, 0)
    dialect.send(HELLO, 0)
    dialect.take_outgoing()
    dialect.send(Goodbye(reason="stopped"), 0)
    assert dialect.take_outgoing() == [Notice(b'{"type":"goodbye","reason":"stopped"}').encode()]


def test_the_native_timer_is_the_earlier_of_resending_and_keepalive() -> None:
    dialect = NativeDialect(uncounted, 10, 30, 0)
    dialect.poll(0, 0)
    assert dialect.next_timer() == 10
    dialect.send(HELLO, 9.9)
    assert dialect.next_timer() == 10
    dialect.poll(0, 10)
    assert dialect.next_timer() == 10.15


@given(st.lists(st.binary(max_size=40), max_size=30))
def test_no_plaintexts_raise(plaintexts: list[bytes]) -> None:
    for dialect in (
        NativeDialect(lambda _: None, 10, 30, 0),
        GoClientDialect(lambda _: None),
        GoServerDialect(lambda _: None),
    ):
        dialect.send(WELCOME, 0)
        for plaintext in plaintexts:
            dialect.receive(plaintext, 0)
        assert len(dialect.take_outgoing()) <= 2 * len(plaintexts) + 1
