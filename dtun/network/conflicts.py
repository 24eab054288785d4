"""Conflicts between a configuration and this host's networks, found before anything is changed. Pure."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from dtun.network.plan import MAIN_RULE_PRIORITY, RULE_PRIORITY, Routing
from dtun.network.prefixes import covers
from dtun.network.state import Address, Network

Relation = Literal["is", "is part of", "contains"]


@dataclass(frozen=True, slots=True)
class ExistingNetwork:
    """One of the host's own networks, or one that another VPN routes."""

    network: Network
    device: str
    kind: Literal["local", "vpn"]

    def __str__(self) -> str:
        if self.kind == "local":
            return f"this host's own network {self.network} ({self.device})"
        return f"the network {self.network} of another VPN ({self.device})"


@dataclass(frozen=True, slots=True)
class RoutedNetwork:
    """A network that dtun routes into a tunnel; `description` says why, such as "behind client home"."""

    network: Network
    description: str


def client_conflicts(
    routing: Routing,
    subnets: Iterable[Network],
    servers: Iterable[Address],
    own: Iterable[Address],
    existing: Sequence[ExistingNetwork],
) -> list[str]:
    """One line for each conflict of a client. `own` are the tunnel's addresses, if they are known."""
    servers, own = list(servers), list(own)
    found = list(_bypassed(routing))
    found += [
        f"{network} bypasses the tunnel, but contains the tunnel's own address {address}"
        for address in own
        for network in routing.bypassed
        if address in network
    ]
    found += address_conflicts(own, (one for one in existing if one.kind == "local"))
    for subnet in subnets:
        found += [
            f"{subnet} is a subnet behind this client, but contains the server {server}: a routing loop"
            for server in servers
            if server in subnet
        ]
    networks = [RoutedNetwork(network, "routed through the tunnel") for network in routing.included]
    return found + list(_with_existing(networks, existing))


def address_conflicts(own: Iterable[Address], local: Iterable[ExistingNetwork]) -> list[str]:
    """One line for each of the host's networks that one of the tunnel's addresses (`own`) lies in."""
    own = list(own)
    return [
        f"the tunnel's address {address} lies in {network}: a host of that network with an address of the tunnel"
        " cannot be reached; give the server another pool, or renumber the network"
        for network in local
        for address in own
        if address in network.network
    ]


@dataclass(frozen=True, slots=True)
class RuleInFront:
    """A policy rule of another program for all packets of an IP version, with the networks that its table routes."""

    version: int
    priority: int
    table: int
    networks: tuple[Network, ...]


def rule_conflicts(routing: Routing, rules: Iterable[RuleInFront]) -> list[str]:
    """One line for each rule that comes before the tunnel's routes and takes traffic from them."""
    ours = MAIN_RULE_PRIORITY if routing.policy is None else RULE_PRIORITY
    effect = "is dropped (`on_disconnect: block`)" if routing.block else "leaves beside the tunnel"
    return [
        f"rule {rule.priority} of another program (table {rule.table}) comes before dtun's routes, so IPv{rule.version}"
        f" to {some} {effect}; remove it (`ip -{rule.version} rule del priority {rule.priority}`), or give it a"
        f" priority above {ours}"
        for rule in rules
        if rule.priority <= ours
        and (some := next((one for one in routing.included if _takes(rule.networks, one)), None)) is not None
    ]


def _takes(networks: Iterable[Network], included: Network) -> bool:
    """Whether one of `networks` contains all or half of a network that goes through the tunnel."""
    parts = [included, *included.subnets()] if included.prefixlen < included.max_prefixlen else [included]
    return any(covers([network], part) for network in networks for part in parts)


def server_conflicts(networks: Iterable[RoutedNetwork], existing: Sequence[ExistingNetwork]) -> list[str]:
    """One line for each conflict of a server's pools and clients' subnets with existing networks."""
    return list(_with_existing(networks, existing))


def _bypassed(routing: Routing) -> Iterator[str]:
    for network in routing.included:
        for bypassed in routing.bypassed:
            if relation(network, bypassed) in ("is", "is part of"):
                yield (
                    f"{network} is routed through the tunnel, but is inside {bypassed}, which bypasses it:"
                    " it stays outside"
                )


def _with_existing(networks: Iterable[RoutedNetwork], existing: Sequence[ExistingNetwork]) -> Iterator[str]:
    for routed in networks:
        for other in existing:
            how = relation(routed.network, other.network)
            if how is None or other.network.prefixlen == 0:
                continue
            text = f"{routed.network}, {routed.description}, {how} {other}: "
            if how == "is":
                yield text + "the existing route stays, and dtun's is refused"
            elif how == "is part of":
                yield text + "that part of it goes through the tunnel"
            elif routed.network.prefixlen > 1:
                # "Everything" (0.0.0.0/0 or its halves) contains every network: narrower routes are expected to stay.
                yield text + "that part of it stays outside the tunnel"


def relation(one: Network, other: Network) -> Relation | None:
    """How `one` relates to `other`; None if they do not overlap."""
    if one.version != other.version or not one.overlaps(other):
        return None
    if one == other:
        return "is"
    return "is part of" if one.prefixlen > other.prefixlen else "contains"
