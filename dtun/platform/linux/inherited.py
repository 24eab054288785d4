"""What a device of ours has already: one that a process before this one has made and handed on."""

from collections.abc import Collection
from dataclasses import replace

from dtun.network.difference import DEFAULT_METRIC, Thing
from dtun.network.state import NetDevice, PointToPoint, Route
from dtun.platform.linux.netlink.dump import unavailable_if_refused
from dtun.platform.linux.netlink.wire import IFF_UP, ROUTE_PROTOCOL
from dtun.platform.linux.observed import addresses, links as all_links, routes


async def of_devices(names: Collection[str]) -> list[Thing]:
    """The links, if they are up, with their point-to-point addresses and dtun's routes through them.

    Raises:
        UnavailableError: the kernel does not answer.
    """
    with unavailable_if_refused():
        links = {link.index: link for link in await all_links() if link.name in names}
        things: list[Thing] = [
            NetDevice(link.name, link.mtu) for link in links.values() if link.flags & IFF_UP
        ]
        things += [
            PointToPoint(links[found.index].name, found.local, found.network.network_address)
            for found in await addresses()
            if found.index in links and found.network.num_addresses == 1
        ]
        for version in (4, 6):
            things += [
                _as_wanted(found.route)
                for found in await routes(version, _ours)
                if found.route.device in names
            ]
    return things


def _ours(_length: int, protocol: int, _table: int) -> bool:
    return protocol == ROUTE_PROTOCOL


def _as_wanted(route: Route) -> Route:
    """The kernel tells each metric, dtun names only those that are not the default."""
    default = route.metric == DEFAULT_METRIC[route.destination.version]
    return replace(route, metric=None) if default else route
