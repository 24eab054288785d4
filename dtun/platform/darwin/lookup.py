"""What dtun wants to know about the host: the way to an address, the default ways, the networks it is in."""

from collections.abc import Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_network

from dtun.network.state import Address, Network
from dtun.platform.darwin import routes, rtmsg, sockaddr, syscalls
from dtun.platform.darwin.constants import (
    AF_ROUTE,
    CTL_NET,
    FAMILIES,
    IFF_LOOPBACK,
    IFF_POINTOPOINT,
    IFF_UP,
    NET_RT_DUMP,
    NET_RT_IFLIST,
    RTA_IFA,
    RTA_IFP,
    RTA_NETMASK,
    RTM_IFINFO,
    RTM_NEWADDR,
)
from dtun.platform.darwin.routes import FoundRoute
from dtun.platform.interface import LocalNetwork, NextHop

TUNNELS = ("utun", "ipsec", "ppp", "tun", "tap")
"""How the names of others' tunnels begin."""


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface of the host; `flags` are IFF_..., `mtu` in bytes, `members` its addresses with their networks."""

    name: str
    index: int
    flags: int
    mtu: int
    members: tuple[tuple[Address, Network], ...] = ()


def table(version: int) -> Iterator[FoundRoute]:
    """The kernel's routing table of this IP version."""
    dump = syscalls.sysctl((CTL_NET, AF_ROUTE, 0, FAMILIES[version], NET_RT_DUMP, 0))
    return routes.table(dump, version, name_of)


def interfaces() -> list[Interface]:
    """All interfaces, with their addresses of both IP versions."""
    return parse_interfaces(syscalls.sysctl((CTL_NET, AF_ROUTE, 0, 0, NET_RT_IFLIST, 0)))


def parse_interfaces(dump: bytes) -> list[Interface]:
    """From a dump: each interface is followed by its addresses."""
    found: dict[int, Interface] = {}
    members: dict[int, list[tuple[Address, Network]]] = {}
    for message in rtmsg.messages(dump):
        index = message.index
        if message.kind == RTM_IFINFO:
            link = message.address(RTA_IFP)
            name = link.name if isinstance(link, sockaddr.LinkAddress) else ""
            found[index] = Interface(name, index, message.flags, message.mtu)
        elif message.kind == RTM_NEWADDR and (member := _member(message)) is not None:
            members.setdefault(index, []).append(member)
    return [
        Interface(one.name, one.index, one.flags, one.mtu, tuple(members.get(one.index, ())))
        for one in found.values()
    ]


def next_hop(address: Address, own: Collection[str]) -> NextHop | None:
    """See `Kernel.next_hop`; `own` are the names of this process's devices."""
    others = (found for found in table(address.version) if not found.ours and found.route.device not in own)
    return _hop(routes.best(others, address))


def default_hop(version: int, own: Collection[str]) -> NextHop | None:
    """See `Kernel.default_hop`.

    Where another VPN has taken the default route, the link's own is there still, for sockets bound to the link.
    """
    ways = [
        found
        for found in table(version)
        if found.route.destination.prefixlen == 0
        and found.route.kind == "unicast"
        and not found.ours
        and found.route.device not in own
        and not found.route.device.startswith(TUNNELS)
    ]
    return _hop(min(ways, key=lambda found: found.scoped, default=None))


def local_networks(own: Collection[str]) -> list[LocalNetwork]:
    """See `Kernel.local_networks`. Link-local networks are left out: every link has them."""
    return _sorted(
        LocalNetwork(one.name, network)
        for one in interfaces()
        if one.name not in own and one.flags & IFF_UP and not one.flags & IFF_LOOPBACK
        for _, network in one.members
        # The lone peer behind a point-to-point device: another tunnel's.
        if not network.is_link_local and not (one.flags & IFF_POINTOPOINT and network.num_addresses == 1)
    )


def foreign_tunnels(own: Collection[str]) -> list[LocalNetwork]:
    """What other programs send through tunnels: not those in `own`, and not those with a dtun's routes."""
    found = [one for version in FAMILIES for one in table(version) if one.route.device.startswith(TUNNELS)]
    ours = {*own, *(one.route.device for one in found if one.ours)}
    return _sorted(
        LocalNetwork(one.route.device, one.route.destination)
        for one in found
        if not (one.route.device in ours or one.cloned or one.scoped)
        and not one.route.destination.is_link_local
        and not one.route.destination.is_multicast
    )


def view(own: Collection[str]) -> frozenset[Hashable]:
    """The host's own ways: two views differ if something has changed that may matter to a tunnel's packets."""
    return frozenset(
        (found.route, found.source)
        for version in FAMILIES
        for found in table(version)
        if not (found.ours or found.scoped or found.cloned or found.route.device in own)
        and not found.route.destination.is_link_local
        and not found.route.destination.is_multicast
    )


def name_of(index: int) -> str:
    """The interface's name; empty if there is none any more."""
    try:
        return syscalls.name_of(index)
    except OSError:
        return ""


def _hop(found: FoundRoute | None) -> NextHop | None:
    if found is None or found.route.kind != "unicast" or not found.route.device:
        return None
    mtu = next((one.mtu for one in interfaces() if one.index == found.index), 0)
    if not mtu:
        return None  # The device has gone between the two questions.
    return NextHop(found.route.device, found.route.gateway, found.source, mtu)


def _sorted(networks: Iterable[LocalNetwork]) -> list[LocalNetwork]:
    return sorted(
        set(networks),
        key=lambda one: (one.device, one.network.version, one.network.network_address.packed),
    )


def _member(message: rtmsg.Message) -> tuple[Address, Network] | None:
    address = message.address(RTA_IFA)
    if not isinstance(address, IPv4Address | IPv6Address):
        return None
    mask = message.addresses.get(RTA_NETMASK)
    length = address.max_prefixlen if mask is None else sockaddr.prefix_length(mask, address.version)
    return None if length is None else (address, ip_network((address, length), strict=False))
