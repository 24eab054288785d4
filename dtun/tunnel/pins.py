"""Keeps the tunnel's own packets out of the tunnel: host routes to the servers that lie inside what goes through it."""

from collections.abc import Iterable
from ipaddress import ip_network

from dtun.network.state import Address, Network, NetworkState, Route
from dtun.platform.interface import Kernel
from dtun.tunnel.wishes import Wishes

OWNER = "pins"


def halves(networks: Iterable[Network]) -> list[Network]:
    """Everything as two halves, so that the default route itself stays as it is; the rest unchanged."""
    return [
        part for network in networks for part in (network.subnets() if network.prefixlen == 0 else (network,))
    ]


class Pins:
    """The host routes of one client. Each is the way that the host takes to that server without the tunnel."""

    def __init__(self, routes: Iterable[Network], kernel: Kernel, wishes: Wishes) -> None:
        self._routes = tuple(routes)
        self._kernel = kernel
        self._wishes = wishes
        self._pins: dict[Address, Route] = {}

    async def hold(self, server: Address) -> bool:
        """Before a server is tried: pin it, if the tunnel's routes contain it. False if there is no way to it."""
        if not any(server in route for route in self._routes):
            return True
        hop = await self._kernel.next_hop(server)
        if hop is None:
            return False
        self._pins[server] = Route(ip_network(server), hop.device, hop.gateway)
        await self._apply()
        return True

    async def only(self, server: Address) -> None:
        """This server serves us now; the others need no way round the tunnel."""
        if self._pins.keys() - {server}:
            self._pins = {address: pin for address, pin in self._pins.items() if address == server}
            await self._apply()

    async def drop(self) -> None:
        """Remove all pins; after the routes that made them necessary."""
        self._pins.clear()
        await self._wishes.drop(OWNER)

    async def _apply(self) -> None:
        await self._wishes.put(OWNER, NetworkState(routes=frozenset(self._pins.values())))
