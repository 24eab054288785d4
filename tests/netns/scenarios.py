"""Scenarios for both systems: Linux in a network namespace, macOS on a fake kernel.

Each scenario gets a fresh host (`Place`), and must leave nothing behind.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Protocol

import pytest

from dtun.network.difference import describe
from dtun.network.plan import Hop, Routing, TunnelSettings, UnderlayRoutes, plan_client
from dtun.network.state import Filter, NetDevice, NetworkState, PointToPoint, Route, Sysctl
from dtun.platform.interface import ChangesRefusedError, Kernel, Tun

SERVER = ip_address("203.0.113.5")
PAIR = (ip_address("10.86.0.2"), ip_address("10.86.0.1"))
PAIR6 = (ip_address("fd86::2"), ip_address("fd86::1"))
EVERYTHING = (ip_network("0.0.0.0/0"), ip_network("::/0"))
BYPASSED = ip_network("198.18.0.0/15")


class Place(Protocol):
    """A host with two links and default routes of both IP versions, which tests change and inspect."""

    first: Hop
    """The default route's link and gateway."""

    def kernel(self) -> Kernel:
        """A kernel that is not open yet; the same instance each time."""
        ...

    def way(self, address: str) -> str:
        """Where a packet to `address` goes: "DEVICE", "DEVICE GATEWAY", "refused" or "nowhere"."""
        ...

    def pairs(self, device: str) -> set[tuple[str, str]]:
        """The address pairs of a device."""
        ...

    def mtu(self, device: str) -> int: ...

    def left(self) -> list[str]:
        """Routes and devices of dtun."""
        ...

    def forwards(self) -> bool:
        """Whether the host forwards packets."""
        ...

    def change_gateway(self) -> Hop:
        """Change the default route; returns its new link and gateway."""
        ...

    def remove_route(self, destination: str) -> None:
        """Another program removes a route."""
        ...

    def add_route(self, destination: str) -> None:
        """Another program adds a route through the first link's gateway."""
        ...


Scenario = Callable[[Place], Coroutine[None, None, None]]


def underlay(hop: Hop) -> UnderlayRoutes:
    """The underlay, with the same next hop for the server and everything else."""
    return UnderlayRoutes({SERVER: hop}, frozenset({(SERVER, 443)}), {4: hop})


def shown(hop: Hop) -> str:
    return f"{hop.device} {hop.gateway}"


async def apply(kernel: Kernel, state: NetworkState) -> None:
    """Apply a state; filters may be refused, because macOS has none."""
    try:
        await kernel.apply(state)
    except ChangesRefusedError as error:
        unexpected = [change for change, _ in error.refused if not isinstance(change.what, Filter)]
        assert unexpected == []


@asynccontextmanager
async def opened(place: Place, *names: str) -> AsyncIterator[tuple[Kernel, list[Tun]]]:
    """An open kernel with devices; both are closed at the end."""
    kernel = place.kernel()
    await kernel.open()
    tuns = [kernel.create_tun(name) for name in names]
    try:
        yield kernel, tuns
    finally:
        await kernel.close()
        for tun in tuns:
            tun.close()


async def kill(kernel: Kernel, tun: Tun) -> None:
    """Like kill -9: its device is removed, and everything else stays."""
    await kernel.detach()
    tun.close()


async def eventually(condition: Callable[[], object], what: str) -> None:
    deadline = asyncio.get_running_loop().time() + 10
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"timed out waiting for {what}"
        await asyncio.sleep(0.01)


async def networks_behind_the_server(place: Place) -> None:
    async with opened(place, "dtun0") as (kernel, (tun,)):
        routing = Routing(tun.name, (ip_network("10.9.0.0/16"), ip_network("203.0.113.0/24")))
        await apply(kernel, plan_client(routing, TunnelSettings(1400, (PAIR, PAIR6)), underlay(place.first)))
        assert place.mtu(tun.name) == 1400
        assert place.pairs(tun.name) == {tuple(map(str, PAIR)), tuple(map(str, PAIR6))}
        assert place.way("10.9.1.1") == place.way("203.0.113.6") == place.way("10.86.0.1") == tun.name
        # The server's address is inside a network of the tunnel; its packets stay outside.
        assert place.way(str(SERVER)) == place.way("1.1.1.1") == shown(place.first)
    assert place.way("10.9.1.1") == shown(place.first)


async def everything_except_bypassed_networks(place: Place) -> None:
    async with opened(place, "dtun0") as (kernel, (tun,)):
        routing = Routing(tun.name, EVERYTHING[:1], (BYPASSED,))
        await apply(kernel, plan_client(routing, TunnelSettings(1400, (PAIR,)), underlay(place.first)))
        assert place.way("1.1.1.1") == place.way("192.0.3.1") == tun.name
        assert place.way(str(SERVER)) == place.way("198.18.0.1") == shown(place.first)
        # The tunnel has no IPv6: it must not leave outside the tunnel.
        assert place.way("2606:4700::1") == "refused"


async def the_default_gateway_changes(place: Place) -> None:
    async with opened(place, "dtun0") as (kernel, (tun,)):
        calls: list[str] = []
        kernel.watch(lambda: calls.append("changed"))
        routing = Routing(tun.name, EVERYTHING[:1], (BYPASSED,))
        await apply(kernel, plan_client(routing, TunnelSettings(1400, (PAIR,)), underlay(place.first)))
        hop = await kernel.next_hop(SERVER)
        assert hop is not None
        assert Hop(hop.device, hop.gateway) == place.first, "our own routes are ignored"

        second = place.change_gateway()
        await eventually(lambda: calls, "the watcher to be called")
        hop, default = await kernel.next_hop(SERVER), await kernel.default_hop(4)
        assert hop is not None
        assert default == hop
        assert Hop(hop.device, hop.gateway) == second
        await apply(kernel, plan_client(routing, TunnelSettings(1400, (PAIR,)), underlay(second)))
        assert place.way(str(SERVER)) == place.way("198.18.0.1") == shown(second)
        assert place.way("1.1.1.1") == tun.name


async def a_kill_switch_outlives_the_process(place: Place) -> None:
    async with opened(place, "dtun0") as (kernel, (tun,)):
        routing = Routing(tun.name, EVERYTHING, block=True)
        await apply(kernel, plan_client(routing, None, underlay(place.first)))
        assert place.way("1.1.1.1") == place.way("2606:4700::1") == "refused"
        await apply(kernel, plan_client(routing, TunnelSettings(1400, (PAIR, PAIR6)), underlay(place.first)))
        assert place.way("1.1.1.1") == place.way("129.0.0.1") == place.way("2606:4700::1") == tun.name
        await kill(kernel, tun)
        assert place.way("1.1.1.1") == place.way("129.0.0.1") == place.way("2606:4700::1") == "refused"
        assert place.way(str(SERVER)) == shown(place.first)
    # The successor removes it when it closes.
    async with opened(place):
        assert place.way("1.1.1.1") == "refused"
    assert place.way("1.1.1.1") == shown(place.first)


async def routes_of_a_killed_process_are_taken_over(place: Place) -> None:
    async with opened(place, "dtun0") as (kernel, (tun,)):
        routing = Routing(tun.name, EVERYTHING[:1], (BYPASSED,))
        await apply(kernel, plan_client(routing, TunnelSettings(1400, (PAIR,)), underlay(place.first)))
        await kill(kernel, tun)
        # Routes through the device are gone; those to the server and to bypassed networks, and IPv6 blocks, stay.
        assert place.way("1.1.1.1") == shown(place.first)
        assert {"203.0.113.5", "198.18.0.0/15"} <= {line.removesuffix("/32") for line in place.left()}
    async with opened(place, "dtun0") as (successor, (tun,)):
        # What is still wanted stays; the rest is removed.
        routing = Routing(tun.name, (ip_network("203.0.113.0/24"),))
        await apply(successor, plan_client(routing, TunnelSettings(1400, (PAIR,)), underlay(place.first)))
        assert place.way(str(SERVER)) == shown(place.first)
        assert place.way("203.0.113.6") == tun.name
        assert "198.18.0.0/15" not in place.left()
        assert place.way("2606:4700::1") != "refused"


async def a_server_with_two_clients(place: Place) -> None:
    async with opened(place, "dtun-one", "dtun-two") as (kernel, (one, two)):
        switch = Sysctl("net.ipv4.ip_forward", "1")

        def served(tun: Tun, peer: str, subnet: str) -> NetworkState:
            pair = PointToPoint(tun.name, ip_address("10.86.0.1"), ip_address(peer))
            inside = Route(ip_network(subnet), tun.name)
            return NetworkState(
                frozenset({NetDevice(tun.name, 1400)}), frozenset({pair}), frozenset({inside})
            )

        both = served(one, "10.86.0.2", "10.1.0.0/16") | served(two, "10.86.0.3", "10.2.0.0/16")
        await apply(kernel, replace(both, sysctls=frozenset({switch})))
        assert place.forwards()
        assert (place.way("10.86.0.2"), place.way("10.1.1.1")) == (one.name, one.name)
        assert (place.way("10.86.0.3"), place.way("10.2.1.1")) == (two.name, two.name)
        # One client is removed.
        two.close()
        await apply(kernel, replace(served(one, "10.86.0.2", "10.1.0.0/16"), sysctls=frozenset({switch})))
        assert (place.way("10.1.1.1"), place.way("10.2.1.1")) == (one.name, shown(place.first))
    assert not place.forwards()


async def removed_routes_are_restored(place: Place) -> None:
    async with opened(place, "dtun0") as (kernel, (tun,)):
        routing = Routing(tun.name, (ip_network("10.9.0.0/16"), ip_network("203.0.113.0/24")))
        await apply(kernel, plan_client(routing, TunnelSettings(1400, (PAIR,)), underlay(place.first)))
        place.remove_route("10.9.0.0/16")
        await eventually(
            lambda: place.way("10.9.0.1") == tun.name, "the route into the tunnel to be restored"
        )
        place.remove_route("203.0.113.5/32")
        await eventually(
            lambda: place.way(str(SERVER)) == shown(place.first),
            "the host route to the server to be restored",
        )


async def a_route_of_another_program_is_kept(place: Place) -> None:
    async with opened(place, "dtun0") as (kernel, (tun,)):
        place.add_route("10.9.0.0/16")
        wanted = plan_client(
            Routing(tun.name, (ip_network("10.7.0.0/16"), ip_network("10.9.0.0/16"))),
            TunnelSettings(1400, (PAIR,)),
            underlay(place.first),
        )
        with pytest.raises(ChangesRefusedError) as refusal:
            await kernel.apply(wanted)
        ((change, reason),) = refusal.value.refused
        assert describe(change.what) == f"route 10.9.0.0/16 dev {tun.name}"
        assert f"via {place.first.gateway}" in reason
        assert (place.way("10.7.0.1"), place.way("10.9.0.1")) == (tun.name, shown(place.first))
    assert place.way("10.9.0.1") == shown(place.first)
    place.remove_route("10.9.0.0/16")


ALL: tuple[Scenario, ...] = (
    networks_behind_the_server,
    everything_except_bypassed_networks,
    the_default_gateway_changes,
    a_kill_switch_outlives_the_process,
    routes_of_a_killed_process_are_taken_over,
    a_server_with_two_clients,
    removed_routes_are_restored,
    a_route_of_another_program_is_kept,
)
