"""The client's own end of the tunnel: durable, while sessions come and go. What `Identity` is on the server.

It owns the TUN device, its addresses and routes, the hooks and the counters. The session in service sends and
receives through its pump.
"""

import asyncio
import logging
from collections.abc import Mapping

from dtun.client.routing import dns_of, routing_of, tunnel_of
from dtun.client.underlay import Underlay, host_of
from dtun.config import ClientConfig
from dtun.dataplane.device import Counters
from dtun.dataplane.offload import device_for
from dtun.dataplane.pump import Pump
from dtun.errors import DtunError
from dtun.handover.fdstore import FdStore, NoFdStore
from dtun.handover.session_store import SessionStore
from dtun.network.difference import describe
from dtun.network.plan import TunnelSettings, device_only, plan_client
from dtun.platform.desired import DesiredState, Rejection
from dtun.platform.interface import Kernel, NextHop, Tun
from dtun.protocol.messages import Welcome
from dtun.session.hooks import RunHook, TunnelHooks
from dtun.session.link import Link
from dtun.session.stall import DataPlane, plane
from dtun.session.status import offloads_in_use
from dtun.session.udp import SockAddr

log = logging.getLogger("dtun.client")

OWNER = "client"

RESUMED_MTU = 1280
"""Bytes, for the moment until the session that goes on says what its path takes."""


class Tunnel:
    """One client's device and what belongs to it. `welcome` is what the server said last, None before that."""

    def __init__(
        self,
        config: ClientConfig,
        kernel: Kernel,
        run_hook: RunHook,
        loop: asyncio.AbstractEventLoop,
        fdstore: FdStore | None = None,
    ) -> None:
        self.counters = Counters()
        self.welcome: Welcome | None = None
        self.mtu = 0
        self.device = config.tun
        self.refused: list[Rejection] = []
        self._config = config
        self._kernel = kernel
        self._loop = loop
        self._desired_state = DesiredState(kernel)
        self._routing = routing_of(config, config.tun)
        self._underlay = Underlay(kernel)
        self._settings: TunnelSettings | None = None
        self._connected = False
        self._basis: object = None
        self.session_store = SessionStore(fdstore or NoFdStore(), config.tun)
        self._hooks = TunnelHooks(run_hook, config.hook("up"), config.hook("down"), config.tun)
        self._tun: Tun | None = None
        self._pump: Pump | None = None
        self._latest: Link | None = None
        self._hop: NextHop | None = None

    async def open(self, resumed: Welcome | None = None, peer: SockAddr | None = None) -> None:
        """Make the device, and what has to be in place before the first session: the kill switch.

        With `resumed`, what the server has said to a process before this one, all is left in place for the session
        with `peer` to go on.

        Raises:
            DtunError: there is no TUN driver, no right to use it, or the name is taken.
        """
        kept = self.session_store.take_device()
        self._tun = self._kernel.create_tun(self._config.tun, kept)
        if kept is None:
            self.session_store.keep_device(self._tun.fileno())
        self.device = self._tun.name
        self._routing = routing_of(self._config, self.device)
        device = device_for(self._tun, self.counters)
        self._pump = Pump(device, self.counters, accepts=_any_packet, loop=self._loop)
        if resumed is not None and peer is not None:
            self._hooks.resume()
            await self._underlay.hold(peer, self._routing)
            await self.configure(resumed, self._config.mtu or resumed.mtu or RESUMED_MTU)
        else:
            await self.follow()

    def suspend(self) -> None:
        """Go, and leave all as it is for a successor."""
        if self._pump is not None:
            self._pump.close()

    async def close(self) -> None:
        """Run `down`, and remove everything."""
        await self.down("stopped")
        await self._desired_state.remove(OWNER)
        if self._pump is not None:
            self._pump.close()
        self.session_store.forget_device()
        if self._tun is not None:
            self._tun.close()

    @property
    def offloads(self) -> tuple[str, ...]:
        """The super-packets that this end can take, for the Hello."""
        return tuple(sorted(self._tun.offloads)) if self._tun else ()

    @property
    def warnings(self) -> list[str]:
        """What does not work as it should, for the status."""
        refused = [f"{describe(thing)} is not in place: {reason}" for thing, reason in self.refused]
        return ([self._hooks.error] if self._hooks.error else []) + refused

    def plane(self, link: Link | None) -> DataPlane | None:
        """The data plane, while this session serves."""
        if self._tun is None or link is None or not link.attached:
            return None
        return plane(self._tun, link, self.counters)

    @property
    def offloads_in_use(self) -> list[str]:
        """Those that the server takes as well."""
        return offloads_in_use(self._tun, self.welcome.features if self.welcome and self._connected else None)

    async def make_way(self, server: SockAddr) -> bool:
        """Before a server is tried: keep what goes there out of the tunnel. False if the host has no way to it.

        Raises:
            UnavailableError: the kernel refuses the route.
        """
        if not await self._underlay.hold(server, self._routing):
            return False
        await self._apply()
        return True

    async def take_up(self, link: Link, welcome: Welcome) -> bool:
        """Serve through this session from now on. False if it has ended meanwhile.

        Raises:
            DtunError: the kernel refuses an address.
        """
        mtu = link.agree_mtu(self._config.mtu, welcome.mtu, ipv6=welcome.address6 is not None)
        await self.configure(welcome, mtu)
        if link.ended() or self._pump is None or self._tun is None:
            return False
        self._tun.enable_offloads(self._tun.offloads.intersection(welcome.features))
        link.attach(self._pump)
        self.mtu, self.welcome, self._latest = mtu, welcome, link
        return True

    async def configure(self, welcome: Welcome, mtu: int) -> None:
        """Have the kernel look as it should with a session like this.

        Raises:
            DtunError: the kernel refuses an address; all is as it was before.
        """
        before = self._routing, self._settings, self._connected
        self._routing = routing_of(self._config, self.device, welcome.routes)
        self._settings = tunnel_of(self._config, self.device, welcome, mtu)
        self._connected = True
        try:
            await self.follow()
        except DtunError:
            self._routing, self._settings, self._connected = before
            raise

    async def resize(self, link: Link) -> None:
        """The path's MTU is another now.

        Raises:
            DtunError: the kernel refuses the new size.
        """
        welcome = self.welcome
        if welcome is None or self._settings is None:
            return
        self.mtu = link.agree_mtu(self._config.mtu, welcome.mtu, ipv6=welcome.address6 is not None)
        self._settings = tunnel_of(self._config, self.device, welcome, self.mtu)
        await self._apply()

    async def settle(self, link: Link) -> None:
        """After the move to a session: note how the host reaches this server, and forget the ways to the others."""
        self._hop = await self._way_to(link)
        self._underlay.only(link.peer)
        # The session before may have been lost while this one was taken up.
        self._connected = True
        await self._apply()

    async def lost(self) -> None:
        """The session is over and there is no other yet."""
        self._connected = False
        await self._apply()

    async def follow(self) -> None:
        """The host's network has changed: move what goes around the tunnel to its ways of now."""
        await self._underlay.look(self._routing)
        await self._apply()

    async def go_on_with(self, config: ClientConfig) -> None:
        """Another configuration of the same device; what it needs of the server comes with the next session.

        Raises:
            DtunError: the kernel refuses it.
        """
        self._config = config
        self._hooks.change(config.hook("up"), config.hook("down"))
        welcome = self.welcome
        self._routing = routing_of(config, self.device, welcome.routes if welcome else ())
        if welcome is not None and self._settings is not None:
            self._settings = tunnel_of(config, self.device, welcome, self._settings.mtu)
        await self.follow()

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

    async def _apply(self) -> None:
        releases = not self._connected and self._config.on_disconnect == "release"
        basis = self._routing, self._settings, self._underlay.outside, releases
        if basis == self._basis:
            return  # with a long bypass list, the rest takes a while
        self._basis = None
        state = plan_client(self._routing, self._settings, self._underlay.outside)
        if releases:
            state = device_only(state)
        known, self.refused = self.refused, await self._desired_state.set(OWNER, state)
        if not self.refused:
            self._basis = basis
        for thing, reason in self.refused:
            # It is tried again with each change; once in the log is enough.
            if (thing, reason) not in known:
                log.warning("cannot add %s: %s", describe(thing), reason)

    async def _way_to(self, link: Link) -> NextHop | None:
        return await self._kernel.next_hop(host_of(link.peer))

    def _variables(self, reason: str) -> Mapping[str, str]:
        """What the hooks get to know. `down` gets the session's values, too, although that is over."""
        welcome, latest, hop = self.welcome, self._latest, self._hop
        dns = dns_of(self._config, self.device, welcome)
        variables = {
            "TUN": self.device,
            "LOCAL_IP": str(welcome.address) if welcome else "",
            "PEER_IP": str(welcome.peer) if welcome else "",
            "ID": self._config.id,
            "REASON": reason,
            "MTU": str(self.mtu),
            "SUBNETS": " ".join(map(str, self._config.subnets)),
            "SERVER": str(latest.peer[0]) if latest else "",
            "ENDPOINT": latest.endpoint if latest else "",
            "GATEWAY": str(hop.gateway) if hop and hop.gateway else "",
            "DNS": " ".join(map(str, dns.servers)) if dns else "",
            "DNS_DOMAINS": " ".join(dns.domains) if dns else "",
        }
        if welcome and welcome.address6 and welcome.peer6:
            variables |= {"LOCAL_IP6": str(welcome.address6), "PEER_IP6": str(welcome.peer6)}
        return variables


def _any_packet(frame: bytes, start: int) -> bool:  # noqa: ARG001 - the server may forward for the whole world
    return True
