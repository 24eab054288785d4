"""What dtun wants the kernel to look like: links, point-to-point addresses and routes, as plain values."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Link:
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
    """`destination` goes out of `device`, to `gateway` if there is one, from `source` if that matters."""

    destination: Network
    device: str
    gateway: Address | None = None
    source: Address | None = None
    metric: int | None = None


@dataclass(frozen=True, slots=True)
class NetworkState:
    """Everything that one dtun process has, or wants, in the kernel."""

    links: frozenset[Link] = frozenset()
    addresses: frozenset[PointToPoint] = frozenset()
    routes: frozenset[Route] = frozenset()

    def __or__(self, other: "NetworkState") -> "NetworkState":
        return NetworkState(
            self.links | other.links, self.addresses | other.addresses, self.routes | other.routes
        )
