"""The native dialect: each side against the other, over a network that loses records."""

from collections import Counter
from ipaddress import IPv4Address, IPv4Network, IPv6Network

from hypothesis import given, settings, strategies as st

from dtun.protocol.frames import MAX_FRAGMENTS, Control, Echo, Kind, Notice, Probe
from dtun.protocol.messages import Goodbye, Hello, Message, Welcome
from dtun.session.dialect import FRAMES_PER_SECOND, Dialect, NativeDialect
from tests.unit.protocol.terrible_network import TerribleNetwork

WELCOME = Welcome(address=IPv4Address("10.86.0.2"), peer=IPv4Address("10.86.0.1"))
HELLO = Hello(subnets=(IPv6Network("fd00::/64"), IPv4Network("10.0.0.0/16"), IPv4Network("10.9.0.0/16")))


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


def test_a_peer_that_talks_too_much_is_heard_later_and_an_honest_one_at_once() -> None:
    counted = Counter[str]()
    dialect = NativeDialect(lambda reason: counted.update([reason]), 10, 30, 0)

    def messages_in(seconds: float, since: float, number: int) -> int:
        """How many of its largest messages a peer gets through that sends one each 50 ms and repeats the lost ones."""
        for moment in range(int(seconds * 20)):
            for index in range(MAX_FRAGMENTS):
                dialect.receive(
                    Control(number & 0xFFFF, index, MAX_FRAGMENTS, b"x").encode(), since + moment / 20
                )
            acks = {plaintext for plaintext in dialect.take_outgoing() if plaintext[0] == Kind.ACK}
            number += len(acks) == MAX_FRAGMENTS
        return number

    assert messages_in(0.05, 0.0, 0) == 1
    assert messages_in(10, 0.05, 1) <= 8
    assert counted["too many control messages"] > 0


def test_the_smallest_frames_are_limited_too() -> None:
    counted = Counter[str]()
    dialect = NativeDialect(lambda reason: counted.update([reason]), 10, 30, 0)
    for number in range(20_000):
        dialect.receive(Probe(1).encode(), number / 20_000)
    assert len(dialect.take_outgoing()) <= 2 * FRAMES_PER_SECOND
    assert counted["too many frames"] >= 20_000 - 2 * FRAMES_PER_SECOND
    dialect.receive(Probe(2).encode(), 2.0)
    assert dialect.take_outgoing() == [Echo(2).encode()]


@given(st.lists(st.binary(max_size=40), max_size=30))
def test_no_plaintexts_raise(plaintexts: list[bytes]) -> None:
    dialect = NativeDialect(lambda _: None, 10, 30, 0)
    dialect.send(WELCOME, 0)
    for plaintext in plaintexts:
        dialect.receive(plaintext, 0)
    assert len(dialect.take_outgoing()) <= 2 * len(plaintexts) + 1
