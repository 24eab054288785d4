"""Control messages arrive once, whole and in order, whatever the network does to their fragments."""

import pytest
from hypothesis import given, settings, strategies as st

from dtun.protocol import frames
from dtun.protocol.channel import FIRST_RESEND, LONGEST_RESEND, MAX_MESSAGE, MAX_QUEUED, Channel
from dtun.protocol.frames import FRAGMENT_SIZE, MAX_FRAGMENTS, Ack, Control
from tests.unit.protocol.terrible_network import TerribleNetwork


class Conversation:
    """Two channels, "a" and "b", and what each has received, on a clock of their own."""

    def __init__(self, network: TerribleNetwork[str], first: int = 0) -> None:
        """`first`: the number of the first message from "a"."""
        self.network = network
        self.channels = {"a": Channel(sending=first), "b": Channel(expected=first)}
        self.received: dict[str, list[bytes]] = {"a": [], "b": []}
        self.now = 0.0

    def say(self, who: str, message: bytes) -> None:
        self.channels[who].send(message, self.now)

    def go_on(self, *, longest: float = 600.0) -> None:
        """Let time pass until everything has been acknowledged, or for `longest` seconds."""
        deadline = self.now + longest
        while self.now <= deadline:
            for who, channel in self.channels.items():
                channel.poll(self.now)
                for frame in channel.take_outgoing():
                    self.network.send("b" if who == "a" else "a", frame, self.now)
            timers = [channel.next_timer() for channel in self.channels.values()]
            upcoming = [time for time in (*timers, self.network.next_arrival()) if time is not None]
            if not upcoming:
                return
            self.now = max(self.now, min(upcoming))
            for to, frame in self.network.arrivals(self.now):
                self._arrive(to, frame)

    def _arrive(self, to: str, data: bytes) -> None:
        match frames.decode(data):
            case Control() as fragment:
                message = self.channels[to].receive(fragment)
                if message is not None:
                    self.received[to].append(message)
            case Ack() as ack:
                self.channels[to].acknowledged(ack, self.now)


some_messages = st.lists(st.binary(min_size=1, max_size=3 * FRAGMENT_SIZE), max_size=6)


@given(st.integers(), some_messages, some_messages)
@settings(max_examples=50)
def test_every_message_arrives_once_and_in_order_over_a_terrible_network(
    seed: int, from_a: list[bytes], from_b: list[bytes]
) -> None:
    network = TerribleNetwork[str](seed, drop=0.3, double=0.3, longest_delay=1.5)
    conversation = Conversation(network)
    for message in from_a:
        conversation.say("a", message)
    for message in from_b:
        conversation.say("b", message)
    conversation.go_on()
    assert conversation.received == {"a": from_b, "b": from_a}
    assert all(channel.next_timer() is None for channel in conversation.channels.values())


def test_a_message_may_have_every_length_up_to_the_longest() -> None:
    conversation = Conversation(TerribleNetwork())
    lengths = [1, FRAGMENT_SIZE - 1, FRAGMENT_SIZE, FRAGMENT_SIZE + 1, MAX_MESSAGE]
    for length in lengths:
        conversation.say("a", bytes(length))
    conversation.go_on()
    assert [len(message) for message in conversation.received["b"]] == lengths


def test_what_is_empty_or_too_long_is_refused() -> None:
    for message in (b"", bytes(MAX_MESSAGE + 1)):
        with pytest.raises(ValueError, match="a control message has"):
            Channel().send(message, 0.0)


def test_a_peer_that_acknowledges_nothing_cannot_make_us_hoard() -> None:
    channel = Channel()
    for _ in range(1 + MAX_QUEUED):
        channel.send(b"x", 0.0)
    with pytest.raises(ValueError, match="has not acknowledged"):
        channel.send(b"x", 0.0)


def test_the_numbers_of_messages_begin_anew_after_65536() -> None:
    conversation = Conversation(TerribleNetwork(), first=65534)
    conversation.channels["a"].attach_ledger(ledger := [0, 0])
    assert ledger == [65534, 0]
    said = [bytes([number]) for number in range(1, 6)]
    for message in said:
        conversation.say("a", message)
    conversation.go_on()
    assert conversation.received["b"] == said
    assert ledger == [3, 0]


def test_only_what_was_not_acknowledged_is_sent_again_less_and_less_often() -> None:
    channel = Channel()
    channel.send(bytes(2 * FRAGMENT_SIZE), 0.0)
    assert len(channel.take_outgoing()) == 2
    channel.acknowledged(Ack(0, 0), 0.01)
    times: list[float] = []
    now = 0.0
    while len(times) < 8:
        timer = channel.next_timer()
        assert timer is not None
        channel.poll(timer - 0.001)
        assert channel.take_outgoing() == [], "before its time"
        channel.poll(timer)
        assert [frames.decode(frame) for frame in channel.take_outgoing()] == [
            Control(0, 1, 2, bytes(FRAGMENT_SIZE))
        ]
        times.append(timer - now)
        now = timer
    assert times[:3] == [FIRST_RESEND, 2 * FIRST_RESEND, 4 * FIRST_RESEND]
    assert times[-1] == LONGEST_RESEND


def test_a_lost_acknowledgement_is_given_again() -> None:
    channel = Channel()
    fragment = Control(0, 0, 1, b"x")
    assert channel.receive(fragment) == b"x"
    assert channel.receive(fragment) is None
    assert channel.take_outgoing() == [Ack(0, 0).encode()] * 2


def test_acknowledgements_of_other_messages_change_nothing() -> None:
    channel = Channel()
    channel.send(b"one", 0.0)
    channel.send(b"two", 0.0)
    channel.take_outgoing()
    for ack in (Ack(1, 0), Ack(0, 1), Ack(65535, 0)):
        channel.acknowledged(ack, 0.0)
        assert channel.take_outgoing() == []
    channel.acknowledged(Ack(0, 0), 0.0)
    assert channel.take_outgoing() == [Control(1, 0, 1, b"two").encode()]
    channel.acknowledged(Ack(0, 0), 0.0)
    assert channel.next_timer() is not None, "a doubled acknowledgement is not one of the next message"


@pytest.mark.parametrize(
    ("what", "fragment"),
    [
        ("another count", Control(0, 0, 3, b"evil")),
        ("no payload", Control(0, 1, 2, b"")),
        ("a number to come", Control(1, 1, 2, b"evil")),
        ("the number before the last", Control(65534, 1, 2, b"evil")),
    ],
)
def test_a_fragment_that_does_not_fit_is_neither_taken_nor_acknowledged(what: str, fragment: Control) -> None:
    channel = Channel()
    channel.receive(Control(0, 0, 2, b"good "))
    channel.take_outgoing()
    assert channel.receive(fragment) is None
    assert channel.take_outgoing() == [], what
    assert channel.receive(Control(0, 1, 2, b"work")) == b"good work"


def test_an_empty_fragment_does_not_settle_how_many_there_are() -> None:
    channel = Channel()
    assert channel.receive(Control(0, 63, 64, b"")) is None
    assert channel.receive(Control(0, 0, 1, b"x")) == b"x"


hostile = st.builds(
    lambda message, count, index, payload: Control(message, index % count, count, payload),
    st.sampled_from([65535, 0, 1, 2, 3]),
    st.integers(1, MAX_FRAGMENTS),
    st.integers(0, MAX_FRAGMENTS),
    st.binary(max_size=20),
)


@given(st.lists(hostile, max_size=60))
def test_no_fragments_make_it_grow_or_raise(fragments: list[Control]) -> None:
    channel = Channel()
    for fragment in fragments:
        channel.receive(fragment)
        assert len(channel._fragments) <= MAX_FRAGMENTS
        assert len(channel.take_outgoing()) <= 1
