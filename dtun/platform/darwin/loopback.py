"""Routes that lead packets to the own addresses of the tunnel to this host. Pure.

The kernel makes one for IPv6. For IPv4 on a point-to-point interface it routes only the peer, so a connection from this
host to its own address would leave through the tunnel.
"""

from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from typing import Final

from dtun.network.state import PointToPoint, Route

DEVICE: Final = "lo0"
GATEWAY: Final = ip_address("127.0.0.1")


def with_own_addresses(routes: Iterable[Route], addresses: Iterable[PointToPoint]) -> frozenset[Route]:
    """`routes`, and one for each own IPv4 address, which comes before another to the same destination."""
    own = {
        network: Route(network, DEVICE, GATEWAY)
        for network in (ip_network(pair.local) for pair in addresses if pair.local.version == 4)
    }
    return frozenset((*own.values(), *(route for route in routes if route.destination not in own)))
