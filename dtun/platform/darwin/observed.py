"""What the kernel has: its routing tables and interfaces, by sysctl(3). Functions that read raise OSError."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_network

from dtun.network.state import Address, Network, Route
from dtun.platform.darwin import rtmsg, sockaddr, syscalls
from dtun.platform.darwin.constants import (
    AF_ROUTE,
    CTL_NET,
    FAMILIES,
    NET_RT_DUMP,
    NET_RT_IFLIST,
    RTA_DST,
    RTA_GATEWAY,
    RTA_IFA,
    RTA_IFP,
    RTA_NETMASK,
    RTF_BLACKHOLE,
    RTF_GATEWAY,
    RTF_HOST,
    RTF_IFSCOPE,
    RTF_OURS,
    RTF_REJECT,
    RTF_WASCLONED,
    RTM_IFINFO,
    RTM_NEWADDR,
)

_BOTH = (IPv4Address, IPv6Address)


@dataclass(frozen=True, slots=True)
class FoundRoute:
    """An entry of the routing table. `flags` are RTF_..., `index` is the interface's, `source` its address."""

    route: Route
    flags: int
    index: int
    source: Address | None = None

    @property
    def ours(self) -> bool:
        """Whether a dtun process made it. Clones of such a route have its flags, and go with it."""
        return bool(self.flags & RTF_OURS) and not self.cloned

    @property
    def scoped(self) -> bool:
        """Whether it applies only to sockets that are bound to its interface."""
        return bool(self.flags & RTF_IFSCOPE)

    @property
    def cloned(self) -> bool:
        """Whether the kernel made it from a wider route for a single host, such as an ARP entry."""
        return bool(self.flags & RTF_WASCLONED)

    def is_ours(self, wanted: Route) -> bool:
        """Whether this is `wanted`, as dtun installs it."""
        found = self.route
        if not self.ours or (found.destination, found.kind) != (wanted.destination, wanted.kind):
            return False
        return wanted.kind != "unicast" or (found.device, found.gateway) == (wanted.device, wanted.gateway)


@dataclass(frozen=True, slots=True)
class FoundInterface:
    """An interface; `flags` are IFF_..., `mtu` in bytes, `members` its addresses with their networks."""

    name: str
    index: int
    flags: int
    mtu: int
    members: tuple[tuple[Address, Network], ...] = ()


def routes(version: int) -> Iterator[FoundRoute]:
    """The routing table of this IP version."""
    dump = syscalls.sysctl((CTL_NET, AF_ROUTE, 0, FAMILIES[version], NET_RT_DUMP, 0))
    return parse_routes(dump, version, name_of)


def interfaces() -> list[FoundInterface]:
    """All interfaces, with their addresses of both IP versions."""
    return parse_interfaces(syscalls.sysctl((CTL_NET, AF_ROUTE, 0, 0, NET_RT_IFLIST, 0)))


def name_of(index: int) -> str:
    """The interface's name; empty if it is gone."""
    try:
        return syscalls.name_of(index)
    except OSError:
        return ""


def parse_routes(dump: bytes, version: int, name_of: Callable[[int], str]) -> Iterator[FoundRoute]:
    """Parse a dump. `name_of` returns the name of an interface, "" if it is gone. Pure."""
    names: dict[int, str] = {}
    for message in rtmsg.messages(dump):
        found = parse_route(message, version)
        if found is None:
            continue
        index = found.index
        if index not in names:
            names[index] = name_of(index)
        route = found.route
        device = names[index] if route.kind == "unicast" else ""
        named = Route(route.destination, device, route.gateway, kind=route.kind)
        yield FoundRoute(named, found.flags, index, found.source)


def parse_route(message: rtmsg.RoutingMessage, version: int) -> FoundRoute | None:
    """The route in a message, without the name of its device; None if it is of the other IP version. Pure."""
    destination = _destination(message, version)
    if destination is None:
        return None
    gateway = message.address(RTA_GATEWAY) if message.flags & RTF_GATEWAY else None
    source = message.address(RTA_IFA)
    refuses = bool(message.flags & (RTF_REJECT | RTF_BLACKHOLE))
    return FoundRoute(
        Route(
            destination,
            gateway=gateway if isinstance(gateway, _BOTH) and not refuses else None,
            kind="unreachable" if refuses else "unicast",
        ),
        message.flags,
        message.index,
        source if isinstance(source, _BOTH) else None,
    )


def parse_interfaces(dump: bytes) -> list[FoundInterface]:
    """Parse a dump, in which the addresses of an interface follow it. Pure."""
    found: dict[int, FoundInterface] = {}
    members: dict[int, list[tuple[Address, Network]]] = {}
    for message in rtmsg.messages(dump):
        index = message.index
        if message.kind == RTM_IFINFO:
            link = message.address(RTA_IFP)
            name = link.name if isinstance(link, sockaddr.LinkAddress) else ""
            found[index] = FoundInterface(name, index, message.flags, message.mtu)
        elif message.kind == RTM_NEWADDR and (member := _member(message)) is not None:
            members.setdefault(index, []).append(member)
    return [
        FoundInterface(one.name, one.index, one.flags, one.mtu, tuple(members.get(one.index, ())))
        for one in found.values()
    ]


def _destination(message: rtmsg.RoutingMessage, version: int) -> Network | None:
    address = message.address(RTA_DST)
    if not isinstance(address, _BOTH) or address.version != version:
        return None
    if message.flags & RTF_HOST:
        return ip_network(address)
    mask = message.addresses.get(RTA_NETMASK)
    # The default route may have no mask at all.
    length = 0 if mask is None else sockaddr.prefix_length(mask, version)
    if length is None or (mask is None and int(address) != 0):
        return None
    return ip_network((address, length), strict=False)


def _member(message: rtmsg.RoutingMessage) -> tuple[Address, Network] | None:
    address = message.address(RTA_IFA)
    if not isinstance(address, _BOTH):
        return None
    mask = message.addresses.get(RTA_NETMASK)
    length = address.max_prefixlen if mask is None else sockaddr.prefix_length(mask, address.version)
    return None if length is None else (address, ip_network((address, length), strict=False))
