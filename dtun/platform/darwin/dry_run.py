"""A Mac that is only looked at: see `dtun.platform.dry_run`."""

from collections.abc import Collection
from dataclasses import replace
from typing import Literal

from dtun.network.difference import Thing
from dtun.network.explain import ActualRoute
from dtun.network.state import Address, NetworkState
from dtun.platform.darwin import errors, lookup, missing, routes, unsupported, utun
from dtun.platform.darwin.flat import flatten
from dtun.platform.dry_run import ReadOnlyKernel
from dtun.platform.interface import LocalNetwork, NextHop


class DarwinReadOnlyKernel(ReadOnlyKernel):
    """`desired` has routes as they are in the kernel: without metrics, a kill switch below the tunnel's."""

    async def next_hop(self, address: Address) -> NextHop | None:
        with errors.in_words():
            return lookup.next_hop(address, self._devices)

    async def default_hop(self, version: Literal[4, 6]) -> NextHop | None:
        with errors.in_words():
            return lookup.default_hop(version, self._devices)

    async def local_networks(self) -> list[LocalNetwork]:
        with errors.in_words():
            return lookup.local_networks(self._devices)

    async def existing(self, desired: NetworkState, instance: str) -> NetworkState:
        """See `ReadOnlyKernel.existing`. Name servers are never in the answer."""
        del instance
        with errors.in_words():
            gone = missing.missing((*desired.devices, *desired.addresses, *desired.routes, *desired.sysctls))
        return NetworkState(
            devices=desired.devices - gone,
            addresses=desired.addresses - gone,
            routes=desired.routes - gone,
            sysctls=desired.sysctls - gone,
        )

    async def foreign_tunnels(self) -> list[LocalNetwork]:
        with errors.in_words():
            return lookup.foreign_tunnels(self._devices)

    async def actual_route(self, address: Address) -> ActualRoute:
        with errors.in_words():
            found = routes.best(lookup.table(address.version), address)
        return ActualRoute(None) if found is None else ActualRoute(found.route, found.ours)

    def _device_name(self, wanted: str, taken: Collection[str]) -> str:
        with errors.in_words():
            there = {one.name for one in lookup.interfaces()}
        return utun.name_for(wanted, there.union(taken))

    def _possible(self, desired: NetworkState) -> tuple[NetworkState, list[tuple[Thing, str]]]:
        possible, refused = unsupported.split(desired)
        return replace(possible, routes=frozenset(flatten(possible.routes))), refused
