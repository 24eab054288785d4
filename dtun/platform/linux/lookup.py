"""What dtun wants to know about the host: the way to an address, the networks it is in."""

import socket
from collections.abc import Collection, Iterable

from dtun.network.state import Address
from dtun.platform.interface import LocalNetwork, NextHop
from dtun.platform.linux.monitor import HostView
from dtun.platform.linux.netlink import ROUTE_PROTOCOL, FoundRoute, Netlink, NetlinkError

IFF_LOOPBACK = 0x8


async def next_hop(netlink: Netlink, address: Address, own: Collection[str]) -> NextHop | None:
    """See `Kernel.next_hop`; `own` are the names of this process's devices."""
    entry = await netlink.matching(address)
    if entry is None:
        return None
    if entry.protocol == ROUTE_PROTOCOL or entry.route.device in own:
        # The kernel cannot be asked to leave some routes out. Policy rules are not followed on this way.
        found = best_route(await netlink.routes(address.version), address, own)
    else:
        found = await netlink.way_to(address)
    if found is None or not found.route.device:
        return None
    route = found.route
    try:
        mtu = found.mtu or await netlink.link_mtu(route.device)
    except NetlinkError:
        return None  # The device has gone between the two questions.
    return NextHop(route.device, route.gateway, route.source, mtu)


def best_route(table: Iterable[FoundRoute], address: Address, own: Collection[str]) -> FoundRoute | None:
    """As the kernel decides, dtun's routes left out: the longest prefix, then the smallest metric."""
    candidates = [
        found
        for found in table
        if found.protocol != ROUTE_PROTOCOL
        and found.route.device not in own
        and found.route.destination.version == address.version
        and address in found.route.destination
    ]
    best = min(
        candidates,
        key=lambda found: (-found.route.destination.prefixlen, found.route.metric or 0),
        default=None,
    )
    return best if best is not None and best.unicast else None


async def local_networks(netlink: Netlink, own: Collection[str]) -> list[LocalNetwork]:
    """See `Kernel.local_networks`. Link-local networks are left out: every link has them."""
    names: dict[int, str] = {}
    tunnels: set[int] = set()
    async for index, flags, kind in netlink.links():
        name = _name(index)
        if name and name not in own and not flags & IFF_LOOPBACK:
            names[index] = name
            if kind == "tun":
                tunnels.add(index)
    found = {
        LocalNetwork(names[index], network)
        async for index, _, network, _ in netlink.addresses()
        if index in names
        and not network.is_link_local
        # The lone peer behind a TUN device: another dtun's, or of its kind.
        and not (index in tunnels and network.num_addresses == 1)
    }
    return sorted(
        found, key=lambda local: (local.device, local.network.version, local.network.network_address.packed)
    )


async def look_around(netlink: Netlink, view: HostView) -> None:
    """Tell the view what is there already."""
    async for index, flags, kind in netlink.links():
        view.saw_link(index, flags, kind)
    async for index, address, _, flags in netlink.addresses():
        view.saw_address(index, address.packed, flags)


def _name(index: int) -> str | None:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return None
