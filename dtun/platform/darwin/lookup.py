"""What dtun needs to know about the host: next hops, default gateways, local networks. Functions raise OSError."""

from collections.abc import Collection, Hashable, Iterable

from dtun.network.state import Address
from dtun.platform.darwin.constants import FAMILIES, IFF_LOOPBACK, IFF_POINTOPOINT, IFF_UP
from dtun.platform.darwin.observed import FoundRoute, interfaces, routes
from dtun.platform.interface import HostRoute, LocalNetwork, NextHop

TUNNELS = ("utun", "ipsec", "ppp", "tun", "tap")
"""Prefixes of the names of tunnel devices."""


DEFAULT_ROUTE_LENGTH = 3
"""The longest prefix that counts as a default route, as 2000::/3 does."""


def next_hop(address: Address, own: Collection[str]) -> NextHop | None:
    """See `Kernel.next_hop`; `own` are the names of this process's devices."""
    foreign = (found for found in routes(address.version) if not found.ours and found.route.device not in own)
    return _next_hop(best_route(foreign, address))


def default_hop(version: int, own: Collection[str]) -> NextHop | None:
    """See `Kernel.default_hop`.

    Where another VPN has the default route, the interface keeps a scoped one, for sockets that are bound to it.
    """
    candidates = [
        found
        for found in routes(version)
        if found.route.destination.prefixlen == 0
        and found.route.kind == "unicast"
        and not found.ours
        and found.route.device not in own
        and not found.route.device.startswith(TUNNELS)
    ]
    return _next_hop(min(candidates, key=lambda found: found.scoped, default=None))


def best_route(table: Iterable[FoundRoute], address: Address) -> FoundRoute | None:
    """The route that the kernel uses for a socket that is not bound to an interface: the longest prefix. Pure."""
    candidates = [
        found
        for found in table
        if not found.scoped and not found.cloned and address in found.route.destination
    ]
    return max(candidates, key=lambda found: found.route.destination.prefixlen, default=None)


def local_networks(own: Collection[str]) -> list[LocalNetwork]:
    """See `Kernel.local_networks`. Without link-local networks, which every interface has."""
    return _sorted(
        LocalNetwork(one.name, network)
        for one in interfaces()
        if one.name not in own and one.flags & IFF_UP and not one.flags & IFF_LOOPBACK
        for _, network in one.members
        # Not the single peer of a point-to-point interface, which is another tunnel.
        if not network.is_link_local and not (one.flags & IFF_POINTOPOINT and network.num_addresses == 1)
    )


def foreign_tunnels(own: Collection[str]) -> list[LocalNetwork]:
    """Networks that other programs route through tunnels. Devices in `own`, or with routes of a dtun, are left out."""
    found = [one for version in FAMILIES for one in routes(version) if one.route.device.startswith(TUNNELS)]
    ours = {*own, *(one.route.device for one in found if one.ours)}
    return _sorted(
        LocalNetwork(one.route.device, one.route.destination)
        for one in found
        if not (one.route.device in ours or one.cloned or one.scoped)
        and not one.route.destination.is_link_local
        and not one.route.destination.is_multicast
    )


def routed_networks(own: Collection[str], *, connected: bool) -> list[HostRoute]:
    """See `Kernel.host_routes`."""
    return [
        HostRoute(found.route.destination, found.route.device)
        for version in FAMILIES
        for found in routes(version)
        if found.route.kind == "unicast"
        and (found.route.gateway is None) == connected
        and found.route.destination.prefixlen > DEFAULT_ROUTE_LENGTH
        and not (found.scoped or found.cloned or found.route.device in own)
        and not found.route.destination.is_loopback
        and not found.route.destination.is_link_local
        and not found.route.destination.is_multicast
    ]


def host_routes(own: Collection[str]) -> frozenset[Hashable]:
    """The host's own routes, to be compared with a later result: what may matter to the tunnel's packets."""
    return frozenset(
        (found.route, found.source)
        for version in FAMILIES
        for found in routes(version)
        if not (found.ours or found.scoped or found.cloned or found.route.device in own)
        and not found.route.destination.is_link_local
        and not found.route.destination.is_multicast
    )


def _next_hop(found: FoundRoute | None) -> NextHop | None:
    if found is None or found.route.kind != "unicast" or not found.route.device:
        return None
    mtu = next((one.mtu for one in interfaces() if one.index == found.index), 0)
    if not mtu:
        return None  # The interface was removed after the routes were read.
    return NextHop(found.route.device, found.route.gateway, found.source, mtu)


def _sorted(networks: Iterable[LocalNetwork]) -> list[LocalNetwork]:
    return sorted(
        set(networks),
        key=lambda one: (one.device, one.network.version, one.network.network_address.packed),
    )
