"""What dtun does with a host's network, told once for all systems: on Linux in a namespace, on macOS's fake kernel.

`Place` is the host; each scenario begins on a fresh one and leaves nothing behind.
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
    """A host with two links and default routes of both IP versions, and what tests do to it and look at."""

    first: Hop
    """The default route's link and gateway."""

    def kernel(self) -> Kernel:
        """Dtun's side, not yet open: the same instance each time."""
        ...

    def way(self, address: str) -> str:
        """Where a packet goes: a device, with " GATEWAY" if there is one; "refused", or "nowhere"."""
        ...

    def pairs(self, device: str) -> set[tuple[str, str]]:
        """The addresses of a device, with their peers."""
        ...

    def mtu(self, device: str) -> int: ...

    def left(self) -> list[str]:
        """Routes and devices that are dtun's."""
        ...

    def forwards(self) -> bool:
        """Whether packets of others are passed on."""
        ...

    def move(self) -> Hop:
        """The default route is another one now; returns its link and gateway."""
        ...

    def steal(self, destination: str) -> None:
        """Another program removes a route."""
        ...

    def occupy(self, destination: str) -> None:
        """Another program makes a route, through the first link's gateway."""
        ...


Scenario = Callable[[Place], Coroutine[None, None, None]]


def outside(way: Hop) -> UnderlayRoutes:
    """What the host looks like to a plan: the server and all else is reached this way."""
    return UnderlayRoutes({SERVER: way}, frozenset({(SERVER, 443)}), {4: way})


def shown(way: Hop) -> str:
    return f"{way.device} {way.gateway}"


async def put(kernel: Kernel, state: NetworkState) -> None:
    """Apply; that a system has no packet filter is no matter here."""
    try:
        await kernel.apply(state)
    except ChangesRefusedError as error:
        others = [change for change, _ in error.refused if not isinstance(change.what, Filter)]
        assert others == []


@asynccontextmanager
async def opened(place: Place, *names: str) -> AsyncIterator[tuple[Kernel, list[Tun]]]:
    """An open kernel with devices, all of it tidied up in the end."""
    kernel = place.kernel()
    await kernel.open()
    tuns = [kernel.create_tun(name) for name in names]
    try:
        yield kernel, tuns
    finally:
        await kernel.close()
        for tun in tuns:
            tun.close()


async def gone(kernel: Kernel, tun: Tun) -> None:
    """As if the process had been killed: its device goes with it, and everything else stays."""
    await kernel.detach()
    tun.close()


async def eventually(condition: Callable[[], object], what: str) -> None:
    deadline = asyncio.get_running_loop().time() + 10
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"waited in vain for {what}"
        await asyncio.sleep(0.01)


async def networks_behind_the_server(place: Place) -> None:
    async with opened(place, "dtun0") as (kernel, (tun,)):
        routing = Routing(tun.name, (ip_network("10.9.0.0/16"), ip_network("203.0.113.0/24")))
        await put(kernel, plan_client(routing, TunnelSettings(1400, (PAIR, PAIR6)), outside(place.first)))
        assert place.mtu(tun.name) == 1400
        assert place.pairs(tun.name) == {tuple(map(str, PAIR)), tuple(map(str, PAIR6))}
        assert place.way("10.9.1.1") == place.way("203.0.113.6") == place.way("10.86.0.1") == tun.name
        # The server is inside of what goes through the tunnel, and is reached outside of it.
        assert place.way(str(SERVER)) == place.way("1.1.1.1") == shown(place.first)
    assert place.way("10.9.1.1") == shown(place.first)


async def everything_but_what_is_kept_out(place: Place) -> None:
    async with opened(place, "dtun0") as (kernel, (tun,)):
        routing = Routing(tun.name, EVERYTHING[:1], (BYPASSED,))
        await put(kernel, plan_client(routing, TunnelSettings(1400, (PAIR,)), outside(place.first)))
        assert place.way("1.1.1.1") == place.way("192.0.3.1") == tun.name
        assert place.way(str(SERVER)) == place.way("198.18.0.1") == shown(place.first)
        # The tunnel has no IPv6, which would go past it.
        assert place.way("2606:4700::1") == "refused"


async def the_way_out_changes(place: Place) -> None:
    async with opened(place, "dtun0") as (kernel, (tun,)):
        heard: list[str] = []
        kernel.watch(lambda: heard.append("changed"))
        routing = Routing(tun.name, EVERYTHING[:1], (BYPASSED,))
        await put(kernel, plan_client(routing, TunnelSettings(1400, (PAIR,)), outside(place.first)))
        hop = await kernel.next_hop(SERVER)
        assert hop is not None
        assert Hop(hop.device, hop.gateway) == place.first, "our own routes are left out"

        second = place.move()
        await eventually(lambda: heard, "the watcher to hear of it")
        hop, default = await kernel.next_hop(SERVER), await kernel.default_hop(4)
        assert hop is not None
        assert default == hop
        assert Hop(hop.device, hop.gateway) == second
        await put(kernel, plan_client(routing, TunnelSettings(1400, (PAIR,)), outside(second)))
        assert place.way(str(SERVER)) == place.way("198.18.0.1") == shown(second)
        assert place.way("1.1.1.1") == tun.name


async def a_kill_switch_stays_closed(place: Place) -> None:
    async with opened(place, "dtun0") as (kernel, (tun,)):
        routing = Routing(tun.name, EVERYTHING, block=True)
        await put(kernel, plan_client(routing, None, outside(place.first)))
        assert place.way("1.1.1.1") == place.way("2606:4700::1") == "refused"
        await put(kernel, plan_client(routing, TunnelSettings(1400, (PAIR, PAIR6)), outside(place.first)))
        assert place.way("1.1.1.1") == place.way("129.0.0.1") == place.way("2606:4700::1") == tun.name
        await gone(kernel, tun)
        assert place.way("1.1.1.1") == place.way("129.0.0.1") == place.way("2606:4700::1") == "refused"
        assert place.way(str(SERVER)) == shown(place.first)
    # It is open again when somebody ends it who may.
    async with opened(place):
        assert place.way("1.1.1.1") == "refused"
    assert place.way("1.1.1.1") == shown(place.first)


async def what_a_killed_one_left(place: Place) -> None:
    async with opened(place, "dtun0") as (kernel, (tun,)):
        routing = Routing(tun.name, EVERYTHING[:1], (BYPASSED,))
        await put(kernel, plan_client(routing, TunnelSettings(1400, (PAIR,)), outside(place.first)))
        await gone(kernel, tun)
        # The device took its own along; pinned and bypass routes, and those that refuse IPv6, are there.
        assert place.way("1.1.1.1") == shown(place.first)
        assert {"203.0.113.5", "198.18.0.0/15"} <= {line.removesuffix("/32") for line in place.left()}
    async with opened(place, "dtun0") as (successor, (tun,)):
        # What is wanted again stays, and the rest goes.
        routing = Routing(tun.name, (ip_network("203.0.113.0/24"),))
        await put(successor, plan_client(routing, TunnelSettings(1400, (PAIR,)), outside(place.first)))
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
        await put(kernel, replace(both, sysctls=frozenset({switch})))
        assert place.forwards()
        assert (place.way("10.86.0.2"), place.way("10.1.1.1")) == (one.name, one.name)
        assert (place.way("10.86.0.3"), place.way("10.2.1.1")) == (two.name, two.name)
        # One of them goes for good.
        two.close()
        await put(kernel, replace(served(one, "10.86.0.2", "10.1.0.0/16"), sysctls=frozenset({switch})))
        assert (place.way("10.1.1.1"), place.way("10.2.1.1")) == (one.name, shown(place.first))
    assert not place.forwards()


async def what_others_take_comes_back(place: Place) -> None:
    async with opened(place, "dtun0") as (kernel, (tun,)):
        routing = Routing(tun.name, (ip_network("10.9.0.0/16"), ip_network("203.0.113.0/24")))
        await put(kernel, plan_client(routing, TunnelSettings(1400, (PAIR,)), outside(place.first)))
        place.steal("10.9.0.0/16")
        await eventually(lambda: place.way("10.9.0.1") == tun.name, "the route into the tunnel to be back")
        place.steal("203.0.113.5/32")
        await eventually(
            lambda: place.way(str(SERVER)) == shown(place.first), "the server's way around it to be back"
        )


async def a_route_of_another_program_stays(place: Place) -> None:
    async with opened(place, "dtun0") as (kernel, (tun,)):
        place.occupy("10.9.0.0/16")
        wanted = plan_client(
            Routing(tun.name, (ip_network("10.7.0.0/16"), ip_network("10.9.0.0/16"))),
            TunnelSettings(1400, (PAIR,)),
            outside(place.first),
        )
        with pytest.raises(ChangesRefusedError) as refusal:
            await kernel.apply(wanted)
        ((change, reason),) = refusal.value.refused
        assert describe(change.what) == f"route 10.9.0.0/16 dev {tun.name}"
        assert f"via {place.first.gateway}" in reason
        assert (place.way("10.7.0.1"), place.way("10.9.0.1")) == (tun.name, shown(place.first))
    assert place.way("10.9.0.1") == shown(place.first)
    place.steal("10.9.0.0/16")


ALL: tuple[Scenario, ...] = (
    networks_behind_the_server,
    everything_but_what_is_kept_out,
    the_way_out_changes,
    a_kill_switch_stays_closed,
    what_a_killed_one_left,
    a_server_with_two_clients,
    what_others_take_comes_back,
    a_route_of_another_program_stays,
)
