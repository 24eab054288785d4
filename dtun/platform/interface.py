"""What an operating system does for dtun: the same few things on every one of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from dtun.errors import UnavailableError
from dtun.network.difference import Change
from dtun.network.state import Address, Network, NetworkState


class ChangesRefusedError(UnavailableError):
    """The kernel refused some changes (`refused`, each with its reason); the others are in place."""

    def __init__(self, refused: list[tuple[Change, str]], applied: list[Change]) -> None:
        self.refused = refused
        self.applied = applied
        change, reason = refused[0]
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        super().__init__(f"cannot {change}: {reason}{more}")


@dataclass(frozen=True, slots=True)
class NextHop:
    """How the host reaches an address now. `gateway` is None for a neighbour on the link; `mtu` in bytes."""

    device: str
    gateway: Address | None
    source: Address | None
    mtu: int


@dataclass(frozen=True, slots=True)
class LocalNetwork:
    """A network that the host is itself a member of: an interface's address and prefix."""

    device: str
    network: Network


class Tun(Protocol):
    """A layer 3 device. Gone when closed.

    `offloads` names the super-packets that it can take: "segments" (of TCP, and checksums left to the receiver),
    "udp-segments". With `vnet_header` each read and write has that header (dtun.protocol.virtio) in front, with
    `family_header` macOS's (dtun.dataplane.device); without either, it is one bare IP packet.
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
        """From now on reads may bring these kinds of super-packets (a part of `offloads`), and no others."""
        ...

    def close(self) -> None:
        """Remove the device, with its addresses and routes."""
        ...


class Kernel(Protocol):
    """The host's network configuration, as far as one dtun process changes or reads it."""

    async def open(self) -> None:
        """Get ready, and take over what a killed process of the same instance left behind.

        What is really there counts as applied: the first `apply` removes what it does not ask for, and the rest stays
        without a gap, such as the routes of a kill switch. `close` without any `apply` removes all of it.

        Raises:
            PermissionDeniedError: the process lacks CAP_NET_ADMIN (or root), or may not write its runtime
                directory.
            UnavailableError: another process runs as the same instance, or the runtime directory is of no
                use.
        """
        ...

    async def close(self) -> None:
        """Remove everything that `apply` put in place, and what `open` took over.

        May be called twice. The caller closes its devices.

        Raises:
            ChangesRefusedError: something could not be removed; everything else has been, and all is closed.
        """
        ...

    async def detach(self) -> None:
        """Go, and leave everything as it is: a successor will take it over. The caller does not close its devices."""
        ...

    def create_tun(self, name: str, descriptor: int | None = None) -> Tun:
        """A new TUN device, not yet up; or with `descriptor`, which it takes over, one that a predecessor has made.

        What a predecessor's device has counts as applied, as in `open`.

        Raises:
            UnavailableError: there is no TUN driver, or the name is taken.
            PermissionDeniedError: this process may not make devices.
        """
        ...

    async def apply(self, desired: NetworkState) -> list[Change]:
        """Make the kernel look like `desired` (the whole of it); returns what was changed, in order.

        What belongs to a device of ours that has been closed is left out of `desired`: it went with the
        device. Calls wait for each other.

        What others remove afterwards, or the kernel drops with a link, is put back without another call: at once, and
        more and more patiently while that keeps happening.

        Raises:
            ChangesRefusedError: the kernel refuses some of it, such as a route that somebody else has; the
                rest is in place, and the next call tries again.
            PermissionDeniedError: CAP_NET_ADMIN is missing.
            UnavailableError: the kernel does not answer, or the runtime directory is of no use any more.
        """
        ...

    async def next_hop(self, address: Address) -> NextHop | None:
        """The route that a packet to `address` would take now if dtun had none; None if there is none.

        The routes of this and other dtun processes are left out, so that a host route which keeps a server
        reachable outside the tunnel does not hide that the host has a better way by now.

        Raises:
            UnavailableError: the kernel does not say.
        """
        ...

    async def default_hop(self, version: Literal[4, 6]) -> NextHop | None:
        """The host's own default route of this IP version, of the smallest metric; None if there is none.

        Routes through TUN devices are left out, dtun's and others', and so are the halves (0.0.0.0/1 with
        128.0.0.0/1) that a VPN puts in front of the default route.

        Raises:
            UnavailableError: the kernel does not say.
        """
        ...

    async def local_networks(self) -> list[LocalNetwork]:
        """The networks of the host's own interfaces, dtun's and loopback's left out.

        Raises:
            UnavailableError: the kernel does not say.
        """
        ...

    def watch(self, changed: Callable[[], None], woke: Callable[[float], None] | None = None) -> None:
        """Call `changed` whenever the host's addresses, default routes or interfaces change (not our own).

        And `woke` with the seconds that the host has slept, where that can be told.

        From the event loop, after `open`; once for a burst that is read at once. A hint to look again: a
        burst that overflows the kernel's queue counts as a change.
        """
        ...
