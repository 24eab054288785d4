"""The desired network state of a client, computed from its configuration, its session and the underlay. Pure.

    routing: main                                        routing: policy
    main table                                           rule: unless marked, use our table first
      0.0.0.0/1, 128.0.0.0/1     dev TUN                 our table
      bypassed networks          via the host's gateway    0.0.0.0/0            dev TUN
      the server                 via its present gateway   bypassed, local      throw: to the main table
      the server                 unreachable
      0.0.0.0/1, 128.0.0.0/1     unreachable               0.0.0.0/0            unreachable

The unreachable routes have the worst metric. The server's keeps the tunnel's own packets out of the tunnel when the
route to the server goes with its link. The others are the kill switch; they also block IPv6 when the tunnel has none.
When the process is killed, they stay in the kernel, and the routes through TUN are removed with the device.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from typing import Final, Literal

from dtun.network.prefixes import PrefixSet, aggregate, covers, split_default, subtract
from dtun.network.state import (
    MAIN_TABLE,
    Address,
    AnswerDirectly,
    ClampMss,
    Dns,
    DropOtherTrafficToServer,
    DropOutsideTunnel,
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
"""Worse than the metric of other programs' routes, so that the kernel uses it only when all others are gone."""

RULE_PRIORITY: Final = 7217
"""Before the main table (32766), after the local table (0)."""

MAIN_RULE_PRIORITY: Final = 32766
"""Of the kernel's rule for the main table."""

MAIN_FIRST_PRIORITY: Final = RULE_PRIORITY - 1

EVERYTHING: Final[Mapping[int, Network]] = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}
FORWARDING: Final[Mapping[int, str]] = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}
VALID_MARK: Final = "net.ipv4.conf.all.src_valid_mark"


def accept_ra(device: str) -> Sysctl:
    """Take router advertisements although the host forwards, which otherwise costs it the routes from them."""
    return Sysctl(f"net.ipv6.conf.{device}.accept_ra", "2")


_VERSIONS: Final[tuple[Version, ...]] = (4, 6)


@dataclass(frozen=True, slots=True)
class Policy:
    """Policy routing: our own table, and the firewall mark of the tunnel's UDP packets, which do not use it.

    `after_main`: the main table comes first, without its default routes. `answer_directly`: connections that came from
    outside the tunnel to this host's own addresses have the mark as well.
    """

    table: int
    mark: int
    after_main: bool = False
    answer_directly: bool = False


@dataclass(frozen=True, slots=True)
class Routing:
    """What a client is configured to route. `bypassed` is aggregated.

    `ipv6` None: block IPv6 outside the tunnel if all of IPv4 or of IPv6 goes through it. `behind`: the networks that
    the server routes to this client.
    """

    device: str
    included: tuple[Network, ...] = ()
    bypassed: tuple[Network, ...] = ()
    policy: Policy | None = None
    block: bool = False
    ipv6: Literal["block", "allow"] | None = None
    forwarding: bool = False
    behind: tuple[Network, ...] = ()

    def everything(self, version: int) -> bool:
        """Whether all of this IP version is to go through the tunnel."""
        return EVERYTHING[version] in aggregate(
            network for network in self.included if network.version == version
        )


@dataclass(frozen=True, slots=True)
class TunnelSettings:
    """What the current session brings: MTU in bytes, address pairs (local, peer), name servers."""

    mtu: int
    pairs: tuple[tuple[Address, Address], ...]
    dns: Dns | None = None

    def carries(self, version: int) -> bool:
        """Whether the tunnel has addresses of this IP version."""
        return any(local.version == version for local, _ in self.pairs)

    def without_ipv6(self) -> "TunnelSettings":
        """The same, as if the server assigned IPv4 addresses only."""
        return replace(self, pairs=tuple(pair for pair in self.pairs if pair[0].version == 4))


@dataclass(frozen=True, slots=True)
class Hop:
    """A next hop in the underlay. `gateway` is None for a destination on the link.

    `source` is the address that the host's own route prescribes, if any.
    """

    device: str
    gateway: Address | None = None
    source: Address | None = None


@dataclass(frozen=True, slots=True)
class UnderlayRoutes:
    """The underlay: next hops to the servers, default gateways by IP version, and the host's own networks.

    The next hop is None if the host has never had a route to that server. `ports` are the servers' UDP ports.
    `advertised` are the devices with router advertisements.
    """

    servers: Mapping[Address, Hop | None] = field(default_factory=dict)
    ports: frozenset[tuple[Address, int]] = frozenset()
    gateways: Mapping[Version, Hop] = field(default_factory=dict)
    local: tuple[Network, ...] = ()
    advertised: tuple[str, ...] = ()


def plan_client(routing: Routing, tunnel: TunnelSettings | None, underlay: UnderlayRoutes) -> NetworkState:
    """Everything that the client should have in the kernel now. Without a session (`tunnel` None), only what blocks."""
    devices: frozenset[NetDevice] = frozenset()
    addresses: frozenset[PointToPoint] = frozenset()
    if tunnel is not None:
        devices = frozenset({NetDevice(routing.device, tunnel.mtu)})
        addresses = frozenset(PointToPoint(routing.device, local, peer) for local, peer in tunnel.pairs)
    inside = {version: _inside(routing, tunnel, version) for version in _VERSIONS}
    blocked = [version for version in _VERSIONS if _is_blocked(routing, tunnel, version)]
    if routing.policy is None:
        routes = frozenset(_main_routes(routing, inside, blocked, underlay))
        rules: frozenset[Rule] = frozenset()
    else:
        routes = frozenset(_policy_routes(routing, routing.policy, inside, blocked, underlay))
        rules = frozenset(_rules(routing.policy, {route.destination.version for route in routes}))
    return NetworkState(
        devices,
        addresses,
        routes,
        rules,
        frozenset(_sysctls(routing, tunnel, underlay)),
        frozenset(_filters(routing, tunnel, blocked, underlay)),
        frozenset({tunnel.dns} if tunnel is not None and tunnel.dns is not None else ()),
    )


def bypass_without_way(
    routing: Routing, tunnel: TunnelSettings | None, underlay: UnderlayRoutes
) -> dict[Version, list[Network]]:
    """Bypassed networks, by IP version, that go nowhere but into the tunnel: the host has no default route."""
    found: dict[Version, list[Network]] = {}
    for version in _VERSIONS:
        if routing.policy is not None or version in underlay.gateways:
            continue
        blocked = _is_blocked(routing, tunnel, version)
        inside = _inside(routing, tunnel, version)
        around, _ = _around_and_inside(routing, inside, version, underlay, blocked=blocked)
        if around:
            found[version] = around
    return found


def device_only(state: NetworkState) -> NetworkState:
    """Without routes, rules, filters and name servers: all traffic uses the host's own routes."""
    return NetworkState(state.devices, state.addresses, sysctls=state.sysctls)


def needs_host_route(routing: Routing, server: Address) -> bool:
    """Whether the server needs a host route: else its packets would go into the tunnel or be blocked."""
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
    """Whether packets of this IP version are refused outside the tunnel."""
    if routing.block and (routing.everything(version) or (version == 6 and _may_block_ipv6(routing))):
        return True
    if version == 4 or tunnel is None or not _may_block_ipv6(routing):
        return False
    return not (tunnel.carries(6) and routing.everything(6))


def _main_routes(
    routing: Routing,
    inside: Mapping[Version, list[Network]],
    blocked: Collection[Version],
    underlay: UnderlayRoutes,
) -> Iterator[Route]:
    for version in _VERSIONS:
        around, wanted = _around_and_inside(
            routing, inside[version], version, underlay, blocked=version in blocked
        )
        for network in wanted:
            yield Route(network, routing.device)
        gateway = underlay.gateways.get(version)
        if gateway is not None:
            for network in around:
                yield Route(network, gateway.device, gateway.gateway, gateway.source)
        if version in blocked:
            for network in split_default([EVERYTHING[version]]):
                yield Route(network, metric=BLOCK_METRIC, kind="unreachable")
    for server, hop in underlay.servers.items():
        if not needs_host_route(routing, server):
            continue
        if hop is not None:
            yield Route(ip_network(server), hop.device, hop.gateway, hop.source)
        yield Route(ip_network(server), metric=BLOCK_METRIC, kind="unreachable")


def _around_and_inside(
    routing: Routing, inside: list[Network], version: Version, underlay: UnderlayRoutes, *, blocked: bool
) -> tuple[list[Network], list[Network]]:
    """The networks to route around the tunnel, and the networks to route into it."""
    # With a kill switch, bypassed networks need routes of their own even without a tunnel.
    covered = [EVERYTHING[version]] if blocked else inside
    bypassed = _parts(routing.bypassed, version, covered, but=underlay.local)
    if not bypassed:
        return [], split_default(inside)
    if blocked:
        return bypassed, [network for network in split_default(inside) if not covers(bypassed, network)]
    return _fewest(inside, bypassed)


def _parts(
    networks: Iterable[Network], version: Version, of: Iterable[Network], *, but: Iterable[Network]
) -> list[Network]:
    """Those of this IP version that are inside `of`, but not inside `but`."""
    inside, excepted = PrefixSet(of), PrefixSet(but)
    return [
        network
        for network in networks
        if network.version == version and network in inside and network not in excepted
    ]


def _fewest(included: list[Network], bypassed: list[Network]) -> tuple[list[Network], list[Network]]:
    """Networks to route around the tunnel and into it, in the fewest routes.

    Either both lists, or only routes into the tunnel that leave out the bypassed networks. The latter is preferred if
    it is not longer, because bypassed packets then use whatever routes the host has.
    """
    left = subtract(included, bypassed)
    if len(left) <= len(split_default(included)) + len(bypassed):
        return [], split_default(left)
    return bypassed, [network for network in split_default(included) if not covers(bypassed, network)]


def _policy_routes(
    routing: Routing,
    policy: Policy,
    inside: Mapping[Version, list[Network]],
    blocked: Collection[Version],
    underlay: UnderlayRoutes,
) -> Iterator[Route]:
    for version in _VERSIONS:
        for network in inside[version]:
            yield Route(network, routing.device, table=policy.table)
        if version in blocked:
            yield Route(EVERYTHING[version], metric=BLOCK_METRIC, table=policy.table, kind="unreachable")
        covered = [EVERYTHING[version]] if version in blocked else inside[version]
        # The servers, too, although the tunnel's packets are marked: reverse path filtering ignores the mark.
        outside = aggregate([*routing.bypassed, *underlay.local, *map(ip_network, underlay.servers)])
        for network in _parts(outside, version, covered, but=()):
            if network in covered:
                continue  # would leave nothing for the tunnel
            yield Route(network, table=policy.table, kind="throw")


def _rules(policy: Policy, versions: Iterable[int]) -> Iterator[Rule]:
    for version in _VERSIONS:
        if version not in versions:
            continue
        if policy.after_main:
            yield Rule(version, MAIN_FIRST_PRIORITY, MAIN_TABLE, suppress_prefix_length=0)
        yield Rule(version, RULE_PRIORITY, policy.table, unless_mark=policy.mark)


def _sysctls(routing: Routing, tunnel: TunnelSettings | None, underlay: UnderlayRoutes) -> Iterator[Sysctl]:
    if routing.policy is not None and routing.policy.answer_directly:
        # Else strict reverse path filtering, which asks without the mark, drops what comes from outside.
        yield Sysctl(VALID_MARK, "1")
    if routing.forwarding:
        yield Sysctl(FORWARDING[4], "1")
        if tunnel is not None and tunnel.carries(6):
            yield Sysctl(FORWARDING[6], "1")
            yield from map(accept_ra, underlay.advertised)


def _filters(
    routing: Routing, tunnel: TunnelSettings | None, blocked: Collection[Version], underlay: UnderlayRoutes
) -> Iterator[Filter]:
    if routing.policy is not None and routing.policy.answer_directly:
        # Without a session, too: so that it is there before the routes are.
        yield AnswerDirectly(routing.device, routing.policy.mark)
    if routing.forwarding and tunnel is not None:
        yield ClampMss(routing.device, tunnel.mtu)
    if routing.block:
        for server, port in underlay.ports:
            if needs_host_route(routing, server):
                yield DropOtherTrafficToServer(server, port)
    # Other programs' rules come before ours and their routes can be narrower. Besides, for a socket that is bound to a
    # device, Linux ignores unreachable IPv6 routes through other devices.
    if routing.block:
        for version in blocked:
            allowed = aggregate((*routing.bypassed, *underlay.local, *routing.behind))
            yield DropOutsideTunnel(
                version, tuple(network for network in allowed if network.version == version)
            )
    elif 6 in blocked:
        yield DropUnreachableIPv6()
