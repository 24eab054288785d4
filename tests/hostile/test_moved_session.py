"""A record that somebody caught on the path and sent from the address of a victim."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.unit.sites import RawClient, Site, packet, serving, wait_for, waiting_at

FLOOD = 300


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with serving(tmp_path) as made:
        yield made


async def test_the_victim_gets_three_times_the_record_and_the_client_is_found_again(site: Site) -> None:
    client = RawClient(site)
    await client.connect()
    with closing(client.socket), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as victim:
        victim.setblocking(False)
        victim.connect(client.target)
        caught = client.session.association.seal(packet("10.0.0.1"))
        victim.send(caught)
        link = site.server.identities.by_name["demo"].link
        assert link is not None
        await wait_for(lambda: link.peer == victim.getsockname(), "the session to move")
        for number in range(FLOOD):
            site.tun().host.send(packet("192.0.2.9", "10.0.0.1", number=number))
            await asyncio.sleep(0)
        await wait_for(lambda: link.drops["for a new address that is not proven"] > FLOOD / 2, "the drops")
        assert 0 < sum(map(len, waiting_at(victim))) <= 3 * len(caught)

        # It has not moved, and its next record says so. Its own address is proven.
        client.send(packet("10.0.0.1"))
        await wait_for(lambda: link.peer == client.socket.getsockname(), "the session to come back")
        waiting_at(client.socket)
        before = link.drops["for a new address that is not proven"]
        for number in range(20):
            site.tun().host.send(packet("192.0.2.9", "10.0.0.1", number=number))
        assert await client.next_packets()
        assert link.drops["for a new address that is not proven"] == before


async def test_a_client_that_has_moved_gets_everything_after_one_round_trip(site: Site) -> None:
    client = RawClient(site)
    await client.connect()
    with client.socket:
        client.socket = client.new_socket()
    with closing(client.socket):
        link = site.server.identities.by_name["demo"].link
        assert link is not None
        client.send(packet("10.0.0.1"))
        await client.until(lambda: link.peer == client.socket.getsockname(), "the session to move")
        await client.until(lambda: link.session.new_address is None, "the proof")
        large = packet("192.0.2.9", "10.0.0.1") + bytes(1000)
        for _ in range(20):
            site.tun().host.send(large)
        got: list[bytes] = []

        def all_there() -> bool:
            got.extend(client.packets())
            return got.count(large) == 20

        await wait_for(all_there, "all packets")
        assert link.drops["for a new address that is not proven"] == 0
