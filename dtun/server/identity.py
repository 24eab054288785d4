"""A client as the server knows it: durable, while sessions come and go.

It owns the TUN device, the address pair, the granted subnets and the counters. At most one session serves it at a
time; the one before still receives for a moment.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Literal

from dtun.config import ClientEntry, Hook, Key, Pushed
from dtun.dataplane.device import Counters
from dtun.dataplane.offload import device_for
from dtun.dataplane.pump import Pump
from dtun.dataplane.sources import SourceFilter
from dtun.handover.saved_session import SavedSession
from dtun.handover.session_store import SessionStore
from dtun.network.state import ClampMss, NetDevice, Network, NetworkState, PointToPoint, Route
from dtun.pacing import RateLimiter
from dtun.platform.desired import Rejection, Rejections, lacks_ipv6
from dtun.platform.interface import Tun
from dtun.protocol.messages import Hello, Refusal
from dtun.server.duplicate_ids import DuplicateIds
from dtun.server.leases import Pair
from dtun.session.hooks import TunnelHooks
from dtun.session.link import Link
from dtun.session.log import SessionLog
from dtun.session.session import Closed
from dtun.session.stall import DataPlane, plane
from dtun.session.status import DEVICE_DOWN, Failure, failure_status, link_status, offloads_in_use, timestamp
from dtun.text import printable

AWAY_MTU = 1400
"""Bytes, of a device whose client has not told its path's MTU yet."""

LOG_LINES = 30
LOG_SECONDS = 300.0
"""A client that comes and goes causes no more than so many log lines in this time."""

SHOWN_REFUSALS = 8
"""Refused subnets of a client that the status names, at most."""

MAX_FAILURE_TEXT = 300

GRACE = 3.0
"""Seconds for which a session that its own client has replaced still receives what is under way."""


@dataclass(frozen=True, slots=True)
class ActiveSession:
    """The session that serves an identity, and what was agreed when it logged in.

    `key` is the one that the client has proven, `pushed` what it was told to send and resolve through the tunnel.
    """

    link: Link
    hello: Hello
    key: Key
    pushed: Pushed

    @property
    def instance(self) -> str:
        """Names the client process; for an original Go dtun, only its address is known."""
        return self.hello.instance or str(self.link.peer[0])

    def is_of_same_process(self, other: "ActiveSession") -> bool:
        """Whether one client process has made both; unknown, so False, of an original Go dtun."""
        return self.hello.instance != "" and self.hello.instance == other.hello.instance


class Identity:
    """One client of a server. `name` is the PSK identity, `active` the session that serves it now.

    Only its own methods change its attributes. `mtu` and `granted` are what the kernel has for it, `log` is for lines
    about it.
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
        *,
        paused: bool = False,
    ) -> None:
        """`paused`: its session is about to be resumed, so packets from the device wait for that, or for `start`."""
        self.name = name
        self.entry = entry
        self.pair = pair
        self.tun = tun
        self.mtu = AWAY_MTU
        self.granted: tuple[Network, ...] = ()
        self.active: ActiveSession | None = None
        self.away_since: float | None = loop.time()
        self.counters = Counters()
        limiter = RateLimiter(burst=LOG_LINES, per_seconds=LOG_SECONDS)
        server_log = logging.getLogger("dtun.server")
        self.log = SessionLog(server_log, name=name, limiter=limiter, clock=loop.time, client=name)
        self._loop = loop
        self._session_store = session_store
        self._hooks = hooks
        self._duplicate_ids = DuplicateIds()
        self._latest: Link | None = None
        self._retiring: Link | None = None
        self._since = timestamp()
        self._last_error: str | None = None
        self._last_failure: Failure | None = None
        self._refusals: tuple[Refusal, ...] = ()
        self.carries_ipv6 = False
        self._rejections = Rejections(name)
        self._sources = SourceFilter(self.counters)
        self._pump = Pump(
            device_for(tun, self.counters),
            self.counters,
            accepts=self._sources.accepts,
            loop=loop,
            paused=paused,
        )
        session_store.watch_device(tun, self._pump)
        self._allow_sources()

    @property
    def owner(self) -> str:
        """The name under which this client's part of the network's desired state is kept."""
        return f"client {self.name}"

    @property
    def link(self) -> Link | None:
        return self.active.link if self.active is not None else None

    @property
    def outside(self) -> Network | None:
        """Where its client is or was last, outside the tunnel."""
        return None if self._latest is None else ip_network(str(self._latest.peer[0]).partition("%")[0])

    @property
    def key_in_use(self) -> Literal["present", "next", "former"] | None:
        """Which of its keys the client has used for its session."""
        if self.active is None:
            return None
        if self.active.key == self.entry.psk:
            return "present"
        return "next" if self.active.key == self.entry.next_psk else "former"

    @property
    def changes_key(self) -> bool:
        """Whether its session was not made with the latest key."""
        return self.key_in_use == "former" or (
            self.key_in_use == "present" and self.entry.next_psk is not None
        )

    @property
    def shown_subnets(self) -> str:
        """The granted subnets, for a person."""
        return ", ".join(map(str, self.granted)) or "none"

    @property
    def rejections(self) -> list[str]:
        """What the kernel refuses for this client, routes excepted, as lines for a person."""
        return self._rejections.lines

    def network_state(self, mtu: int, subnets: tuple[Network, ...], *, forwards: bool) -> NetworkState:
        """What the kernel should have for this client; `forwards` if the host is a router for it."""
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

    def applied(self, mtu: int, subnets: tuple[Network, ...], rejected: list[Rejection]) -> None:
        """The kernel has this MTU and these routes now. From these subnets, packets of the client are accepted."""
        self.mtu = mtu
        self.granted = subnets
        self.carries_ipv6 = self.pair.peer6 is not None and not lacks_ipv6(rejected)
        self._rejections.replace(rejected)
        self._allow_sources()

    def move(self, pair: Pair) -> None:
        """Change the address pair. Its subnets are to be granted anew."""
        self.pair = pair
        self.granted = ()
        self._allow_sources()

    def reconfigure(self, entry: ClientEntry, up: Hook | None, down: Hook | None) -> None:
        """Take over another entry of the configuration. Its address and device change elsewhere."""
        self.entry = entry
        self._hooks.change(up, down)

    def serve(self, session: ActiveSession, notes: Mapping[str, str]) -> None:
        """Move over to a new session, and end the one before.

        `notes` are kept with the session for a successor process.
        """
        before = self.active
        self._activate(session)
        self._session_store.keep_session(session.link, session.hello, server=True, **notes)
        if before is None or before.link.ended():
            return
        if session.is_of_same_process(before):
            self._retire(before.link)
        else:
            text = f"another host has logged in with this id, from {session.link.endpoint}"
            before.link.close("replaced", text)

    def resume(self, session: ActiveSession, saved: SavedSession) -> None:
        """Go on with the session of the process before this one, whose `up` hook has run."""
        self._hooks.resume()
        self._activate(session)
        self._session_store.resume(saved, session.link)

    def ended_before_resume(self, link: Link, closed: Closed) -> None:
        """The session of the process before this one ended while it was being resumed. Its `down` hook is due."""
        self._hooks.resume()
        self._latest = link
        self.ended(closed)

    def failed(self, reason: str) -> None:
        """A handshake or a login with its id has failed; the session in service, if there is one, is not concerned."""
        self._last_failure = Failure(printable(reason, MAX_FAILURE_TEXT))

    def note_refusals(self, refusals: Iterable[Refusal]) -> None:
        """The latest login asked for subnets that it did not get; some of them are kept for the status."""
        self._refusals = tuple(refusals)[:SHOWN_REFUSALS]

    def ended(self, closed: Closed) -> None:
        """Its session is over."""
        self.active = None
        self.away_since = self._loop.time()
        self._session_store.forget_session()
        self._since = timestamp()
        self._last_error = None if closed.reason == "stopped" else printable(closed.text)
        if self._last_error is not None:
            self.failed(self._last_error)

    async def run_up_hook(self) -> None:
        await self._hooks.up(self._hook_variables("connected"))

    async def run_down_hook(self, reason: str) -> None:
        await self._hooks.down(self._hook_variables(reason))

    def plane(self) -> DataPlane | None:
        """The data plane, while a session serves."""
        link = self.link
        return plane(self.tun, link, self.counters) if link is not None and link.attached else None

    def status(self, now: float) -> Mapping[str, object]:
        """This client's row in the status."""
        pair, link = self.pair, self.link
        works = self.tun.works()
        warnings = [] if works else [f"{self.tun.name} is down or gone; see the log"]
        warnings += [self._duplicate_ids.describe()] if self._duplicate_ids.evident(now) else []
        warnings += [self._hooks.error] if self._hooks.error else []
        warnings += self.rejections
        warnings += [f"subnet {one.subnet} is refused: {one.reason}" for one in self._refusals]
        warnings += link.warnings if link is not None else []
        return {
            "id": self.name,
            "state": ("connected" if link else "away") if works else DEVICE_DOWN,
            "since": self._since,
            "device": self.tun.name,
            "address": str(pair.local),
            "peer_address": str(pair.peer),
            "subnets": [str(subnet) for subnet in self.granted],
            "refused_subnets": {str(one.subnet): one.reason for one in self._refusals},
            "mtu": self.mtu,
            "offloads": offloads_in_use(self.tun, self.active.hello.features if self.active else None),
            "key": self.key_in_use,
            "last_error": self._last_error,
            "last_failure": failure_status(self._last_failure),
            "warnings": warnings,
            **link_status(link, self.counters),
        }

    def start(self) -> None:
        """Read the device, with a session or without."""
        self._pump.start()

    def suspend(self) -> None:
        """Stop the data plane. Device and session stay as they are, for a successor process."""
        self._pump.close()

    def close(self) -> None:
        """Stop the data plane and remove the device. Its session has to be closed before."""
        self._pump.close()
        self._session_store.forget_device()
        self.tun.close()

    def _activate(self, session: ActiveSession) -> None:
        """Send and receive through this session from now on."""
        if self.active is None:
            self._since = timestamp()
        link = session.link
        if self._duplicate_ids.login(session.instance, link.endpoint, self._loop.time()):
            text = "%s; give each host an id of its own"
            self.log.warning(text, self._duplicate_ids.describe(), reason="replaced", peer=link.endpoint)
        self.active = session
        self.away_since = None
        self._latest = link
        self._last_error = None
        # Super-packets only as far as the peer accepts them.
        self.tun.enable_offloads(self.tun.offloads.intersection(session.hello.features))
        link.attach(self._pump)

    def _retire(self, link: Link) -> None:
        """Let a session receive for a while. Only one of each client, which might renew without end."""
        if self._retiring is not None:
            self._retiring.close("renewed", "", tell=False)
        self._retiring = link
        self._loop.call_later(GRACE, lambda: link.close("renewed", "", tell=False))

    def _allow_sources(self) -> None:
        own = (self.pair.peer, self.pair.peer6)
        addresses = (ip_network(address) for address in own if address is not None)
        self._sources.allow([*addresses, *self.granted])

    def _hook_variables(self, reason: str) -> dict[str, str]:
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
