"""How the host reaches an address, its default route, and the networks that it belongs to."""

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Literal

from dtun.network.plan import FORWARDING, accept_ra
from dtun.network.state import MAIN_TABLE, Address, Network, Sysctl
from dtun.platform.interface import ForeignRule, HostRoute, LocalNetwork, NextHop
from dtun.platform.linux import observed, sysctl
from dtun.platform.linux.missing import plain_rules
from dtun.platform.linux.netlink.dump import unavailable_if_refused
from dtun.platform.linux.netlink.monitor import DEFAULT_ROUTE_LENGTH, HostView
from dtun.platform.linux.netlink.wire import IFF_LOOPBACK, IFF_POINTOPOINT, ROUTE_PROTOCOL, RTPROT_KERNEL
from dtun.platform.linux.observed import FoundRoute


async def next_hop(address: Address, own: Collection[str], mark: int | None = None) -> NextHop | None:
    """See `Kernel.next_hop`; `own` are the names of this process's devices."""
    with unavailable_if_refused():
        found = observed.matching(address, mark)
        if found is None or found.protocol == ROUTE_PROTOCOL or found.route.device in own:
            # A look-up cannot exclude our routes, and does not tell whose route refuses a packet. The main table alone
            # is searched: policy rules are not considered.
            found = best_route(await observed.routes(address.version, _is_foreign_in_main), address, own)
            return await _hop(found, found)
        # Of several hops the second look-up tells the one for this address, and the source address.
        return await _hop(observed.route_to(address, mark), found)


async def default_hop(version: Literal[4, 6], own: Collection[str]) -> NextHop | None:
    """See `Kernel.default_hop`; `own` are the names of this process's devices."""

    def wanted(length: int, protocol: int, table: int) -> bool:
        return length == 0 and _is_foreign_in_main(length, protocol, table)

    with unavailable_if_refused():
        tunnels = {link.name for link in await observed.links() if link.kind == "tun"}
        candidates = [
            found
            for found in await observed.routes(version, wanted)
            if found.unicast
            and found.route.device
            and found.route.device not in own
            and found.route.device not in tunnels
        ]
        best = _choose(candidates)
        return await _hop(best, best)


def best_route(table: Iterable[FoundRoute], address: Address, own: Collection[str]) -> FoundRoute | None:
    """Choose as the kernel does, without dtun's routes."""
    best = _choose(
        found
        for found in table
        if found.protocol != ROUTE_PROTOCOL
        and found.route.device not in own
        and found.route.destination.version == address.version
        and address in found.route.destination
    )
    return best if best is not None and best.unicast else None


def _choose(candidates: Iterable[FoundRoute]) -> FoundRoute | None:
    """The kernel's choice of those alive: the longest prefix, the smallest metric, the preferred router."""
    return min(
        (found for found in candidates if found.alive),
        key=lambda found: (-found.route.destination.prefixlen, found.route.metric or 0, -found.preference),
        default=None,
    )


async def local_networks(own: Collection[str]) -> list[LocalNetwork]:
    """See `Kernel.local_networks`. Link-local networks are left out, because every link has them."""
    with unavailable_if_refused():
        links = {
            link.index: link
            for link in await observed.links()
            if link.name not in own and not link.flags & IFF_LOOPBACK
        }
        found = {
            LocalNetwork(links[address.index].name, address.network)
            for address in await observed.addresses()
            if address.index in links
            and not address.network.is_link_local
            # Nor the single peer of another program's TUN device.
            and not (links[address.index].kind == "tun" and address.network.num_addresses == 1)
        }
    return sorted(
        found, key=lambda local: (local.device, local.network.version, local.network.network_address.packed)
    )


async def host_routes(own: Collection[str], *, connected: bool) -> list[HostRoute]:
    """See `Kernel.host_routes`; `own` are the names of this process's devices."""

    def wanted(length: int, protocol: int, table: int) -> bool:
        return (
            length > DEFAULT_ROUTE_LENGTH and table == MAIN_TABLE and (protocol == RTPROT_KERNEL) == connected
        )

    with unavailable_if_refused():
        return [
            HostRoute(found.route.destination, found.route.device)
            for version in (4, 6)
            for found in await observed.routes(version, wanted)
            if found.unicast
            and found.route.device
            and found.route.device not in own
            and not found.route.destination.is_link_local
            and not found.route.destination.is_multicast
        ]


async def foreign_rules(own: Collection[str]) -> list[ForeignRule]:
    """See `Kernel.foreign_rules`; `own` are the names of this process's devices."""
    with unavailable_if_refused():
        found = []
        for version in (4, 6):
            rules = await plain_rules(version)
            tables = {table for _, table in rules}
            if not tables:
                continue
            networks: dict[int, list[Network]] = {table: [] for table in tables}
            for one in await observed.routes(
                version, lambda _length, protocol, _: protocol != ROUTE_PROTOCOL
            ):
                if one.route.table in networks and one.route.device not in own and one.route.kind != "throw":
                    networks[one.route.table].append(one.route.destination)
            found += [
                ForeignRule(version, priority, table, tuple(networks[table])) for priority, table in rules
            ]
    return found


async def advertised_devices(own: Collection[str], ours: Collection[Sysctl]) -> list[str]:
    """See `Kernel.advertised_devices`; `ours` are the settings that this process has made."""
    with unavailable_if_refused():
        links = await observed.links()
    forwards = any(setting.name == FORWARDING[6] for setting in ours)
    found = []
    for link in links:
        accepts = accept_ra(link.name)
        if link.name in own or link.flags & (IFF_LOOPBACK | IFF_POINTOPOINT):
            continue
        if accepts in ours or (
            sysctl.is_set(replace(accepts, value="1"))
            and (forwards or sysctl.is_set(Sysctl(f"net.ipv6.conf.{link.name}.forwarding", "0")))
        ):
            found.append(link.name)
    return sorted(found)


async def fill(view: HostView) -> None:
    """Enter the existing links and addresses into the view."""
    with unavailable_if_refused():
        for link in await observed.links():
            view.update_link(link.index, link.flags, link.kind)
        for address in await observed.addresses():
            view.update_address(address.index, address.local.packed, address.flags)


async def _hop(found: FoundRoute | None, entry: FoundRoute | None) -> NextHop | None:
    """`entry` is the route as it is in its table."""
    if found is None or entry is None or not found.route.device:
        return None
    route = found.route
    mtu = found.mtu or next((link.mtu for link in await observed.links() if link.name == route.device), None)
    # None if the device was removed between the two requests.
    return (
        None if mtu is None else NextHop(route.device, route.gateway, route.source, mtu, entry.route.source)
    )


def _is_foreign_in_main(_length: int, protocol: int, table: int) -> bool:
    return protocol != ROUTE_PROTOCOL and table == MAIN_TABLE
