"""What dtun wants the kernel to look like: links, addresses, routes and what goes with them, as plain values."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Literal

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MAIN_TABLE = 254
"""The routing table that everybody uses (RT_TABLE_MAIN)."""

RouteKind = Literal["unicast", "unreachable", "throw"]
"""What becomes of a packet: it is sent, refused, or left to the next policy rule as if there were no such route."""


@dataclass(frozen=True, slots=True)
class NetDevice:
    """A TUN device that is up. `mtu` in bytes, of the packets inside the tunnel."""

    name: str
    mtu: int


@dataclass(frozen=True, slots=True)
class PointToPoint:
    """An address pair on a device: `local` is ours, `peer` is at the other end of the tunnel."""

    device: str
    local: Address
    peer: Address


@dataclass(frozen=True, slots=True)
class Route:
    """`destination` goes out of `device`, to `gateway` if there is one, from `source` if that matters.

    Only "unicast" has a device; the others have an empty name there. Of two routes with the same destination, the
    smaller `metric` counts.
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
    """A policy rule (ip-rule(8)): packets of this IP `version` look in `table`, smaller priorities first.

    `unless_mark`: not those with this firewall mark. `suppress_prefix_length`: not by a route as wide as this or wider.
    """

    version: Literal[4, 6]
    priority: int
    table: int
    unless_mark: int | None = None
    suppress_prefix_length: int | None = None


@dataclass(frozen=True, slots=True)
class Sysctl:
    """A setting of the kernel, such as net.ipv4.ip_forward. What it was before comes back in the end."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Masquerade:
    """What comes from the device `inside` and leaves by the device `outside` gets that one's address (RFC 2663)."""

    inside: str
    outside: str


@dataclass(frozen=True, slots=True)
class ClampMss:
    """Forwarded TCP through `device` announces segments that fit into `mtu` bytes (RFC 4459, section 3.2)."""

    device: str
    mtu: int


@dataclass(frozen=True, slots=True)
class DropOtherTrafficToServer:
    """To `server`, this host sends and forwards nothing but UDP to `port`."""

    server: Address
    port: int


@dataclass(frozen=True, slots=True)
class DropUnreachableIPv6:
    """IPv6 that the routes refuse does not leave by a device that a program insists on, either."""


@dataclass(frozen=True, slots=True)
class DropIPv6OutsideTunnel:
    """IPv6 of this host leaves through tunnels alone, and to the networks in `allowed`, whatever the routes say.

    What is for the link alone is left in peace.
    """

    allowed: tuple[Network, ...] = ()


Filter = Masquerade | ClampMss | DropOtherTrafficToServer | DropUnreachableIPv6 | DropIPv6OutsideTunnel
"""What the packet filter does for us."""


@dataclass(frozen=True, slots=True)
class Dns:
    """Name servers to ask through `device`. `domains` with a leading "~" are only routed there, "~." is every name."""

    device: str
    servers: tuple[Address, ...]
    domains: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NetworkState:
    """Everything that one dtun process has, or wants, in the kernel and in the host's resolver."""

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
