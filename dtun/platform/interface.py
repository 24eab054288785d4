"""What an operating system does for dtun: the same few things on every one of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from dtun.network.difference import Change
from dtun.network.state import Address, Network, NetworkState


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
    """A layer 3 device: one read or write on the descriptor is one IP packet. Gone when closed."""

    name: str

    def fileno(self) -> int:
        """The non-blocking descriptor."""
        ...

    def close(self) -> None:
        """Remove the device, with its addresses and routes."""
        ...


class Kernel(Protocol):
    """The host's network configuration, as far as one dtun process changes or reads it."""

    async def open(self) -> None:
        """Get ready, and remove what a killed process of the same instance left behind.

        Raises:
            PermissionDeniedError: the process lacks CAP_NET_ADMIN (or root).
        """
        ...

    async def close(self) -> None:
        """Remove everything that `apply` put in place. May be called twice."""
        ...

    def create_tun(self, name: str) -> Tun:
        """A new TUN device, not yet up.

        Raises:
            UnavailableError: there is no TUN driver, or the name is taken.
            PermissionDeniedError: this process may not make devices.
        """
        ...

    async def apply(self, desired: NetworkState) -> list[Change]:
        """Make the kernel look like `desired` (the whole of it); returns what was changed, in order.

        Raises:
            UnavailableError: the kernel refuses a change; what could be applied stays applied.
        """
        ...

    async def next_hop(self, address: Address) -> NextHop | None:
        """The route that a packet to `address` would take now; None if there is none."""
        ...

    async def local_networks(self) -> list[LocalNetwork]:
        """The networks of the host's own interfaces, dtun's and loopback's left out."""
        ...

    def watch(self, changed: Callable[[], None]) -> None:
        """Call `changed` whenever the host's addresses, default routes or interfaces change (not for our own)."""
        ...
