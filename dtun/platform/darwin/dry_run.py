"""A Mac that is read and not changed: see `dtun.platform.dry_run`."""

from collections.abc import Collection
from dataclasses import replace
from typing import Literal

from dtun.network.difference import Thing
from dtun.network.explain import ActualRoute
from dtun.network.state import Address, NetworkState
from dtun.platform.darwin import errors, lookup, observed, tun, unsupported
from dtun.platform.darwin.loopback import with_own_addresses
from dtun.platform.darwin.metrics import without_metrics
from dtun.platform.darwin.missing import missing
from dtun.platform.dry_run import ReadOnlyKernel
from dtun.platform.interface import HostRoute, LocalNetwork, NextHop


class DarwinReadOnlyKernel(ReadOnlyKernel):
    """`desired` has routes as a start would install them: see dtun.platform.darwin.metrics and .loopback."""

    async def next_hop(self, address: Address, mark: int | None = None) -> NextHop | None:
        del mark  # there are none
        with errors.unavailable_if_refused():
            return lookup.next_hop(address, self._devices)

    async def default_hop(self, version: Literal[4, 6]) -> NextHop | None:
        with errors.unavailable_if_refused():
            return lookup.default_hop(version, self._devices)

    async def advertised_devices(self) -> list[str]:
        return []

    async def local_networks(self) -> list[LocalNetwork]:
        with errors.unavailable_if_refused():
            return lookup.local_networks(self._devices)

    async def host_routes(self, *, connected: bool) -> list[HostRoute]:
        with errors.unavailable_if_refused():
            return lookup.routed_networks(self._devices, connected=connected)

    async def existing(self, desired: NetworkState, instance: str) -> NetworkState:
        """See `ReadOnlyKernel.existing`. Name servers are never in the result."""
        del instance
        with errors.unavailable_if_refused():
            gone = missing((*desired.devices, *desired.addresses, *desired.routes, *desired.sysctls))
        return NetworkState(
            devices=desired.devices - gone,
            addresses=desired.addresses - gone,
            routes=desired.routes - gone,
            sysctls=desired.sysctls - gone,
        )

    async def foreign_tunnels(self) -> list[LocalNetwork]:
        with errors.unavailable_if_refused():
            return lookup.foreign_tunnels(self._devices)

    async def actual_route(self, address: Address) -> ActualRoute:
        with errors.unavailable_if_refused():
            found = lookup.best_route(observed.routes(address.version), address)
        return ActualRoute(None) if found is None else ActualRoute(found.route, found.ours)

    def _device_name(self, wanted: str, taken: Collection[str]) -> str:
        with errors.unavailable_if_refused():
            there = {one.name for one in observed.interfaces()}
        return tun.name_for(wanted, there.union(taken))

    def _possible(self, desired: NetworkState) -> tuple[NetworkState, list[tuple[Thing, str]]]:
        possible, refused = unsupported.split(desired)
        routes = with_own_addresses(without_metrics(possible.routes), possible.addresses)
        return replace(possible, routes=routes), refused
