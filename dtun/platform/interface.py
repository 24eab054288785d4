"""The operating system as dtun uses it: `Kernel` for the host's network, `Tun` for a device.

`linux/` and `darwin/` implement both, `dry_run.py` a kernel that changes nothing.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal, Protocol

from dtun.errors import UnavailableError
from dtun.network.difference import Change
from dtun.network.state import Address, Network, NetworkState, Sysctl


class ChangesRefusedError(UnavailableError):
    """The kernel refused some changes (`refused`, each with its reason) and made the others (`applied`)."""

    def __init__(self, refused: list[tuple[Change, str]], applied: list[Change]) -> None:
        self.refused = refused
        self.applied = applied
        change, reason = refused[0]
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        super().__init__(f"cannot {change}: {reason}{more}")


@dataclass(frozen=True, slots=True)
class NextHop:
    """How the host reaches an address. `gateway` is None for an address on the link; `mtu` in bytes.

    `source` is the address to send from, as far as the kernel tells it. `route_source` is the one that the route
    itself prescribes ("src" in ip-route(8)), if any.
    """

    device: str
    gateway: Address | None
    source: Address | None
    mtu: int
    route_source: Address | None = None


@dataclass(frozen=True, slots=True)
class LocalNetwork:
    """A network of one of the host's interfaces."""

    device: str
    network: Network


@dataclass(frozen=True, slots=True)
class HostRoute:
    """A route through another device than dtun's, and not a default route."""

    network: Network
    device: str


@dataclass(frozen=True, slots=True)
class ForeignRule:
    """A policy rule of another program that applies to all packets of an IP version.

    `networks` are those that its table has routes to, dtun's left out.
    """

    version: int
    priority: int
    table: int
    networks: tuple[Network, ...]


class Tun(Protocol):
    """A TUN device (layer 3). The kernel removes it when it is closed.

    Each read and write is one IP packet. With `vnet_header` it has a virtio header in front (dtun.protocol.virtio),
    with `family_header` macOS's address family (dtun.dataplane.device). `offloads` are the kinds of super-packets that
    the device supports: "segments" (TCP, and packets without checksums) and "udp-segments". `enabled_offloads` are
    those that reads may return.
    """

    name: str
    vnet_header: bool
    family_header: bool
    offloads: frozenset[str]
    enabled_offloads: frozenset[str]

    def fileno(self) -> int:
        """The non-blocking descriptor."""
        ...

    def enable_offloads(self, offloads: frozenset[str]) -> None:
        """Let reads return these kinds of super-packets (a subset of `offloads`), and no others."""
        ...

    def works(self) -> bool:
        """Whether the device is there under its name, and up."""
        ...

    def watch(self, lost: Callable[[], None], renewed: Callable[[], None]) -> None:
        """Another program may remove, rename or move the device; the kernel then makes it anew.

        `lost` is called before each attempt: nothing may wait for the descriptor from then on. `renewed` is called when
        the device is there again, behind the same descriptor. What belongs to it is applied again after that.
        """
        ...

    def close(self) -> None:
        """Close the device: the kernel removes it, with its addresses and routes."""
        ...


class Kernel(Protocol):
    """The host's network configuration, which one dtun process reads and changes.

    The life of an instance: `open`, `apply` for each new desired state, then `close`, or `detach` before a restart.
    """

    async def open(self) -> None:
        """Prepare, and take over what a killed process of the same instance left in the kernel.

        What is still there counts as applied: the first `apply` removes what it does not want and keeps the rest
        without a gap, such as the routes of a kill switch. `close` without an `apply` removes all of it.

        Raises:
            PermissionDeniedError: the process lacks CAP_NET_ADMIN (or root), or may not write to its runtime
                directory.
            UnavailableError: another process runs as the same instance, or the runtime directory cannot be used.
        """
        ...

    async def close(self) -> None:
        """Remove everything that was applied or taken over. The caller closes its devices.

        May be called twice.

        Raises:
            ChangesRefusedError: something could not be removed; everything else is removed and closed.
        """
        ...

    async def detach(self) -> None:
        """Close and leave everything in the kernel, for a successor. The caller keeps its devices open."""
        ...

    def create_tun(self, name: str, descriptor: int | None = None) -> Tun:
        """Create a TUN device, which is not up yet; or take over a predecessor's, of which `descriptor` is open.

        The addresses and routes of a predecessor's device count as applied, as in `open`.

        Raises:
            UnavailableError: there is no TUN driver, or the name is in use; `descriptor` is not that device any more.
            PermissionDeniedError: this process may not create devices.
        """
        ...

    async def apply(self, desired: NetworkState) -> list[Change]:
        """Make the kernel look like `desired`, which is the complete state; returns the changes made, in order.

        What belongs to a closed device of ours is ignored: the kernel removed it with the device. Calls wait for each
        other.

        What other programs remove later, or the kernel removes when an interface goes down, is restored without another
        call (dtun.platform.repair).

        Raises:
            ChangesRefusedError: the kernel refuses a part, such as a route that another program has; the rest is
                applied, and the next call tries that part again.
            PermissionDeniedError: CAP_NET_ADMIN (or root) is missing.
            UnavailableError: the kernel does not answer, or the journal cannot be written.
        """
        ...

    async def next_hop(self, address: Address, mark: int | None = None) -> NextHop | None:
        """The next hop to `address` outside all tunnels of dtun; None if there is no route.

        It is the kernel's own answer for packets with this firewall mark. Where that would be a route of this or
        another dtun process, it is what the kernel would take of the main table without them: so the host route to a
        server does not hide a better route that the host has got since.

        Raises:
            UnavailableError: the kernel cannot be read.
        """
        ...

    async def default_hop(self, version: Literal[4, 6]) -> NextHop | None:
        """The host's own default route of this IP version that the kernel would take; None if there is none.

        Routes through TUN devices are ignored (not TAP, which are Ethernet), and so are the halves (0.0.0.0/1 and
        128.0.0.0/1) with which a VPN overrides the default route.

        Raises:
            UnavailableError: the kernel cannot be read.
        """
        ...

    async def local_networks(self) -> list[LocalNetwork]:
        """The networks of the host's interfaces, except dtun's and loopback.

        Raises:
            UnavailableError: the kernel cannot be read.
        """
        ...

    async def host_routes(self, *, connected: bool) -> list[HostRoute]:
        """The routes of the main table that do not go through this process's devices.

        Either those to the networks and peers of the devices themselves, which the kernel makes with an address
        (`connected`), or all others.

        Left out are default routes, their halves and the like (prefixes of at most 3 bits), link-local and multicast
        networks, and what sends nothing.

        Raises:
            UnavailableError: the kernel cannot be read.
        """
        ...

    def has(self, setting: Sysctl) -> bool:
        """Whether the kernel has this setting with this value now; False if it cannot be read."""
        ...

    async def foreign_rules(self) -> list[ForeignRule]:
        """The rules of other programs that apply to all packets, other than those for the kernel's own tables.

        Raises:
            UnavailableError: the kernel cannot be read.
        """
        ...

    async def forwarding_obstacles(
        self, devices: Collection[str], networks: Collection[Network]
    ) -> list[str]:
        """What other firewalls do against packets that this host forwards from or to these devices, a sentence each.

        `networks` are those behind the devices, to know them in a firewall's rules.
        """
        ...

    async def forget_connections(self, networks: Collection[Network], but: Collection[Network]) -> None:
        """Have connections to `networks`, but for those to `but`, lose the translated addresses of their former way."""
        ...

    async def advertised_devices(self) -> list[str]:
        """The devices on which the kernel takes router advertisements, as long as this host is no router.

        Raises:
            UnavailableError: the kernel cannot be read.
        """
        ...

    def name_servers(self) -> list[Address]:
        """The name servers that this host asks, without those on the host itself."""
        ...

    def watch(self, changed: Callable[[], None], woke: Callable[[float], None] | None = None) -> None:
        """Call `changed` when the host's addresses, default routes or interfaces change, except our own.

        Call `woke` with the seconds that the host has slept, where the system reports it.

        Both are called from the event loop, after `open`. One call may stand for several changes, and there may be none
        at all: a burst that overflows the kernel's queue counts as a change.
        """
        ...
