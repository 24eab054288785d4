"""A Linux host that is only read: see `dtun.platform.dry_run`."""

import asyncio
from collections.abc import Collection
from ipaddress import ip_network
from typing import Literal

from dtun.network.explain import ActualRoute
from dtun.network.state import MAIN_TABLE, Address, Network, NetworkState, Route
from dtun.platform.dry_run import ReadOnlyKernel
from dtun.platform.interface import ForeignRule, HostRoute, LocalNetwork, NextHop
from dtun.platform.linux import inspect, lookup
from dtun.platform.linux.netlink.wire import ROUTE_PROTOCOL
from dtun.platform.linux.nftables import foreign


class LinuxReadOnlyKernel(ReadOnlyKernel):
    async def next_hop(self, address: Address, mark: int | None = None) -> NextHop | None:
        return await lookup.next_hop(address, self._devices, mark)

    async def default_hop(self, version: Literal[4, 6]) -> NextHop | None:
        return await lookup.default_hop(version, self._devices)

    async def local_networks(self) -> list[LocalNetwork]:
        return await lookup.local_networks(self._devices)

    async def host_routes(self, *, connected: bool) -> list[HostRoute]:
        return await lookup.host_routes(self._devices, connected=connected)

    async def foreign_rules(self) -> list[ForeignRule]:
        return await lookup.foreign_rules(self._devices)

    async def forwarding_obstacles(
        self, devices: Collection[str], networks: Collection[Network]
    ) -> list[str]:
        found = await asyncio.to_thread(foreign.read_obstacles, devices, networks)
        return [foreign.explain(one, devices) for one in found]

    async def advertised_devices(self) -> list[str]:
        return await lookup.advertised_devices(self._devices, frozenset())

    async def existing(self, desired: NetworkState, instance: str) -> NetworkState:
        return await inspect.existing(desired, instance)

    async def foreign_tunnels(self) -> list[LocalNetwork]:
        found = await inspect.foreign_tunnels(self._devices)
        return [LocalNetwork(one.device, one.destination) for one in found]

    async def actual_route(self, address: Address) -> ActualRoute:
        found = await inspect.decide(address)
        if found.fate == "no route":
            return ActualRoute(None)
        if found.fate != "unicast" or found.route is None:
            # The kernel returns no details of a route that sends nothing.
            return ActualRoute(Route(ip_network(address), kind="unreachable"))
        route = Route(
            found.route,
            found.device,
            found.gateway,
            metric=found.metric or None,
            table=found.table or MAIN_TABLE,
        )
        return ActualRoute(route, found.protocol == ROUTE_PROTOCOL, found.rule)
