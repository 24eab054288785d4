"""A thousand clients over a network that drops, doubles, delays and reorders: all get their session."""

import pytest

from dtun.dtls.listener import Path
from dtun.dtls.suites import DEFAULT_SUITES, by_name
from dtun.protocol.messages import Hello, Welcome
from tests.unit.pair import Place, World
from tests.unit.protocol.terrible_network import TerribleNetwork

CLIENTS = 1000
SIDE_BY_SIDE = 125
GCM = by_name("TLS-PSK-WITH-AES-128-GCM-SHA256")


def is_open(world: World, path: Path) -> bool:
    client, server = world.clients[path], world.servers.get(path)
    return client.session.open and client.heard != [] and server is not None and server.session.open


@pytest.mark.parametrize("part", range(4))
def test_a_thousand_handshakes_over_a_terrible_network_all_complete(part: int) -> None:
    """With no two drops in a row, since Mbed TLS gives up after a few tries.

    In four parts; half of each with the default suite, which has forward secrecy and costs more time.
    """
    done = 0
    for batch in range(CLIENTS // SIDE_BY_SIDE // 4):
        seed = part * 1000 + batch
        network = TerribleNetwork[Place](seed, drop=0.2, double=0.15, longest_delay=0.02, in_a_row=1)
        world = World(network, suites=DEFAULT_SUITES if batch == 0 else (GCM,))
        paths = [world.connect(deadline=30) for _ in range(SIDE_BY_SIDE)]
        world.carry_in_real_time(lambda w=world, p=paths: all(is_open(w, path) for path in p), longest=30)  # type: ignore[misc]
        for path in paths:
            client, server = world.clients[path], world.servers[path]
            assert [type(message) for message in client.heard] == [Welcome]
            assert [type(message) for message in server.heard] == [Hello]
            assert client.session.association.records.offloaded
            assert server.session.association.records.offloaded
            done += 1
        assert world.failed == []
    assert done == CLIENTS // 4
