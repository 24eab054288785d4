"""A host that is only looked at: what would be changed is written down instead. Needs no rights, holds no lock."""

import os
from collections.abc import Callable
from typing import Literal

from dtun.network.difference import Change
from dtun.network.state import Address, NetworkState
from dtun.platform.interface import LocalNetwork, NextHop
from dtun.platform.linux import lookup


class OnlookerTun:
    """A device that is not there. Nothing ever comes out of it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.vnet_header = False
        self.family_header = False
        self.offloads: frozenset[str] = frozenset()
        self.handed_out: frozenset[str] = frozenset()
        self._silence, self._end = os.pipe()
        os.set_blocking(self._silence, False)

    def fileno(self) -> int:
        return self._silence

    def hand_out(self, offloads: frozenset[str]) -> None:
        """It hands out nothing."""

    def close(self) -> None:
        if self._silence >= 0:
            os.close(self._silence)
            os.close(self._end)
            self._silence = -1


class Onlooker:
    """Implements `dtun.platform.interface.Kernel`. `desired` is what `apply` was asked for last."""

    def __init__(self) -> None:
        self.desired = NetworkState()
        self._devices: list[str] = []

    async def open(self) -> None:
        """Nothing is needed to look."""

    async def close(self) -> None:
        """Nothing was changed."""

    async def leave(self) -> None:
        """Nothing was changed."""

    def create_tun(self, name: str, descriptor: int | None = None) -> OnlookerTun:
        del descriptor
        self._devices.append(name)
        return OnlookerTun(name)

    async def apply(self, desired: NetworkState) -> list[Change]:
        self.desired = desired
        return []

    async def next_hop(self, address: Address) -> NextHop | None:
        return await lookup.next_hop(address, self._devices)

    async def default_hop(self, version: Literal[4, 6]) -> NextHop | None:
        return await lookup.default_hop(version, self._devices)

    async def local_networks(self) -> list[LocalNetwork]:
        return await lookup.local_networks(self._devices)

    def watch(self, changed: Callable[[], None], woke: Callable[[float], None] | None = None) -> None:
        """Whoever looks once is not interested in what comes after."""
