"""Clients side by side over a network that drops, doubles, delays and reorders: all get their session."""

import os

import pytest

from dtun.dtls.listener import Path
from dtun.dtls.suites import DEFAULT_SUITES, Suite, by_name
from dtun.protocol.messages import Hello, Welcome
from tests.unit.pair import Place, World
from tests.unit.protocol.terrible_network import TerribleNetwork

SIDE_BY_SIDE = 50
ROUNDS = 10 if "DTUN_FUZZ_SECONDS" in os.environ else 1
GCM = by_name("TLS-PSK-WITH-AES-128-GCM-SHA256")


def is_open(world: World, path: Path) -> bool:
    client, server = world.clients[path], world.servers.get(path)
    return client.session.open and client.heard != [] and server is not None and server.session.open


@pytest.mark.parametrize("suites", [DEFAULT_SUITES, (GCM,)], ids=["default", "gcm"])
@pytest.mark.parametrize("seed", range(ROUNDS))
def test_handshakes_over_a_terrible_network_all_complete(seed: int, suites: tuple[Suite, ...]) -> None:
    """With no two drops in a row, since Mbed TLS gives up after a few tries."""
    network = TerribleNetwork[Place](seed, drop=0.2, double=0.15, longest_delay=0.02, in_a_row=1)
    world = World(network, suites=suites)
    paths = [world.connect(deadline=60) for _ in range(SIDE_BY_SIDE)]
    world.carry_in_real_time(lambda: all(is_open(world, path) for path in paths), longest=60)
    for path in paths:
        client, server = world.clients[path], world.servers[path]
        assert [type(message) for message in client.heard] == [Welcome]
        assert [type(message) for message in server.heard] == [Hello]
        assert client.session.association.records.offloaded
        assert server.session.association.records.offloaded
    assert world.failed == []
