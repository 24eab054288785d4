"""A network state as plain values: devices, addresses, routes, rules, settings, filters and name servers."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Literal

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MAIN_TABLE = 254
"""The default routing table (RT_TABLE_MAIN)."""

RouteKind = Literal["unicast", "unreachable", "throw"]
"""What the route does with a packet: send it, refuse it, or continue with the next policy rule ("throw")."""


@dataclass(frozen=True, slots=True)
class NetDevice:
    """A TUN device that is up. `mtu` in bytes, for packets inside the tunnel."""

    name: str
    mtu: int


@dataclass(frozen=True, slots=True)
class PointToPoint:
    """An address pair of a device: `local` is ours, `peer` is the other end of the tunnel."""

    device: str
    local: Address
    peer: Address


@dataclass(frozen=True, slots=True)
class Route:
    """Packets to `destination` leave through `device`, via `gateway` if there is one, from `source` if it is set.

    `device` is empty for kinds other than "unicast". Of two routes with the same destination, the kernel uses the one
    with the smaller `metric`.
    """

    destination: Network
    device: str = ""
    gateway: Address | None = None
    source: Address | None = None
    metric: int | None = None
    table: int = MAIN_TABLE
    kind: RouteKind = "unicast"


@dataclass(frozen=True, slots=True)
class Rule:
    """A policy rule (ip-rule(8)): packets of this IP `version` use `table`; smaller priorities come first.

    `unless_mark`: except packets with this firewall mark. `suppress_prefix_length`: ignore the table's routes with a
    prefix of this length or shorter.
    """

    version: Literal[4, 6]
    priority: int
    table: int
    unless_mark: int | None = None
    suppress_prefix_length: int | None = None


@dataclass(frozen=True, slots=True)
class Sysctl:
    """A kernel setting, such as net.ipv4.ip_forward. Its previous value is restored on removal."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Masquerade:
    """Packets from device `inside` to device `outside` get the address of `outside` as their source (NAT, RFC 2663)."""

    inside: str
    outside: str


@dataclass(frozen=True, slots=True)
class ClampMss:
    """Limit the MSS of TCP forwarded through `device` to what fits `mtu` bytes (RFC 4459, section 3.2)."""

    device: str
    mtu: int


@dataclass(frozen=True, slots=True)
class DropOtherTrafficToServer:
    """Drop everything that this host sends or forwards to `server`, except UDP to `port`."""

    server: Address
    port: int


@dataclass(frozen=True, slots=True)
class DropUnreachableIPv6:
    """Drop IPv6 to destinations with an unreachable route, also from sockets that are bound to a device."""


@dataclass(frozen=True, slots=True)
class DropOutsideTunnel:
    """Drop what this host sends or forwards outside tunnels, whatever its routes and rules.

    Except to `allowed`, and to what stays on a link: link-local networks, multicast and broadcast of the link.
    """

    version: Literal[4, 6]
    allowed: tuple[Network, ...] = ()


@dataclass(frozen=True, slots=True)
class AnswerDirectly:
    """Give the packets of connections that came from outside `device` to this host's own addresses the mark `mark`.

    TCP connections that exist already, from an address that is not `device`'s, count as such, too.
    """

    device: str
    mark: int


Filter = (
    Masquerade
    | ClampMss
    | DropOtherTrafficToServer
    | DropUnreachableIPv6
    | DropOutsideTunnel
    | AnswerDirectly
)
"""A rule of the packet filter."""


@dataclass(frozen=True, slots=True)
class Dns:
    """Name servers that are reached through `device`, for `domains`.

    A domain with a leading "~" is not a search domain; "~." means every name (see resolvectl(1)).
    """

    device: str
    servers: tuple[Address, ...]
    domains: tuple[str, ...] = ()

    @property
    def for_all_names(self) -> bool:
        """Whether they are asked for every name."""
        return not self.domains or "~." in self.domains

    def asked_for(self, name: str) -> bool:
        """Whether they are asked for this name."""
        domains = [domain.removeprefix("~").strip(".").lower() for domain in self.domains]
        return self.for_all_names or any(f".{name.lower()}".endswith(f".{domain}") for domain in domains)


@dataclass(frozen=True, slots=True)
class NetworkState:
    """Everything that one dtun process has, or wants to have, in the kernel and in the host's resolver."""

    devices: frozenset[NetDevice] = frozenset()
    addresses: frozenset[PointToPoint] = frozenset()
    routes: frozenset[Route] = frozenset()
    rules: frozenset[Rule] = frozenset()
    sysctls: frozenset[Sysctl] = frozenset()
    filters: frozenset[Filter] = frozenset()
    dns: frozenset[Dns] = frozenset()

    def __or__(self, other: "NetworkState") -> "NetworkState":
        return NetworkState(
            self.devices | other.devices,
            self.addresses | other.addresses,
            self.routes | other.routes,
            self.rules | other.rules,
            self.sysctls | other.sysctls,
            self.filters | other.filters,
            self.dns | other.dns,
        )
