"""Whole sessions and the server's demultiplexer, given datagrams that nobody would send: see test_fuzz.py."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from unittest import mock

import pytest

from dtun.dtls.listener import Path as NetworkPath
from dtun.protocol import frames, record
from dtun.protocol.messages import Renew
from dtun.protocol.pieces import MAX_UNFINISHED, Cutter
from dtun.session import udp
from dtun.session.session import EARLY_PACKETS
from dtun.session.udp import Arrival
from tests.fuzz.mutate import Fuzzer
from tests.fuzz.test_fuzz import FRAMES, MESSAGES, showing
from tests.unit.pair import End, World
from tests.unit.sites import RawClient, Site, packet, serving, wait_for

FORGED = 16
"""Bytes at the end of a record that make it a forgery when they are others."""


def forged(datagram: bytes) -> bytes:
    return datagram[:-FORGED] + bytes(FORGED)


class Overheard(World):
    """Somebody listens."""

    def __init__(self) -> None:
        super().__init__()
        self.said: dict[bool, list[bytes]] = {True: [], False: []}
        send = self.network.send

        def overhear(to: tuple[bool, NetworkPath], datagram: bytes, now: float) -> None:
            self.said[to[0]].append(datagram)
            send(to, datagram, now)

        self.network.send = overhear  # type: ignore[method-assign]


def test_a_session_that_shakes_hands() -> None:
    world = Overheard()
    world.pair()
    fuzzer = Fuzzer(world.said[False])
    session = world.clients[world.connect()].session
    for number, data in enumerate(fuzzer):
        if number % 20 == 0 or session.closed is not None:
            session = world.clients[world.connect()].session
        with showing(data):
            session.receive(data, world.now)
            session.poll(world.now + number % 20 / 100)
            session.take_outgoing()
            assert session.dialect is None, "nobody has proven a key to it"
            assert session.closed is None or session.closed.reason == "handshake"
            assert session.next_timer() is None or not session.closed


@pytest.mark.parametrize("at_server", [False, True], ids=["at the client", "at the server"])
def test_an_open_session_and_strangers(at_server: bool) -> None:
    world = Overheard()
    client, server = world.pair()
    end, other = (server, client) if at_server else (client, server)
    never_sent = other.session.association.seal(packet("10.0.0.1"))
    fuzzer = Fuzzer([*world.said[at_server], *world.said[not at_server], forged(never_sent)])
    fuzzer.corpus.append(record.hello_request(1))
    heard, highest = list(end.heard), end.session.association.records.highest
    for number, data in enumerate(fuzzer):
        with showing(data):
            end.session.receive(data, world.now)
            end.session.poll(world.now + number % 100 / 100)
            assert end.session.open, "a stranger has ended it"
            assert end.session.take_early_packets() == []
            assert len(end.session.take_outgoing()) <= 8
            assert end.session.take_events() == []
            assert end.session.association.records.highest == highest
    end.session.receive(never_sent, world.now)
    assert end.session.take_early_packets() == [packet("10.0.0.1")]
    other.session.send(Renew(), world.now)
    world.settle()
    assert end.heard == [*heard, Renew()]


def conversation() -> list[bytes]:
    """Plaintexts of all kinds, but for those that end it."""
    said = [message for message in MESSAGES if b"goodbye" not in message]
    pieces = Cutter().cut([packet("10.0.0.1") * 100], 519)
    controls = [frames.Control(2, 0, 1, message).encode() for message in said]
    parts = [frames.Piece(9, 0, 1, control).encode() for control in controls[:2]]
    notices = [frames.Notice(message).encode() for message in said]
    return [*FRAMES, *controls, *notices, *pieces, *parts, packet("10.0.0.1"), b"\x60" + bytes(39), b""]


@pytest.mark.parametrize("at_server", [False, True], ids=["at the client", "at the server"])
def test_an_open_session_and_a_peer_that_has_the_key(at_server: bool) -> None:
    def opened() -> tuple[End, End]:
        client, server = World().pair()
        client.session.start_discovery(1500, 28, smallest=1280, now=1000.0)
        server.session.start_discovery(1500, 28, smallest=1280, now=1000.0)
        return (server, client) if at_server else (client, server)

    end, peer = opened()
    for number, plaintext in enumerate(Fuzzer(conversation())):
        with showing(plaintext):
            now = 1000.0 + number % 1000 / 1000
            end.session.receive(peer.session.association.seal(plaintext[: record.MAX_PLAINTEXT]), now)
            end.session.poll(now)
            assert end.session.closed is None or end.session.closed.by_peer
            assert len(end.session._early) <= EARLY_PACKETS
            assert len(end.session._joiner._unfinished) <= MAX_UNFINISHED
            assert len(end.session.take_outgoing()) <= 64
            assert len(end.session.take_probes()) <= 64
        if number % 4000 == 3999:
            end.session.take_early_packets()
        if end.session.closed is not None:
            end, peer = opened()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with serving(tmp_path) as made:
        yield made


async def test_the_listening_socket_and_unknown_addresses(site: Site) -> None:
    client = RawClient(site)
    said: list[bytes] = []
    with client.socket, mock.patch.object(udp, "receive", overheard(said)):
        await client.connect()
        demux = site.server.demux
        (link,) = demux.links
        await wait_for(lambda: link.attached, "the data plane")
        fuzzer = Fuzzer([*said, record.hello_request(1), forged(client.session.association.seal(b"next"))])
        peer = link.peer
        answers: list[bytes] = []
        with mock.patch.object(udp, "answer", lambda _, datagram, *__: answers.append(datagram)):
            for number, data in enumerate(fuzzer):
                if number % 200 == 199:
                    client.turn()
                    await asyncio.sleep(0)
                    fuzzer.corpus[-1] = forged(client.session.association.seal(b"next"))
                highest = link.highest
                stranger = ("127.0.0.1", fuzzer.numbers.randint(1024, 1100))
                answers.clear()
                with showing(data):
                    half_open = demux.half_open
                    demux.receive(1, Arrival(data, stranger, "127.0.0.1"))
                    assert sum(map(len, answers)) <= len(data), "more than one answer, or a larger one"
                    assert demux.half_open == half_open, "it has no good cookie"
                    # In the client's name, from which the cookie is good.
                    demux.receive(1, Arrival(data, peer, "127.0.0.1"))
                    assert demux.half_open <= 1
                    assert (list(demux.links), link.peer, link.highest) == ([link], peer, highest)
        assert {"record of no session", "unexpected record"} <= demux.drops.keys()
        assert link.session.open
        with client.new_socket() as elsewhere:
            elsewhere.send(client.session.association.seal(packet("10.0.0.1")))
            await wait_for(lambda: link.peer == elsewhere.getsockname(), "the session to move")


def overheard(said: list[bytes]) -> Callable[..., Arrival | None]:
    """What comes to the listening socket."""
    receive = udp.receive

    def listen(*arguments: object) -> Arrival | None:
        arrival = receive(*arguments)  # type: ignore[arg-type]
        if arrival is not None:
            said.append(arrival.datagram)
        return arrival

    return listen
