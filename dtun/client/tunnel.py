"""The client's side of the tunnel, which stays while sessions are replaced: the counterpart of the server's `Identity`.

It owns the TUN device, its addresses and routes, the pump, the hooks and the counters.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_network

from dtun.client.routing import dns_of, routing_of, settings_of
from dtun.client.underlay import Underlay
from dtun.config import ClientConfig
from dtun.dataplane.device import Counters
from dtun.dataplane.offload import device_for
from dtun.dataplane.pump import LOOP, Pump
from dtun.errors import DtunError, UnavailableError
from dtun.handover.fdstore import FdStore, NoFdStore
from dtun.handover.session_store import SessionStore
from dtun.network.conflicts import ExistingNetwork, RuleInFront, address_conflicts, rule_conflicts
from dtun.network.difference import Thing
from dtun.network.plan import FORWARDING, TunnelSettings, bypass_without_way, device_only, plan_client
from dtun.network.state import Dns, Network, NetworkState, PointToPoint, Sysctl
from dtun.platform.desired import DesiredState, Rejection, Rejections, lacks_ipv6
from dtun.platform.interface import Kernel, NextHop, Tun
from dtun.protocol.messages import Welcome
from dtun.session.hooks import RunHook, TunnelHooks
from dtun.session.link import Link
from dtun.session.stall import DataPlane, plane
from dtun.session.status import DEVICE_DOWN, offloads_in_use
from dtun.session.udp import SockAddr, host_of

log = logging.getLogger("dtun.client")

OWNER = "client"

NO_IPV6 = "the tunnel is without IPv6: {}; if that is intended, set `ipv6: off`"

RESUMED_MTU = 1280
"""Bytes, until the resumed session has found out the MTU of its path."""


class Tunnel:
    """One client's device and what belongs to it. `welcome` is the server's latest, None before the first."""

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
        self._config = config
        self._kernel = kernel
        self._loop = loop
        self._desired_state = DesiredState(kernel)
        self._routing = routing_of(config, config.tun)
        self._underlay = Underlay(kernel)
        self._settings: TunnelSettings | None = None
        self._connected = False
        self._basis: object = None
        self._conflicts: list[str] = []
        # The networks that go through the tunnel now; None until the routes of the process before are known.
        self._captured: frozenset[Network] | None = frozenset()
        self._look_ups = 0
        self._rejections = Rejections(OWNER, " is not in place: ")
        self._no_ipv6: str | None = None
        self.session_store = SessionStore(fdstore or NoFdStore(), config.tun)
        self._hooks = TunnelHooks(run_hook, config.hook("up"), config.hook("down"), config.tun)
        self._tun: Tun | None = None
        self._pump: Pump | None = None
        self._latest: Link | None = None
        self._hop: NextHop | None = None
        self._loops_before = 0
        self.bypass_warnings: list[str] = []
        self._logged_bypass: list[str] = []

    async def open(self, resumed: Welcome | None = None, peer: SockAddr | None = None) -> None:
        """Create the device and the kill switch.

        To resume a session with `peer`, in which the server sent `resumed`, the addresses and routes are set as well,
        and packets from the device wait until it is attached, or for `read_device`.

        Raises:
            DtunError: there is no TUN driver, the permission to use it is missing, or the device's name is taken.
        """
        self._tun, _ = self.session_store.open_device(self._kernel)
        self.device = self._tun.name
        self._routing = routing_of(self._config, self.device)
        device = device_for(self._tun, self.counters)
        self._pump = Pump(
            device, self.counters, accepts=_any_packet, loop=self._loop, paused=resumed is not None
        )
        self.session_store.watch_device(self._tun, self._pump)
        if resumed is not None and peer is not None:
            self._hooks.resume()
            self._captured = None
            await self._underlay.add_server(peer, self._routing)
            await self.configure(resumed, self._config.mtu or resumed.mtu or RESUMED_MTU)
        else:
            await self.refresh()

    def read_device(self) -> None:
        """Read the device, with a session or without."""
        if self._pump is not None:
            self._pump.start()

    def suspend(self) -> None:
        """Stop carrying packets, but leave device and routes as they are for the successor."""
        if self._pump is not None:
            self._pump.close()

    async def close(self) -> None:
        """Run `down`, and remove everything."""
        await self.down("stopped")
        await self._desired_state.remove(OWNER)
        await self._move_connections(None)
        if self._pump is not None:
            self._pump.close()
        self.session_store.forget_device()
        if self._tun is not None:
            self._tun.close()

    @property
    def offloads(self) -> tuple[str, ...]:
        """The super-packets that the device takes, for the Hello."""
        return tuple(sorted(self._tun.offloads)) if self._tun else ()

    @property
    def broken(self) -> str | None:
        """The state for the status if no packet can pass, with a session or without."""
        return None if self._tun is None or not self._settings or self._tun.works() else DEVICE_DOWN

    @property
    def refusals(self) -> list[str]:
        """What the kernel refuses, as lines for a person."""
        return ([NO_IPV6.format(self._no_ipv6)] if self._no_ipv6 else []) + self._rejections.lines

    @property
    def warnings(self) -> list[str]:
        """What does not work, for the status."""
        device = [f"{self.device} is down or gone; see the log"] if self.broken else []
        looped = [self.loop_warning] if self.counters.drops[LOOP] > self._loops_before else []
        hook = [self._hooks.error] if self._hooks.error else []
        return [*device, *hook, *looped, *self.bypass_warnings, *self.refusals, *self._conflicts]

    @property
    def loop_warning(self) -> str:
        """For a host that routes the tunnel's own packets into the tunnel, which drops them then."""
        server = host_of(self._latest.peer) if self._latest is not None else "its server"
        return (
            f"this host routes packets to {server} into {self.device}, so the tunnel cannot reach its server:"
            f" a route or a rule of another program does it, see `ip route get {server}` and `ip rule`"
        )

    @property
    def routes_beyond_server(self) -> bool:
        """Whether the tunnel leads to more than single addresses, which may be the server's own."""
        return any(network.num_addresses > 1 for network in self._routing.included)

    @property
    def cut_off_subnets(self) -> bool:
        """Whether there are networks behind this host, but it forwards nothing to them."""
        behind = any(network.num_addresses > 1 for network in self._config.subnets)
        return behind and not self._config.forwarding and not self._kernel.has(Sysctl(FORWARDING[4], "1"))

    def data_plane(self, link: Link | None) -> DataPlane | None:
        """The data plane of this session; None while it is not attached."""
        if self._tun is None or link is None or not link.attached:
            return None
        return plane(self._tun, link, self.counters)

    @property
    def offloads_in_use(self) -> list[str]:
        """The super-packets that both the device and the server take."""
        return offloads_in_use(self._tun, self.welcome.features if self.welcome and self._connected else None)

    async def route_to_server(self, server: SockAddr) -> bool:
        """Before an attempt: route packets to this server outside the tunnel. False if the host has no route to it.

        Raises:
            UnavailableError: the kernel refuses the route.
        """
        if not await self._underlay.add_server(server, self._routing):
            return False
        await self._apply()
        return True

    @asynccontextmanager
    async def look_ups_outside(self) -> AsyncIterator[None]:
        """While there is no session, let the host ask its name servers beside the tunnel, where that may be.

        Not with `on_disconnect: block`, which blocks that, too; nor with `release`, where nothing is in the way.
        """
        pins = self._settings is not None and not self._connected and self._config.on_disconnect == "keep"
        if not pins:
            yield
            return
        self._look_ups += 1
        try:
            await self._pin_name_servers()
            yield
        finally:
            self._look_ups -= 1
            if not self._look_ups:
                self._underlay.remove_name_servers()
                await self._try_to_apply()

    async def _pin_name_servers(self) -> None:
        try:
            inside = {peer for _, peer in self._settings.pairs} if self._settings else set()
            await self._underlay.add_name_servers(self._routing, but=inside)
            await self._apply()
        except UnavailableError as error:
            log.warning("cannot route name servers around the tunnel: %s", error)

    async def _try_to_apply(self) -> None:
        try:
            await self._apply()
        except UnavailableError as error:
            log.warning("cannot remove the routes to name servers: %s", error)

    async def switch_to(self, link: Link, welcome: Welcome) -> bool:
        """Carry packets through this session from now on. False if it has ended meanwhile.

        Raises:
            DtunError: the kernel refuses an address.
        """
        mtu = link.agree_mtu(self._config.mtu, welcome.mtu, ipv6=self._with_ipv6(welcome))
        await self.configure(welcome, mtu)
        if link.ended() or self._pump is None or self._tun is None:
            return False
        self._tun.enable_offloads(self._tun.offloads.intersection(welcome.features))
        link.attach(self._pump)
        self.mtu, self.welcome, self._latest = mtu, welcome, link
        self._loops_before = self.counters.drops[LOOP]
        return True

    async def configure(self, welcome: Welcome, mtu: int) -> None:
        """Set the addresses, routes and name servers of a session. `mtu` in bytes.

        Raises:
            DtunError: the kernel refuses an address; the previous ones stay.
        """
        before = self._routing, self._settings, self._connected
        self._routing = routing_of(self._config, self.device, welcome.routes)
        self._settings = settings_of(self._config, self.device, welcome, mtu)
        self._connected = True
        try:
            await self.refresh()
        except DtunError:
            self._routing, self._settings, self._connected = before
            raise

    async def update_mtu(self, link: Link) -> None:
        """Set the device's MTU after the one of the session's path has changed.

        Raises:
            DtunError: the kernel refuses the new MTU.
        """
        welcome = self.welcome
        if welcome is None or self._settings is None:
            return
        self.mtu = link.agree_mtu(self._config.mtu, welcome.mtu, ipv6=self._with_ipv6(welcome))
        self._settings = settings_of(self._config, self.device, welcome, self.mtu)
        await self._apply()

    async def finish_switch(self, link: Link) -> None:
        """After `switch_to`: note the route to this server, and remove those to the others."""
        self._hop = await self._next_hop(link)
        self._underlay.remove_other_servers(link.peer)
        # The previous session may have been lost during the switch.
        self._connected = True
        await self._apply()

    async def disconnected(self) -> None:
        """Set the routes that are wanted without a session (`on_disconnect`)."""
        self._connected = False
        await self._apply()

    async def refresh(self) -> None:
        """Set the routes outside the tunnel again, after the host's network or the wanted state has changed."""
        await self._underlay.refresh(self._routing)
        self._warn_of_conflicts(await self._obstacles())
        await self._apply()

    async def reload(self, config: ClientConfig) -> None:
        """Apply another configuration. What the server has to know of it takes effect with the next session.

        Raises:
            DtunError: the kernel refuses it.
        """
        self._config = config
        self._hooks.change(config.hook("up"), config.hook("down"))
        welcome = self.welcome
        self._routing = routing_of(config, self.device, welcome.routes if welcome else ())
        if welcome is not None and self._settings is not None:
            self._settings = settings_of(config, self.device, welcome, self._settings.mtu)
        await self.refresh()

    async def next_hop_changed(self, link: Link) -> bool:
        """Whether the host's route to this server has changed since the last call or `finish_switch`."""
        hop = await self._next_hop(link)
        if hop is None or hop == self._hop:
            return False
        self._hop = hop
        return True

    async def up(self) -> None:
        """Run the `up` hook, unless it has succeeded since the last `down`."""
        await self._hooks.up(self._variables("connected"))

    async def down(self, reason: str) -> None:
        """Run the `down` hook, if `up` was started."""
        await self._hooks.down(self._variables(reason))

    async def _apply(self) -> None:
        releases = not self._connected and self._config.on_disconnect == "release"
        settings = self._settings
        if settings is not None and settings.dns is not None and self._name_servers_in_the_way(settings.dns):
            settings = replace(settings, dns=None)
        basis = self._routing, settings, self._underlay.routes, releases
        if basis == self._basis:
            return  # the rest is slow with a long bypass list
        self._basis = None
        self._check_bypass(releases=releases)
        refused = await self._set(settings, releases=releases)
        await self._move_connections(None if releases else settings)
        if not refused and self._no_ipv6 is None:
            self._basis = basis
        self._rejections.replace(refused)

    async def _set(self, settings: TunnelSettings | None, *, releases: bool) -> list[Rejection]:
        """Have the kernel look as planned; without IPv6 inside if the kernel refuses the address.

        Then what has to be blocked instead is blocked (`plan_client`). The address is tried again at each change.

        Raises:
            UnavailableError: the kernel refuses the device or its IPv4 address.
        """

        def plan(settings: TunnelSettings | None) -> NetworkState:
            state = plan_client(self._routing, settings, self._underlay.routes)
            return device_only(state) if releases else state

        known, without = self._no_ipv6, settings.without_ipv6() if settings is not None else None
        if settings is None or settings == without:
            self._no_ipv6 = None
        elif known is not None:
            # Nothing is unblocked for the attempt.
            wanted = plan(without)
            wanted = replace(wanted, addresses=wanted.addresses | plan(settings).addresses)
            refused = await self._desired_state.set(OWNER, wanted)
            self._no_ipv6 = lacks_ipv6(refused)
            if self._no_ipv6 is not None:
                return [(thing, reason) for thing, reason in refused if not _is_ipv6_address(thing)]
        refused = await self._desired_state.set(OWNER, plan(settings))
        reason = lacks_ipv6(refused)
        if reason is None:
            return refused
        self._no_ipv6 = reason
        if reason != known:
            log.warning(NO_IPV6.format(reason))
        return await self._desired_state.set(OWNER, plan(without))

    async def _move_connections(self, settings: TunnelSettings | None) -> None:
        """Networks go into the tunnel, or no longer: their connections get new addresses where they are translated."""
        before = self._captured
        self._captured = frozenset(
            network
            for network in self._routing.included
            if settings is not None and settings.carries(network.version)
        )
        moved = before ^ self._captured if before is not None else frozenset()
        if moved:
            outside = (*self._routing.bypassed, *self._underlay.routes.local)
            servers = map(ip_network, self._underlay.routes.servers)
            await self._kernel.forget_connections(moved, (*outside, *servers))

    async def _obstacles(self) -> list[str]:
        """Other firewalls that drop what is forwarded."""
        if not self._config.forwarding or self._settings is None:
            return []
        networks = [*self._config.subnets, *(ip_network(local) for local, _ in self._settings.pairs)]
        return await self._kernel.forwarding_obstacles([self.device], networks)

    def _warn_of_conflicts(self, obstacles: list[str]) -> None:
        pairs = self._settings.pairs if self._settings is not None else ()
        local = [ExistingNetwork(one.network, one.device, "local") for one in self._underlay.local]
        own = [address for pair in pairs for address in pair]
        rules = [
            RuleInFront(one.version, one.priority, one.table, one.networks) for one in self._underlay.rules
        ]
        found = [*address_conflicts(own, local), *rule_conflicts(self._routing, rules), *obstacles]
        known, self._conflicts = self._conflicts, found
        for conflict in self._conflicts:
            if conflict not in known:
                log.warning("%s", conflict)

    def _with_ipv6(self, welcome: Welcome) -> bool:
        """Whether there is to be IPv6 inside the tunnel."""
        return welcome.address6 is not None and self._config.ipv6 != "off"

    def _name_servers_in_the_way(self, dns: Dns) -> bool:
        """Whether nobody answers for names of the host, or of a server, because there is no session.

        `on_disconnect: block` leaves them: no question is to leave beside the tunnel.
        """
        if self._connected or self._config.on_disconnect != "keep":
            return False
        return dns.for_all_names or any(dns.asked_for(server.host) for server in self._config.servers)

    def _check_bypass(self, *, releases: bool) -> None:
        """Name the bypassed networks that cannot be routed around the tunnel."""
        found = {} if releases else bypass_without_way(self._routing, self._settings, self._underlay.routes)
        self.bypass_warnings = [
            f"{len(networks)} bypassed {'network has' if len(networks) == 1 else 'networks have'} no way around the"
            f" tunnel ({networks[0]}{' ...' if len(networks) > 1 else ''}): this host has no IPv{version} default route"
            " except through other tunnels"
            for version, networks in found.items()
        ]
        if self.bypass_warnings and self.bypass_warnings != self._logged_bypass:
            self._logged_bypass = self.bypass_warnings
            for line in self.bypass_warnings:
                log.warning("%s", line)

    async def _next_hop(self, link: Link) -> NextHop | None:
        return await self._underlay.next_hop(host_of(link.peer), self._routing)

    def _variables(self, reason: str) -> Mapping[str, str]:
        """The hooks' environment. `down` gets the values of the session that has ended."""
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
        if welcome and self._with_ipv6(welcome) and not self._no_ipv6:
            variables |= {"LOCAL_IP6": str(welcome.address6), "PEER_IP6": str(welcome.peer6)}
        return variables


def _is_ipv6_address(thing: Thing) -> bool:
    return isinstance(thing, PointToPoint) and thing.local.version == 6


def _any_packet(frame: bytes, start: int) -> bool:  # noqa: ARG001 - the server may forward from any source
    return True
