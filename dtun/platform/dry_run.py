"""A kernel for `dtun plan` and `dtun explain`: reads the host, and records changes instead of making them.

It needs no privileges and takes no lock.
"""

# ruff: noqa: B027 - methods that change nothing are empty on purpose

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import Literal

from dtun.network.difference import Change, Thing
from dtun.network.explain import ActualRoute
from dtun.network.state import Address, Network, NetworkState, Sysctl
from dtun.platform import resolv_conf
from dtun.platform.interface import ChangesRefusedError, ForeignRule, HostRoute, LocalNetwork, NextHop


class AbsentTun:
    """Stands for a TUN device that is not created. It never has a packet to read."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.vnet_header = False
        self.family_header = False
        self.offloads: frozenset[str] = frozenset()
        self.enabled_offloads: frozenset[str] = frozenset()
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._read_end, False)

    def fileno(self) -> int:
        return self._read_end

    def enable_offloads(self, offloads: frozenset[str]) -> None:
        """There are none."""

    def works(self) -> bool:
        return True

    def watch(self, lost: Callable[[], None], renewed: Callable[[], None]) -> None:
        """Nobody can remove it."""

    def close(self) -> None:
        if self._read_end >= 0:
            os.close(self._read_end)
            os.close(self._write_end)
            self._read_end = -1


class ReadOnlyKernel(ABC):
    """The part of `dtun.platform.interface.Kernel` that is the same on all systems.

    `desired` is what the kernel would have after the last `apply`. `running` maps device names of the configuration to
    the real names of devices that exist already.
    """

    def __init__(self, running: Mapping[str, str] | None = None) -> None:
        self.desired = NetworkState()
        self._running = running or {}
        self._devices: list[str] = []

    async def open(self) -> None:
        """Nothing to prepare."""

    async def close(self) -> None:
        """Nothing to remove."""

    async def detach(self) -> None:
        """Nothing to leave in place."""

    def create_tun(self, name: str, descriptor: int | None = None) -> AbsentTun:
        del descriptor
        real = self._running.get(name) or self._device_name(name, self._devices)
        self._devices.append(real)
        return AbsentTun(real)

    async def apply(self, desired: NetworkState) -> list[Change]:
        self.desired, refused = self._possible(desired)
        if refused:
            raise ChangesRefusedError([(Change("add", thing), reason) for thing, reason in refused], [])
        return []

    def watch(self, changed: Callable[[], None], woke: Callable[[float], None] | None = None) -> None:
        """Never calls back: a dry run reads the host once."""

    @abstractmethod
    async def next_hop(self, address: Address, mark: int | None = None) -> NextHop | None: ...

    @abstractmethod
    async def default_hop(self, version: Literal[4, 6]) -> NextHop | None: ...

    @abstractmethod
    async def local_networks(self) -> list[LocalNetwork]: ...

    @abstractmethod
    async def host_routes(self, *, connected: bool) -> list[HostRoute]: ...

    def has(self, setting: Sysctl) -> bool:
        """A start that is only tried changes no setting and asks for none."""
        del setting
        return False

    async def foreign_rules(self) -> list[ForeignRule]:
        return []

    async def forwarding_obstacles(
        self, devices: Collection[str], networks: Collection[Network]
    ) -> list[str]:
        del devices, networks
        return []

    async def forget_connections(self, networks: Collection[Network], but: Collection[Network]) -> None:
        """None is changed."""

    @abstractmethod
    async def advertised_devices(self) -> list[str]: ...

    def name_servers(self) -> list[Address]:
        return resolv_conf.name_servers()

    @abstractmethod
    async def existing(self, desired: NetworkState, instance: str) -> NetworkState:
        """The part of `desired` that the dtun process called `instance` has in the kernel already.

        Raises:
            UnavailableError: the kernel cannot be read.
        """

    @abstractmethod
    async def foreign_tunnels(self) -> list[LocalNetwork]:
        """Networks that other programs route through tunnels of their own.

        Raises:
            UnavailableError: the kernel cannot be read.
        """

    @abstractmethod
    async def actual_route(self, address: Address) -> ActualRoute:
        """The route that the kernel uses for `address` now, dtun's own routes included.

        Raises:
            UnavailableError: the kernel cannot be read.
        """

    def _device_name(self, wanted: str, taken: Collection[str]) -> str:
        """The real name of a device that is requested as `wanted`; `taken` are those requested before."""
        del taken
        return wanted

    def _possible(self, desired: NetworkState) -> tuple[NetworkState, list[tuple[Thing, str]]]:
        """What the kernel would have after applying `desired`, and what is refused, each with its reason."""
        return desired, []
