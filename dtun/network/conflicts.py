"""What in a configuration cannot work on this host, or not as it reads: found before anything is changed. Pure.

Two networks are either apart, or one is a part of the other; what matters is which.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from dtun.network.plan import Routing
from dtun.network.state import Address, Network

Relation = Literal["is", "is part of", "contains"]


@dataclass(frozen=True, slots=True)
class ExistingNetwork:
    """A network that is there already: one of the host's own, or one that another VPN routes."""

    network: Network
    device: str
    kind: Literal["local", "vpn"]

    def __str__(self) -> str:
        whose = "this host's own network" if self.kind == "local" else "a network of another VPN,"
        return f"{whose} {self.network} ({self.device})"


@dataclass(frozen=True, slots=True)
class RoutedNetwork:
    """A network that dtun is to route into a tunnel, and whose it is."""

    network: Network
    what: str


def client_conflicts(
    routing: Routing,
    subnets: Iterable[Network],
    servers: Iterable[Address],
    own: Iterable[Address],
    neighbours: Sequence[ExistingNetwork],
) -> list[str]:
    """A line for each conflict of a client. `own` are the tunnel's addresses, as far as they are known."""
    found = list(_bypassed_inside(routing))
    found += [
        f"{network} is kept out of the tunnel, but contains the tunnel's own address {address}"
        for address in own
        for network in routing.bypassed
        if address in network
    ]
    servers = list(servers)
    for subnet in subnets:
        found += [
            f"{subnet} is said to be behind this client, but contains the server {server}: a loop"
            for server in servers
            if server in subnet
        ]
    claims = [RoutedNetwork(network, "to go through the tunnel") for network in routing.included]
    return found + list(_with_neighbours(claims, neighbours))


def server_conflicts(claims: Iterable[RoutedNetwork], neighbours: Sequence[ExistingNetwork]) -> list[str]:
    """A line for each conflict of a server: its pools and its clients' subnets with what is there already."""
    return list(_with_neighbours(claims, neighbours))


def _bypassed_inside(routing: Routing) -> Iterator[str]:
    for network in routing.included:
        for bypassed in routing.bypassed:
            if relation(network, bypassed) in ("is", "is part of"):
                yield (
                    f"{network} is to go through the tunnel, but is inside {bypassed}, which is kept out of it:"
                    " it stays outside"
                )


def _with_neighbours(claims: Iterable[RoutedNetwork], neighbours: Sequence[ExistingNetwork]) -> Iterator[str]:
    for claim in claims:
        for neighbour in neighbours:
            how = relation(claim.network, neighbour.network)
            if how is None or neighbour.network.prefixlen == 0:
                continue
            text = f"{claim.network}, {claim.what}, {how} {neighbour}: "
            if how == "is":
                yield text + "the route there stays, and dtun's is refused"
            elif how == "is part of":
                yield text + "that part of it goes into the tunnel"
            elif claim.network.prefixlen > 1:
                # Everything contains every network, and what is more specific goes its own way as it should.
                yield text + "that part of it stays outside the tunnel"


def relation(one: Network, other: Network) -> Relation | None:
    """How one network stands to another; None if they have nothing in common."""
    if one.version != other.version or not one.overlaps(other):
        return None
    if one == other:
        return "is"
    return "is part of" if one.prefixlen > other.prefixlen else "contains"
