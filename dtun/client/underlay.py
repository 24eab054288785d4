"""The host around a client's tunnel: its ways to the servers, its default gateways, the networks it is in."""

from dataclasses import replace
from ipaddress import ip_address

from dtun.network.plan import Hop, Routing, UnderlayRoutes, is_pinned
from dtun.network.state import Address
from dtun.platform.interface import Kernel, NextHop
from dtun.session.udp import SockAddr


class Underlay:
    """Looks around, and remembers what it saw. `outside` is what a plan is made with."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.outside = UnderlayRoutes()

    async def look(self, routing: Routing) -> None:
        """See how things are now; a server that cannot be reached any more keeps its last way.

        Raises:
            UnavailableError: the kernel does not answer.
        """
        gateways = {}
        for version in {network.version for network in routing.bypassed}:
            hop = await self._kernel.default_hop(version)
            if hop is not None:
                gateways[version] = _way(hop)
        local = [network.network for network in await self._kernel.local_networks()]
        servers = dict(self.outside.servers)
        for server in servers:
            hop = await self._kernel.next_hop(server)
            if hop is not None:
                servers[server] = _way(hop)
        self.outside = replace(self.outside, servers=servers, gateways=gateways, local=tuple(local))

    async def hold(self, server: SockAddr, routing: Routing) -> bool:
        """Before a server is tried: learn the way to it. False if there is none.

        Raises:
            UnavailableError: the kernel does not answer.
        """
        address = host_of(server)
        hop = await self._kernel.next_hop(address)
        if hop is None:
            return not is_pinned(routing, address)
        self.outside = replace(
            self.outside,
            servers={**self.outside.servers, address: _way(hop)},
            ports=self.outside.ports | {(address, server[1])},
        )
        return True

    def only(self, server: SockAddr) -> None:
        """This server serves us now; the others need no way around the tunnel."""
        address = host_of(server)
        self.outside = replace(
            self.outside,
            servers={held: way for held, way in self.outside.servers.items() if held == address},
            ports=frozenset((held, port) for held, port in self.outside.ports if held == address),
        )


def host_of(server: SockAddr) -> Address:
    """The address alone, without port and zone."""
    return ip_address(str(server[0]).partition("%")[0])


def _way(hop: NextHop) -> Hop:
    return Hop(hop.device, hop.gateway)
