"""What a start would change in the kernel: the code of a start runs on a kernel that only records changes.

Values that only the peer knows are assumed: the addresses of a client, and the routes of a server's clients.
"""

import asyncio
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_network

from dtun.client.routing import routing_of
from dtun.client.tunnel import Tunnel
from dtun.config import ANY_ID, ClientConfig, Hook, ServerConfig
from dtun.network.plan import Routing
from dtun.network.state import Address, Network, NetworkState, PointToPoint, Route
from dtun.platform.dry_run import ReadOnlyKernel
from dtun.protocol.messages import Welcome
from dtun.server.identities import Identities
from dtun.server.leases import PoolFullError
from dtun.session.udp import host_of

ASSUMED_MTU = 1400
"""Bytes. A session finds out the real one."""

# Documentation addresses (RFC 5737, RFC 3849), in place of those that the server will assign.
ASSUMED = Welcome(
    address=IPv4Address("192.0.2.2"),
    peer=IPv4Address("192.0.2.1"),
    address6=IPv6Address("2001:db8::2"),
    peer6=IPv6Address("2001:db8::1"),
)


@dataclass(frozen=True, slots=True)
class ClientDryRun:
    """The kernel's state after the start (`before`) and with a session (`after`). `servers`: those that resolve."""

    before: NetworkState
    after: NetworkState
    routing: Routing
    servers: tuple[Address, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ServerDryRun:
    """The kernel's `state` after the start. `later`: the routes that each client may add, by its id.

    `conflicts` are reasons why a start is refused.
    """

    state: NetworkState
    later: Mapping[str, tuple[Route, ...]]
    notes: tuple[str, ...]
    conflicts: tuple[str, ...]


async def of_client(
    config: ClientConfig,
    host: ReadOnlyKernel,
    welcome: Welcome | None = None,
    *,
    pushed: Iterable[Network] = (),
) -> ClientDryRun:
    """Start a client on `host`, with a session whose Welcome is `welcome`, or an assumed one with the `pushed` routes.

    Raises:
        DtunError: the host's network cannot be read.
    """
    loop = asyncio.get_running_loop()
    tunnel = Tunnel(config, host, _run_nothing, loop)
    notes = []
    servers: list[Address] = []
    try:
        await tunnel.open()
        for server in config.servers:
            try:
                found = await loop.getaddrinfo(server.host, server.port, type=socket.SOCK_DGRAM)
            except OSError:
                notes.append(f"{server.host}: the name cannot be resolved now")
                continue
            for *_, address in found:
                if not await tunnel.route_to_server(address):
                    notes.append(f"{address[0]}: the host has no route to this server now")
                servers.append(host_of(address))
        before = host.desired
        assumed = welcome or _assumed(config).model_copy(update={"routes": tuple(pushed)})
        await tunnel.configure(assumed, config.mtu or ASSUMED_MTU)
        after = host.desired
        notes += [*tunnel.bypass_warnings, *tunnel.refusals]
    finally:
        await tunnel.close()
    routing = routing_of(config, tunnel.device, assumed.routes)
    return ClientDryRun(before, after, routing, tuple(dict.fromkeys(servers)), tuple(notes))


async def of_server(config: ServerConfig, host: ReadOnlyKernel) -> ServerDryRun:
    """Start a server on `host`. No leases are written.

    Raises:
        DtunError: the host's network cannot be read.
    """
    identities = Identities(config, host, _run_nothing, asyncio.get_running_loop(), read_only=True)
    notes = []
    later = {}
    try:
        for name, entry in config.clients.items():
            if name == ANY_ID:
                notes.append("any other id gets a device and an address when it connects")
                continue
            try:
                identity = await identities.create(name)
            except PoolFullError:
                notes.append(f"client {name}: the address pool {config.pool} is full")
                continue
            if not entry.any_private:
                later[name] = tuple(Route(subnet, identity.tun.name) for subnet in entry.subnets)
        await identities.reserve_pools()
        await identities.forward()
        conflicts = await identities.pool_conflicts()
        state = host.desired
        refused = dict.fromkeys(line for one in identities.by_name.values() for line in one.rejections)
    finally:
        for identity in identities.by_name.values():
            identity.close()
    return ServerDryRun(state, later, (*notes, *refused, *identities.forwarding.warnings), tuple(conflicts))


def is_assumed(pair: PointToPoint) -> bool:
    """Whether these addresses stand for those that the server will assign."""
    return pair.local in (ASSUMED.address, ASSUMED.address6)


def is_assumed_route(route: Route) -> bool:
    """Whether this route leads to an address that stands for one that the server will assign."""
    return route.destination == ip_network(ASSUMED.address)


def _assumed(config: ClientConfig) -> Welcome:
    if any(network.version == 6 for network in (*config.routes, *config.subnets)):
        return ASSUMED
    return ASSUMED.model_copy(update={"address6": None, "peer6": None})


async def _run_nothing(hook: Hook, variables: Mapping[str, str], what: str) -> bool:
    del hook, variables, what
    return True
