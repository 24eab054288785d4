"""The host's own network, outside the tunnel: its routes to the servers, default gateways, local networks."""

from collections.abc import Collection
from dataclasses import replace

from dtun.network.plan import Hop, Routing, UnderlayRoutes, needs_host_route
from dtun.network.state import Address
from dtun.platform.interface import ForeignRule, Kernel, LocalNetwork, NextHop
from dtun.session.udp import SockAddr, host_of


class Underlay:
    """Reads the host's routes. `routes` is what was read, the input of `plan_client`; `local` has devices as well.

    `rules` are other programs' policy rules.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.routes = UnderlayRoutes()
        self.local: tuple[LocalNetwork, ...] = ()
        self.rules: tuple[ForeignRule, ...] = ()

    async def refresh(self, routing: Routing) -> None:
        """Read the routes again. A server that has no route now keeps its last one.

        Raises:
            UnavailableError: the kernel does not answer.
        """
        gateways = {}
        for version in {network.version for network in routing.bypassed}:
            hop = await self._kernel.default_hop(version)
            if hop is not None:
                gateways[version] = _hop(hop)
        self.rules = tuple(await self._kernel.foreign_rules())
        self.local = tuple(await self._kernel.local_networks())
        local = [network.network for network in self.local]
        servers = dict(self.routes.servers)
        for server in servers:
            hop = await self.next_hop(server, routing)
            if hop is not None:
                servers[server] = _hop(hop)
        advertised = await self._kernel.advertised_devices() if routing.forwarding else []
        self.routes = replace(
            self.routes,
            servers=servers,
            gateways=gateways,
            local=tuple(local),
            advertised=tuple(advertised),
        )

    async def next_hop(self, server: Address, routing: Routing) -> NextHop | None:
        """The way of the tunnel's own packets; None if there is none.

        Raises:
            UnavailableError: the kernel does not answer.
        """
        return await self._kernel.next_hop(
            server, routing.policy.mark if routing.policy is not None else None
        )

    async def add_server(self, server: SockAddr, routing: Routing) -> bool:
        """Read the route to a server before the first packet to it. False if there is none.

        Raises:
            UnavailableError: the kernel does not answer.
        """
        address = host_of(server)
        hop = await self.next_hop(address, routing)
        # Without a hop, too: later routes into the tunnel must not take the server with them.
        known = _hop(hop) if hop is not None else self.routes.servers.get(address)
        self.routes = replace(
            self.routes,
            servers={**self.routes.servers, address: known},
            ports=self.routes.ports | {(address, server[1])},
        )
        return hop is not None or not needs_host_route(routing, address)

    async def add_name_servers(self, routing: Routing, *, but: Collection[Address]) -> None:
        """Route the host's name servers like servers, so that the names of servers can be looked up.

        Raises:
            UnavailableError: the kernel does not answer.
        """
        for address in self._kernel.name_servers():
            if address in but or not needs_host_route(routing, address):
                continue
            hop = await self._kernel.next_hop(address)
            if hop is not None:
                self.routes = replace(self.routes, servers={**self.routes.servers, address: _hop(hop)})

    def remove_name_servers(self) -> None:
        """Undo `add_name_servers`, but for those that are servers as well."""
        servers = {address for address, _ in self.routes.ports}
        kept = {address: hop for address, hop in self.routes.servers.items() if address in servers}
        self.routes = replace(self.routes, servers=kept)

    def remove_other_servers(self, server: SockAddr) -> None:
        """Keep only this server: the others no longer need a route outside the tunnel."""
        address = host_of(server)
        self.routes = replace(
            self.routes,
            servers={other: hop for other, hop in self.routes.servers.items() if other == address},
            ports=frozenset((other, port) for other, port in self.routes.ports if other == address),
        )


def _hop(hop: NextHop) -> Hop:
    return Hop(hop.device, hop.gateway, hop.route_source)
