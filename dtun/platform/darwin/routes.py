"""Routes as routing messages: what dtun asks for, and what it finds in the kernel's table. Pure."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from dtun.network.state import Address, Network, Route
from dtun.platform.darwin import rtmsg, sockaddr
from dtun.platform.darwin.constants import (
    RTA_DST,
    RTA_GATEWAY,
    RTA_IFA,
    RTA_NETMASK,
    RTF_BLACKHOLE,
    RTF_GATEWAY,
    RTF_HOST,
    RTF_IFSCOPE,
    RTF_OURS,
    RTF_REJECT,
    RTF_STATIC,
    RTF_UP,
    RTF_WASCLONED,
)

_LOOPBACK = {4: ip_address("127.0.0.1"), 6: ip_address("::1")}
_BOTH = (IPv4Address, IPv6Address)


@dataclass(frozen=True, slots=True)
class FoundRoute:
    """An entry of the kernel's table. `flags` are RTF_..., `index` is the interface's, `source` its address."""

    route: Route
    flags: int
    index: int
    source: Address | None = None

    @property
    def ours(self) -> bool:
        """Whether a dtun made it."""
        return bool(self.flags & RTF_OURS)

    @property
    def scoped(self) -> bool:
        """It counts only for sockets that are bound to its interface."""
        return bool(self.flags & RTF_IFSCOPE)

    @property
    def cloned(self) -> bool:
        """The kernel made it from a wider one, for a single host: an ARP entry, for example."""
        return bool(self.flags & RTF_WASCLONED)

    def is_ours(self, wanted: Route) -> bool:
        """Whether this is `wanted`, as dtun installs it."""
        found = self.route
        if not self.ours or (found.destination, found.kind) != (wanted.destination, wanted.kind):
            return False
        return wanted.kind != "unicast" or (found.device, found.gateway) == (wanted.device, wanted.gateway)


def request(kind: int, route: Route, index: int, sequence: int) -> bytes:
    """The message that adds, changes or removes a route; `index` is that of its device, 0 if it has none."""
    destination = route.destination
    flags = RTF_UP | RTF_STATIC | RTF_OURS
    if route.kind == "unreachable":
        flags |= RTF_REJECT | RTF_GATEWAY
        gateway = sockaddr.inet(_LOOPBACK[destination.version])
    elif route.gateway is not None:
        flags |= RTF_GATEWAY
        gateway = sockaddr.inet(route.gateway, index)
    else:
        gateway = sockaddr.link(index)
    addresses = {RTA_DST: sockaddr.inet(destination.network_address), RTA_GATEWAY: gateway}
    if destination.prefixlen == destination.max_prefixlen:
        flags |= RTF_HOST
    else:
        addresses[RTA_NETMASK] = sockaddr.mask(destination)
    return rtmsg.request(kind, flags, addresses, sequence)


def table(dump: bytes, version: int, name_of: Callable[[int], str]) -> Iterator[FoundRoute]:
    """The entries of a dump, or of notifications. `name_of` gives the name of an interface, "" if it has gone."""
    names: dict[int, str] = {}
    for message in rtmsg.messages(dump):
        found = parse(message, version)
        if found is None:
            continue
        index = found.index
        if index not in names:
            names[index] = name_of(index)
        route = found.route
        device = names[index] if route.kind == "unicast" else ""
        named = Route(route.destination, device, route.gateway, kind=route.kind)
        yield FoundRoute(named, found.flags, index, found.source)


def parse(message: rtmsg.Message, version: int) -> FoundRoute | None:
    """The entry that a message is about, without the name of its device; None if it is not of this IP version."""
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


def best(entries: Iterator[FoundRoute], address: Address) -> FoundRoute | None:
    """As the kernel decides for a socket that is bound to nothing: the longest prefix."""
    candidates = [
        found
        for found in entries
        if not found.scoped and not found.cloned and address in found.route.destination
    ]
    return max(candidates, key=lambda found: found.route.destination.prefixlen, default=None)


def _destination(message: rtmsg.Message, version: int) -> Network | None:
    address = message.address(RTA_DST)
    if not isinstance(address, _BOTH) or address.version != version:
        return None
    if message.flags & RTF_HOST:
        return ip_network(address)
    mask = message.addresses.get(RTA_NETMASK)
    # The default route's mask may be left out altogether.
    length = 0 if mask is None else sockaddr.prefix_length(mask, version)
    if length is None or (mask is None and int(address) != 0):
        return None
    return ip_network((address, length), strict=False)
