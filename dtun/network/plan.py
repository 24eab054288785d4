"""What a client wants in the kernel, worked out as a whole from what it is told and what the host is like. Pure.

    routing: main                                        routing: policy
    main table                                           rule: unless marked, look in our table first
      0.0.0.0/1, 128.0.0.0/1     dev TUN                 our table
      bypassed networks          via the host's gateway    0.0.0.0/0            dev TUN
      the server                 via its way of today      bypassed, local      throw: on to the main table
      0.0.0.0/1, 128.0.0.0/1     unreachable, far worse    0.0.0.0/0            unreachable, far worse

The unreachable routes are the kill switch, and what keeps IPv6 in when the tunnel has none. They stay in the kernel
when the process is killed, while the routes through TUN go with the device.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Final, Literal

from dtun.network.prefixes import PrefixSet, aggregate, covers, split_default, subtract
from dtun.network.state import (
    MAIN_TABLE,
    Address,
    ClampMss,
    Dns,
    DropIPv6OutsideTunnel,
    DropOtherTrafficToServer,
    DropUnreachableIPv6,
    Filter,
    NetDevice,
    Network,
    NetworkState,
    PointToPoint,
    Route,
    Rule,
    Sysctl,
)

Version = Literal[4, 6]

BLOCK_METRIC: Final = 0xFFFF0000
"""Worse than the metric of any route that somebody else would make: it counts when all others are gone."""

RULE_PRIORITY: Final = 7217
"""Before the main table's 32766, after the local table's 0."""

MAIN_FIRST_PRIORITY: Final = RULE_PRIORITY - 1

EVERYTHING: Final[Mapping[int, Network]] = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}
FORWARDING: Final[Mapping[int, str]] = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}

_VERSIONS: Final[tuple[Version, ...]] = (4, 6)


@dataclass(frozen=True, slots=True)
class Policy:
    """The table of our own, and the firewall mark of the tunnel's own packets, which do not look there.

    `after_main`: others do so only after the main table, whose default routes (prefix length 0) do not count then.
    """

    table: int
    mark: int
    after_main: bool = False


@dataclass(frozen=True, slots=True)
class Routing:
    """What a client wants. `bypassed` is aggregated; `ipv6` None: block it if all of IPv4 goes into the tunnel."""

    device: str
    included: tuple[Network, ...] = ()
    bypassed: tuple[Network, ...] = ()
    policy: Policy | None = None
    block: bool = False
    ipv6: Literal["block", "allow"] | None = None
    forwarding: bool = False

    def everything(self, version: int) -> bool:
        """Whether all of this IP version is to go through the tunnel."""
        return EVERYTHING[version] in aggregate(
            network for network in self.included if network.version == version
        )


@dataclass(frozen=True, slots=True)
class TunnelSettings:
    """What the session in service has brought. `mtu` in bytes; `dns` is for this device."""

    mtu: int
    pairs: tuple[tuple[Address, Address], ...]
    dns: Dns | None = None

    def carries(self, version: int) -> bool:
        """Whether the tunnel has addresses of this IP version."""
        return any(local.version == version for local, _ in self.pairs)


@dataclass(frozen=True, slots=True)
class Hop:
    """How the host gets somewhere without the tunnel. `gateway` is None for a neighbour on the link."""

    device: str
    gateway: Address | None = None


@dataclass(frozen=True, slots=True)
class UnderlayRoutes:
    """The host around the tunnel: the ways to the servers, its default gateways by IP version, its own networks.

    `ports` are those of the servers (UDP).
    """

    servers: Mapping[Address, Hop] = field(default_factory=dict)
    ports: frozenset[tuple[Address, int]] = frozenset()
    gateways: Mapping[Version, Hop] = field(default_factory=dict)
    local: tuple[Network, ...] = ()


def plan_client(routing: Routing, tunnel: TunnelSettings | None, outside: UnderlayRoutes) -> NetworkState:
    """Everything that the client should have in the kernel now; without a tunnel, that is what blocks."""
    links: frozenset[NetDevice] = frozenset()
    addresses: frozenset[PointToPoint] = frozenset()
    if tunnel is not None:
        links = frozenset({NetDevice(routing.device, tunnel.mtu)})
        addresses = frozenset(PointToPoint(routing.device, local, peer) for local, peer in tunnel.pairs)
    inside = {version: _inside(routing, tunnel, version) for version in _VERSIONS}
    blocked = [version for version in _VERSIONS if _is_blocked(routing, tunnel, version)]
    if routing.policy is None:
        routes = frozenset(_main_routes(routing, inside, blocked, outside))
        rules: frozenset[Rule] = frozenset()
    else:
        routes = frozenset(_policy_routes(routing, routing.policy, inside, blocked, outside))
        rules = frozenset(_rules(routing.policy, {route.destination.version for route in routes}))
    return NetworkState(
        links,
        addresses,
        routes,
        rules,
        frozenset(_sysctls(routing, tunnel)),
        frozenset(_filters(routing, tunnel, blocked, outside)),
        frozenset({tunnel.dns} if tunnel is not None and tunnel.dns is not None else ()),
    )


def device_only(state: NetworkState) -> NetworkState:
    """The same while there is no session and traffic is to take the host's own ways: only the device is left."""
    return NetworkState(state.devices, state.addresses, sysctls=state.sysctls)


def is_pinned(routing: Routing, server: Address) -> bool:
    """Whether packets to this server would go into the tunnel, or be blocked, without a route of their own."""
    return any(server in network for network in routing.included) or (
        server.version == 6 and _may_block_ipv6(routing)
    )


def _inside(routing: Routing, tunnel: TunnelSettings | None, version: int) -> list[Network]:
    if tunnel is None or not tunnel.carries(version):
        return []
    whole = aggregate(network for network in routing.included if network.version == version)
    return [network for network in whole if not covers(routing.bypassed, network)]


def _may_block_ipv6(routing: Routing) -> bool:
    return routing.ipv6 == "block" or (
        routing.ipv6 is None and (routing.everything(4) or routing.everything(6))
    )


def _is_blocked(routing: Routing, tunnel: TunnelSettings | None, version: int) -> bool:
    """Whether what the tunnel does not take of this IP version is refused."""
    if routing.block and (routing.everything(version) or (version == 6 and _may_block_ipv6(routing))):
        return True
    if version == 4 or tunnel is None or not _may_block_ipv6(routing):
        return False
    return not (tunnel.carries(6) and routing.everything(6))


def _main_routes(
    routing: Routing, inside: Mapping[Version, list[Network]], blocked: list[Version], outside: UnderlayRoutes
) -> Iterator[Route]:
    for version in _VERSIONS:
        around, wanted = _ways(routing, inside[version], version, outside, blocked=version in blocked)
        for network in wanted:
            yield Route(network, routing.device)
        way = outside.gateways.get(version)
        if way is not None:
            for network in around:
                yield Route(network, way.device, way.gateway)
        if version in blocked:
            for network in split_default([EVERYTHING[version]]):
                yield Route(network, metric=BLOCK_METRIC, kind="unreachable")
    for server, way in outside.servers.items():
        if is_pinned(routing, server):
            yield Route(ip_network(server), way.device, way.gateway)


def _ways(
    routing: Routing, inside: list[Network], version: Version, outside: UnderlayRoutes, *, blocked: bool
) -> tuple[list[Network], list[Network]]:
    """The networks to route around the tunnel, and those to route into it."""
    # What is blocked has to be bypassed, too, whether or not the tunnel is there.
    covered = [EVERYTHING[version]] if blocked else inside
    bypassed = _parts(routing.bypassed, version, covered, but=outside.local)
    if not bypassed:
        return [], split_default(inside)
    if blocked:
        return bypassed, [network for network in split_default(inside) if not covers(bypassed, network)]
    return _fewest(inside, bypassed)


def _parts(
    networks: Iterable[Network], version: Version, of: Iterable[Network], *, but: Iterable[Network]
) -> list[Network]:
    """Those of this IP version that are inside `of`, but not inside `but`. There may be thousands."""
    inside, spared = PrefixSet(of), PrefixSet(but)
    return [
        network
        for network in networks
        if network.version == version and network in inside and network not in spared
    ]


def _fewest(included: list[Network], bypassed: list[Network]) -> tuple[list[Network], list[Network]]:
    """Routes around the tunnel and routes into it: two lists in all, or one that leaves out what is bypassed.

    The one is better if it is no longer: what is left out takes whatever way the host has for it.
    """
    left = subtract(included, bypassed)
    if len(left) <= len(split_default(included)) + len(bypassed):
        return [], split_default(left)
    return bypassed, [network for network in split_default(included) if not covers(bypassed, network)]


def _policy_routes(
    routing: Routing,
    policy: Policy,
    inside: Mapping[Version, list[Network]],
    blocked: list[Version],
    outside: UnderlayRoutes,
) -> Iterator[Route]:
    for version in _VERSIONS:
        for network in inside[version]:
            yield Route(network, routing.device, table=policy.table)
        if version in blocked:
            yield Route(EVERYTHING[version], metric=BLOCK_METRIC, table=policy.table, kind="unreachable")
        covered = [EVERYTHING[version]] if version in blocked else inside[version]
        # The server, although its packets are marked: the host's check of where answers come from (rp_filter) does
        # not know the mark.
        spared = aggregate([*routing.bypassed, *outside.local, *map(ip_network, outside.servers)])
        for network in _parts(spared, version, covered, but=()):
            if network in covered:
                continue  # nothing is left for the tunnel
            yield Route(network, table=policy.table, kind="throw")


def _rules(policy: Policy, versions: Iterable[int]) -> Iterator[Rule]:
    for version in _VERSIONS:
        if version not in versions:
            continue
        if policy.after_main:
            yield Rule(version, MAIN_FIRST_PRIORITY, MAIN_TABLE, suppress_prefix_length=0)
        yield Rule(version, RULE_PRIORITY, policy.table, unless_mark=policy.mark)


def _sysctls(routing: Routing, tunnel: TunnelSettings | None) -> Iterator[Sysctl]:
    if routing.forwarding:
        yield Sysctl(FORWARDING[4], "1")
        if tunnel is not None and tunnel.carries(6):
            yield Sysctl(FORWARDING[6], "1")


def _filters(
    routing: Routing, tunnel: TunnelSettings | None, blocked: list[Version], outside: UnderlayRoutes
) -> Iterator[Filter]:
    if routing.forwarding and tunnel is not None:
        yield ClampMss(routing.device, tunnel.mtu)
    if routing.block:
        for server, port in outside.ports:
            if is_pinned(routing, server):
                yield DropOtherTrafficToServer(server, port)
    # Linux looks past unreachable routes of IPv6 for a socket that is bound to a device.
    if 6 in blocked and routing.block:
        spared = aggregate((*routing.bypassed, *outside.local))
        yield DropIPv6OutsideTunnel(tuple(network for network in spared if network.version == 6))
    elif 6 in blocked:
        yield DropUnreachableIPv6()
