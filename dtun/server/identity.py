"""A client as the server knows it: durable, while sessions come and go.

It owns the TUN device, the address pair, the granted subnets and the counters. At most one session
serves it at a time; one that was just replaced still receives for a moment.
"""

import asyncio
from collections.abc import Iterable, Mapping
from ipaddress import ip_network
from typing import Literal

from dtun.config import ClientEntry, Key
from dtun.config.pushed import Pushed
from dtun.dataplane.counters import Counters
from dtun.dataplane.offload import device_for
from dtun.dataplane.pump import Pump
from dtun.dataplane.sources import SourceFilter
from dtun.handover.session_store import SessionStore
from dtun.network.state import ClampMss, NetDevice, Network, NetworkState, PointToPoint, Route
from dtun.pacing import RateLimiter
from dtun.platform.desired import Rejections
from dtun.platform.interface import Tun
from dtun.protocol.messages import Hello
from dtun.server.duplicate_ids import DuplicateIds
from dtun.server.leases import Pair
from dtun.session.hooks import TunnelHooks
from dtun.session.link import Link
from dtun.session.stall import DataPlane, plane
from dtun.session.status import in_use, iso, link_status

AWAY_MTU = 1400
"""Bytes, of a device whose client has not told its path's MTU yet."""


class Identity:
    """One client of a server. `name` is the PSK identity, `link` the session that serves it now.

    `hello` is what the client said for that session, `key` the key that it has proven, `pushed` what it was told to
    send and ask through the tunnel. `retiring` is the session before, which still receives for a moment; `remarks`
    bounds what the log says of it; `refusals` is what the kernel does not take but for routes.
    """

    def __init__(
        self,
        name: str,
        entry: ClientEntry,
        pair: Pair,
        tun: Tun,
        session_store: SessionStore,
        hooks: TunnelHooks,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.name = name
        self.entry = entry
        self.pair = pair
        self.tun = tun
        self.session_store = session_store
        self.hooks = hooks
        self.counters = Counters()
        self.granted: tuple[Network, ...] = ()
        self.hello: Hello | None = None
        self.key: Key | None = None
        self.pushed: Pushed | None = None
        self.refusals = Rejections(name)
        self.mtu = AWAY_MTU
        self.link: Link | None = None
        self._latest: Link | None = None
        self.instance = ""
        self.duplicate_ids = DuplicateIds()
        self.retiring: Link | None = None
        self.remarks = RateLimiter(burst=30, per_seconds=300)
        self.since = iso()
        self.last_error: str | None = None
        self._sources = SourceFilter(self.counters)
        self.pump = Pump(
            device_for(tun, self.counters), self.counters, accepts=self._sources.accepts, loop=loop
        )
        self.grant(())

    @property
    def owner(self) -> str:
        """Whose things these are in the desired state of the network."""
        return f"client {self.name}"

    @property
    def key_in_use(self) -> Literal["present", "next", "former"] | None:
        """Which of its keys the client has used for its session."""
        if self.link is None or self.key is None:
            return None
        if self.key == self.entry.psk:
            return "present"
        return "next" if self.key == self.entry.next_psk else "former"

    @property
    def changes_key(self) -> bool:
        """Whether a session is left that was not made with the latest key."""
        return self.key_in_use == "former" or (
            self.key_in_use == "present" and self.entry.next_psk is not None
        )

    def grant(self, subnets: tuple[Network, ...]) -> None:
        """From now on packets from these subnets, and from the client's own address, may come in."""
        self.granted = subnets
        own = (self.pair.peer, self.pair.peer6)
        self._sources.allow([*(ip_network(address) for address in own if address is not None), *subnets])

    def network_state(self, mtu: int, subnets: tuple[Network, ...], *, forwards: bool) -> NetworkState:
        """What the kernel should have for this client; `forwards` if it is a router for it."""
        pair, name = self.pair, self.tun.name
        addresses = {PointToPoint(name, pair.local, pair.peer)}
        if pair.local6 is not None and pair.peer6 is not None:
            addresses.add(PointToPoint(name, pair.local6, pair.peer6))
        return NetworkState(
            frozenset({NetDevice(name, mtu)}),
            frozenset(addresses),
            frozenset(Route(subnet, name) for subnet in subnets),
            filters=frozenset({ClampMss(name, mtu)}) if forwards else frozenset(),
        )

    def serve(self, link: Link, instance: str, features: Iterable[str]) -> Link | None:
        """Send through this session from now on; returns the one before, if it is another and still open.

        `features` are the peer's: super-packets are handed out only as far as it can take them.
        """
        before, self.link = self.link, link
        self._latest = link
        self.instance = instance
        self.last_error = None
        if before is link:
            return None
        if before is None:
            self.since = iso()
        self.tun.enable_offloads(self.tun.offloads.intersection(features))
        link.attach(self.pump)
        return None if before is None or before.ended() else before

    def hook_variables(self, reason: str) -> dict[str, str]:
        """What the hooks of this client get to know."""
        pair = self.pair
        variables = {
            "TUN": self.tun.name,
            "LOCAL_IP": str(pair.local),
            "PEER_IP": str(pair.peer),
            "ID": self.name,
            "REASON": reason,
            "MTU": str(self.mtu),
            "SUBNETS": " ".join(map(str, self.granted)),
            "SERVER": self._latest.local_address if self._latest else "",
            "ENDPOINT": self._latest.endpoint if self._latest else "",
        }
        if pair.local6 is not None and pair.peer6 is not None:
            variables |= {"LOCAL_IP6": str(pair.local6), "PEER_IP6": str(pair.peer6)}
        return variables

    def plane(self) -> DataPlane | None:
        """The data plane, while a session serves."""
        return (
            plane(self.tun, self.link, self.counters)
            if self.link is not None and self.link.attached
            else None
        )

    def status(self, now: float) -> Mapping[str, object]:
        """This client's row in the status."""
        pair = self.pair
        warnings = [self.duplicate_ids.describe()] if self.duplicate_ids.evident(now) else []
        warnings += [self.hooks.error] if self.hooks.error else []
        warnings += self.refusals.lines
        warnings += self.link.warnings if self.link is not None else []
        return {
            "id": self.name,
            "state": "connected" if self.link else "away",
            "since": self.since,
            "device": self.tun.name,
            "address": str(pair.local),
            "peer_address": str(pair.peer),
            "subnets": [str(subnet) for subnet in self.granted],
            "mtu": self.mtu,
            "offloads": in_use(self.tun, self.hello.features if self.link and self.hello else None),
            "key": self.key_in_use,
            "last_error": self.last_error,
            "warnings": warnings,
            **link_status(self.link, self.counters),
        }

    def close(self) -> None:
        """Stop the data plane and remove the device; the sessions are closed before."""
        self.pump.close()
        self.session_store.forget_device()
        self.tun.close()
