"""Both ends of a session look for the MTU of a narrow path, and send in pieces what it does not take."""

from collections import Counter

import pytest

from dtun.dtls.suites import ALL_SUITES, Suite
from dtun.protocol.frames import Piece, Probe
from dtun.protocol.messages import Hello, Renew, Welcome
from dtun.protocol.record import MAX_PLAINTEXT
from dtun.session.session import PathMtuChanged
from tests.unit.pair import End, Place, World
from tests.unit.protocol.terrible_network import TerribleNetwork

HEADERS = 28
PACKET = b"\x45" + bytes(1279)


class Narrow(TerribleNetwork[Place]):
    """Tells nobody what is too large. `largest` is what has come through."""

    def __init__(self, mtu: int) -> None:
        super().__init__(longest_delay=0.02)
        self.mtu = mtu
        self.largest = 0

    def send(self, to: Place, datagram: bytes, now: float) -> None:
        size = HEADERS + len(datagram)
        if size <= self.mtu:
            self.largest = max(self.largest, size)
            super().send(to, datagram, now)


def looking(mtu: int, **settings: object) -> tuple[World, Narrow, End, End]:
    """A session whose both ends have begun to look."""
    network = Narrow(1500)
    world = World(network, **settings)  # type: ignore[arg-type]
    network.longest_delay = 0.0
    client, server = world.pair()
    network.longest_delay, network.mtu = 0.02, mtu
    for end in (client, server):
        end.session.start_discovery(1500, HEADERS, smallest=576, now=world.now)
    return world, network, client, server


def mtus(*ends: End) -> list[int]:
    return [end.session.path.current if end.session.path else 0 for end in ends]


@pytest.mark.parametrize("suite", ALL_SUITES, ids=lambda suite: suite.label)
def test_probes_have_the_size_that_they_ask_for_with_every_cipher(suite: Suite) -> None:
    world, network, client, server = looking(1300, suites=(suite,))
    world.advance(5)
    for mtu in mtus(client, server):
        assert 1292 < mtu <= 1300
    assert network.largest == max(mtus(client, server))


def test_the_owner_hears_of_every_change_and_of_nothing_else() -> None:
    world, network, client, server = looking(1500)
    world.advance(30)
    assert PathMtuChanged() not in client.events + server.events
    network.mtu = 1400
    for _ in range(10):
        for end in (client, server):
            end.session.packet_too_big(1400, world.now)
        world.advance(1)
    assert mtus(client, server) == [1400, 1400]
    assert client.events.count(PathMtuChanged()) == server.events.count(PathMtuChanged()) == 1


def test_the_round_trip_time_is_still_that_of_the_keepalive() -> None:
    world, _, client, _ = looking(1300)
    world.advance(60)
    liveness = client.session.dialect.liveness if client.session.dialect else None
    assert liveness is not None
    assert liveness.rtt is not None
    assert 0 < liveness.rtt <= 0.04


def test_what_this_host_refuses_to_send_lowers_it_at_once() -> None:
    world, _, client, _ = looking(1500)
    world.advance(5)
    client.session.poll(world.now, kernel_mtu=1400)
    client.session.probe_refused(1500, world.now)
    assert mtus(client) == [1400]
    assert client.session.take_events() == [PathMtuChanged()]


def test_packets_that_the_path_does_not_take_come_out_of_pieces() -> None:
    world, network, client, server = looking(1280)
    world.advance(5)
    cut = client.session.cut([PACKET, PACKET[:100]])
    assert len(cut) == 3
    for plaintext in cut:
        record = client.session.association.seal(plaintext)
        assert HEADERS + len(record) <= network.mtu
        server.session.receive(record, world.now)
    assert server.session.take_early_packets() == [PACKET, PACKET[:100]]
    assert not server.session.drops


def test_a_large_message_gets_through_a_path_that_takes_none_of_its_fragments() -> None:
    world, _, client, server = looking(700)
    world.advance(10)
    client.session.send(Renew(features=tuple(str(number) * 60 for number in range(10, 50))), world.now)
    world.advance(1)
    assert server.heard[-1] == Renew(features=tuple(str(number) * 60 for number in range(10, 50)))


@pytest.mark.parametrize(
    "plaintext",
    [b"\x08", b"\x08\x00\x01\x05\x02x", Piece(1, 0, 1, Piece(2, 0, 1, b"\x45").encode()).encode()],
    ids=["nothing", "beyond its count", "a piece of a piece"],
)
def test_pieces_that_make_no_sense_are_counted(plaintext: bytes) -> None:
    world, _, client, server = looking(1500)
    client.session.receive(server.session.association.seal(plaintext), world.now)
    assert client.session.drops == Counter({"unknown frame": 1})
    assert client.session.take_early_packets() == []


def test_a_probe_of_any_size_is_answered_by_a_small_echo() -> None:
    world, _, client, server = looking(1500)
    world.settle()
    client.session.receive(server.session.association.seal(Probe(5, 1400).encode()), world.now)
    (answer,) = client.session.take_outgoing()
    assert len(answer) < 60


def test_with_an_original_peer_nobody_looks_and_nothing_is_cut() -> None:
    world, _, client, server = looking(1500, go=True)
    world.advance(100)
    for end in (client, server):
        assert end.session.path is None
        assert end.session.room == MAX_PLAINTEXT
        assert end.session.take_probes() == []
    heard = [type(message) for end in (client, server) for message in end.heard]
    assert heard == [Welcome, Hello]
