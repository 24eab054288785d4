"""What a start would change in the kernel, found out by the parts that would do it, on a host that is only looked at.

What only the other side knows is assumed: a client's addresses come from its server, routes from a server's clients.
"""

import asyncio
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Protocol

from dtun.client.routing import routing_of
from dtun.client.tunnel import Tunnel
from dtun.client.underlay import host_of
from dtun.config import ANY_ID, ClientConfig, Hook, ServerConfig
from dtun.network.plan import Routing
from dtun.network.state import Address, NetworkState, PointToPoint, Route
from dtun.platform.desired import Rejections
from dtun.platform.interface import Kernel
from dtun.protocol.messages import Welcome
from dtun.server.identities import Identities
from dtun.server.leases import PoolFullError

ASSUMED_MTU = 1400
"""Bytes, until a session tells."""

# Addresses for documentation (RFC 5737, RFC 3849): they stand for what the server will say.
ASSUMED = Welcome(
    address=IPv4Address("192.0.2.2"),
    peer=IPv4Address("192.0.2.1"),
    address6=IPv6Address("2001:db8::2"),
    peer6=IPv6Address("2001:db8::1"),
)


class LookedAt(Kernel, Protocol):
    """A host that changes nothing, and remembers what `apply` was asked for last."""

    desired: NetworkState


@dataclass(frozen=True, slots=True)
class ClientDryRun:
    """`before` is in the kernel from the start on, `after` with the first session. `servers` as far as they resolve."""

    before: NetworkState
    after: NetworkState
    routing: Routing
    servers: tuple[Address, ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ServerDryRun:
    """`state` is in the kernel from the start on; `later` the routes that each client may bring, by its id."""

    state: NetworkState
    later: Mapping[str, tuple[Route, ...]]
    remarks: tuple[str, ...]


async def of_client(config: ClientConfig, host: LookedAt, welcome: Welcome | None = None) -> ClientDryRun:
    """`welcome` is what the server has said, if there is a session already; `host` must change nothing.

    Raises:
        DtunError: the host cannot be looked at.
    """
    loop = asyncio.get_running_loop()
    end = Tunnel(config, host, _run_nothing, loop)
    remarks = []
    servers: list[Address] = []
    try:
        await end.open()
        for server in config.servers:
            try:
                found = await loop.getaddrinfo(server.host, server.port, type=socket.SOCK_DGRAM)
            except OSError:
                remarks.append(f"{server.host}: the name cannot be resolved now")
                continue
            for *_, address in found:
                if not await end.make_way(address):
                    remarks.append(f"{address[0]}: the host has no route to this server now")
                servers.append(host_of(address))
        before = host.desired
        assumed = welcome or (ASSUMED if _wants_ipv6(config) else _without_ipv6(ASSUMED))
        await end.configure(assumed, config.mtu or ASSUMED_MTU)
        after = host.desired
        refusals = Rejections("client")
        refusals.replace(end.refused)
        remarks += refusals.lines
    finally:
        await end.close()
    routing = routing_of(config, end.device, assumed.routes)
    return ClientDryRun(before, after, routing, tuple(dict.fromkeys(servers)), tuple(remarks))


async def of_server(config: ServerConfig, host: LookedAt) -> ServerDryRun:
    """`host` must change nothing; neither are leases written.

    Raises:
        DtunError: the host cannot be looked at.
    """
    identities = Identities(config, host, _run_nothing, asyncio.get_running_loop(), read_only=True)
    remarks = []
    later = {}
    try:
        for name, entry in config.clients.items():
            if name == ANY_ID:
                remarks.append("any other id gets a device and an address when it connects")
                continue
            try:
                identity = await identities.create(name)
            except PoolFullError:
                remarks.append(f"client {name}: the address pool {config.pool} is full")
                continue
            if not entry.any_private:
                later[name] = tuple(Route(subnet, identity.tun.name) for subnet in entry.subnets)
        await identities.forward()
        state = host.desired
        refused = dict.fromkeys(line for one in identities.by_name.values() for line in one.rejections)
    finally:
        for identity in identities.by_name.values():
            identity.close()
    return ServerDryRun(state, later, (*remarks, *refused, *identities.forwarding.warnings))


def is_assumed(pair: PointToPoint) -> bool:
    """Whether these addresses only stand for those that the server will give."""
    return pair.local in (ASSUMED.address, ASSUMED.address6)


def _wants_ipv6(config: ClientConfig) -> bool:
    return any(network.version == 6 for network in (*config.routes, *config.subnets))


def _without_ipv6(welcome: Welcome) -> Welcome:
    return welcome.model_copy(update={"address6": None, "peer6": None})


async def _run_nothing(hook: Hook, variables: Mapping[str, str], what: str) -> bool:
    del hook, variables, what
    return True
