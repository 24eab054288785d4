"""A host that is only looked at: what would be changed is written down instead. Needs no rights, holds no lock."""

# ruff: noqa: B027 - to do nothing is what it is for

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import Literal

from dtun.network.difference import Change, Thing
from dtun.network.explain import ActualRoute
from dtun.network.state import Address, NetworkState
from dtun.platform.interface import ChangesRefusedError, LocalNetwork, NextHop


class AbsentTun:
    """A device that is not there. Nothing ever comes out of it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.vnet_header = False
        self.family_header = False
        self.offloads: frozenset[str] = frozenset()
        self.enabled_offloads: frozenset[str] = frozenset()
        self._silence, self._tunnel = os.pipe()
        os.set_blocking(self._silence, False)

    def fileno(self) -> int:
        return self._silence

    def enable_offloads(self, offloads: frozenset[str]) -> None:
        """It hands out nothing."""

    def close(self) -> None:
        if self._silence >= 0:
            os.close(self._silence)
            os.close(self._tunnel)
            self._silence = -1


class ReadOnlyKernel(ABC):
    """Implements `dtun.platform.interface.Kernel`, as far as that is the same everywhere.

    `desired` is what a start would have in the kernel after the last `apply`, in the kernel's own terms. `running`
    has the real names of devices that are there already, by the names that the configuration has for them.
    """

    def __init__(self, running: Mapping[str, str] | None = None) -> None:
        self.desired = NetworkState()
        self._running = running or {}
        self._devices: list[str] = []

    async def open(self) -> None:
        """Nothing is needed to look."""

    async def close(self) -> None:
        """Nothing was changed."""

    async def detach(self) -> None:
        """Nothing was changed."""

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
        """Whoever looks once is not interested in what comes after."""

    @abstractmethod
    async def next_hop(self, address: Address) -> NextHop | None: ...

    @abstractmethod
    async def default_hop(self, version: Literal[4, 6]) -> NextHop | None: ...

    @abstractmethod
    async def local_networks(self) -> list[LocalNetwork]: ...

    @abstractmethod
    async def existing(self, desired: NetworkState, instance: str) -> NetworkState:
        """The part of `desired` that is in the kernel already, of the dtun called `instance`.

        Raises:
            UnavailableError: the kernel does not say.
        """

    @abstractmethod
    async def foreign_tunnels(self) -> list[LocalNetwork]:
        """What other programs send through tunnels that are not dtun's.

        Raises:
            UnavailableError: the kernel does not say.
        """

    @abstractmethod
    async def actual_route(self, address: Address) -> ActualRoute:
        """Where a packet to `address` goes now, dtun's own routes included.

        Raises:
            UnavailableError: the kernel does not say.
        """

    def _device_name(self, wanted: str, taken: Collection[str]) -> str:
        """What a device would be called that is asked for as `wanted`; `taken` are those made so far."""
        del taken
        return wanted

    def _possible(self, desired: NetworkState) -> tuple[NetworkState, list[tuple[Thing, str]]]:
        """What a start would have in the kernel, and what it would refuse, each with its reason."""
        return desired, []
