"""The host's own network, outside the tunnel: its routes to the servers, default gateways, local networks."""

from dataclasses import replace

from dtun.network.plan import Hop, Routing, UnderlayRoutes, needs_host_route
from dtun.platform.interface import Kernel, LocalNetwork, NextHop
from dtun.session.udp import SockAddr, host_of


class Underlay:
    """Reads the host's routes. `routes` is what was read, the input of `plan_client`; `local` has devices as well."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.routes = UnderlayRoutes()
        self.local: tuple[LocalNetwork, ...] = ()

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
        self.local = tuple(await self._kernel.local_networks())
        local = [network.network for network in self.local]
        servers = dict(self.routes.servers)
        for server in servers:
            hop = await self._kernel.next_hop(server)
            if hop is not None:
                servers[server] = _hop(hop)
        self.routes = replace(self.routes, servers=servers, gateways=gateways, local=tuple(local))

    async def add_server(self, server: SockAddr, routing: Routing) -> bool:
        """Read the route to a server before the first packet to it. False if there is none.

        Raises:
            UnavailableError: the kernel does not answer.
        """
        address = host_of(server)
        hop = await self._kernel.next_hop(address)
        # Without a hop, too: later routes into the tunnel must not take the server with them.
        known = _hop(hop) if hop is not None else self.routes.servers.get(address)
        self.routes = replace(
            self.routes,
            servers={**self.routes.servers, address: known},
            ports=self.routes.ports | {(address, server[1])},
        )
        return hop is not None or not needs_host_route(routing, address)

    def remove_other_servers(self, server: SockAddr) -> None:
        """Keep only this server: the others no longer need a route outside the tunnel."""
        address = host_of(server)
        self.routes = replace(
            self.routes,
            servers={other: hop for other, hop in self.routes.servers.items() if other == address},
            ports=frozenset((other, port) for other, port in self.routes.ports if other == address),
        )


def _hop(hop: NextHop) -> Hop:
    return Hop(hop.device, hop.gateway)
