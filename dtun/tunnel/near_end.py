"""The client's own end of the tunnel: durable, while sessions come and go. What `Identity` is on the server.

It owns the TUN device, its addresses and routes, the hooks and the counters. The session in service sends and
receives through its pump.
"""

import asyncio
import logging
from collections.abc import Mapping
from ipaddress import ip_address

from dtun.config import ClientConfig
from dtun.dataplane.counters import Counters
from dtun.dataplane.offload import device_for
from dtun.dataplane.pump import Pump
from dtun.network.state import Address, Link as Device, NetworkState, PointToPoint, Route
from dtun.platform.interface import Kernel, NextHop, Tun
from dtun.protocol.messages import Welcome
from dtun.tunnel.hooks import RunHook, UpDown
from dtun.tunnel.link import Link
from dtun.tunnel.pins import Pins, halves
from dtun.tunnel.sockets import SockAddr
from dtun.tunnel.wishes import Wishes

log = logging.getLogger("dtun.client")

OWNER = "client"


class NearEnd:
    """One client's device and what belongs to it. `welcome` is what the server said last, None before that."""

    def __init__(
        self, config: ClientConfig, kernel: Kernel, run_hook: RunHook, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.counters = Counters()
        self.welcome: Welcome | None = None
        self.mtu = 0
        self._config = config
        self._kernel = kernel
        self._loop = loop
        self._wishes = Wishes(kernel)
        self._pins = Pins(config.routes, kernel, self._wishes)
        self._hooks = UpDown(run_hook, config.hook("up"), config.hook("down"), config.tun)
        self._tun: Tun | None = None
        self._pump: Pump | None = None
        self._latest: Link | None = None
        self._hop: NextHop | None = None

    def open(self) -> None:
        """Make the device.

        Raises:
            DtunError: there is no TUN driver, no right to use it, or the name is taken.
        """
        self._tun = self._kernel.create_tun(self._config.tun)
        device = device_for(self._tun, self.counters)
        self._pump = Pump(device, self.counters, accepts=_any_packet, loop=self._loop)

    async def close(self) -> None:
        """Run `down`, and remove everything."""
        await self.down("stopped")
        await self._wishes.drop(OWNER)
        await self._pins.drop()
        if self._pump is not None:
            self._pump.close()
        if self._tun is not None:
            self._tun.close()

    @property
    def offloads(self) -> tuple[str, ...]:
        """The super-packets that this end can take, for the Hello."""
        return tuple(sorted(self._tun.offloads)) if self._tun else ()

    @property
    def hook_error(self) -> str | None:
        return self._hooks.error

    async def make_way(self, server: SockAddr) -> bool:
        """Before a server is tried: keep what goes there out of the tunnel. False if the host has no way to it.

        Raises:
            UnavailableError: the kernel refuses the route.
        """
        return await self._pins.hold(_host(server))

    async def take_up(self, link: Link, welcome: Welcome) -> bool:
        """Serve through this session from now on. False if it has ended meanwhile.

        Raises:
            DtunError: the kernel refuses an address.
        """
        mtu = link.agreed_mtu(self._config.mtu, welcome.mtu, ipv6=welcome.address6 is not None)
        refused = await self._wishes.put(OWNER, self._network_state(welcome, mtu))
        if link.ended() or self._pump is None or self._tun is None:
            return False
        for route, reason in refused:
            log.warning("route %s is not installed: %s", route.destination, reason)
        self._tun.hand_out(self._tun.offloads.intersection(welcome.features))
        link.attach(self._pump)
        self.mtu, self.welcome, self._latest = mtu, welcome, link
        return True

    async def settle(self, link: Link) -> None:
        """After the move to a session: note how the host reaches this server, and forget the ways to the others."""
        self._hop = await self._way_to(link)
        await self._pins.only(_host(link.peer))

    async def way_has_changed(self, link: Link) -> bool:
        """Whether the host reaches this server another way than when it was asked last, or settled."""
        hop = await self._way_to(link)
        if hop is None or hop == self._hop:
            return False
        self._hop = hop
        return True

    async def up(self) -> None:
        """Run the `up` hook, unless it has worked already since the last `down`."""
        await self._hooks.up(self._variables("connected"))

    async def down(self, reason: str) -> None:
        """Run the `down` hook, if `up` was begun."""
        await self._hooks.down(self._variables(reason))

    async def _way_to(self, link: Link) -> NextHop | None:
        return await self._kernel.next_hop(_host(link.peer))

    def _network_state(self, welcome: Welcome, mtu: int) -> NetworkState:
        name = self._config.tun
        addresses = {PointToPoint(name, welcome.address, welcome.peer)}
        if welcome.address6 is not None and welcome.peer6 is not None:
            addresses.add(PointToPoint(name, welcome.address6, welcome.peer6))
        return NetworkState(
            frozenset({Device(name, mtu)}),
            frozenset(addresses),
            frozenset(Route(network, name) for network in halves(self._config.routes)),
        )

    def _variables(self, reason: str) -> Mapping[str, str]:
        """What the hooks get to know. `down` gets the session's values, too, although that is over."""
        welcome, latest, hop = self.welcome, self._latest, self._hop
        variables = {
            "TUN": self._config.tun,
            "LOCAL_IP": str(welcome.address) if welcome else "",
            "PEER_IP": str(welcome.peer) if welcome else "",
            "ID": self._config.id,
            "REASON": reason,
            "MTU": str(self.mtu),
            "SUBNETS": " ".join(map(str, self._config.subnets)),
            "SERVER": str(latest.peer[0]) if latest else "",
            "ENDPOINT": latest.endpoint if latest else "",
            "GATEWAY": str(hop.gateway) if hop and hop.gateway else "",
        }
        if welcome and welcome.address6 and welcome.peer6:
            variables |= {"LOCAL_IP6": str(welcome.address6), "PEER_IP6": str(welcome.peer6)}
        return variables


def _host(address: SockAddr) -> Address:
    return ip_address(str(address[0]).partition("%")[0])


def _any_packet(frame: bytes, start: int) -> bool:  # noqa: ARG001 - the server may forward for the whole world
    return True
