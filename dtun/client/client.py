"""The client: one tunnel, kept up until it is stopped.

    START --> Dialer: each server, each of its addresses --> Welcome --> Tunnel --> in service
                ^                                                                       |
                '-- states.py: back-off, renewal, hint, change of the host's network ---'

`states` decides when to make a session; this module does it: it has the sockets, the timers, the tunnel and its hooks.

A new session is made beside the one in service, from a new source port, and takes its place once the server has
welcomed it. The TUN device and its addresses stay.
"""

import asyncio
import errno
import socket

from dtun.client.dialer import Dialer
from dtun.client.log import REMINDER, ClientLog
from dtun.client.reload import ClientReload, compare
from dtun.client.resume import ResumableSession, notes, take_session
from dtun.client.states import ClientEvent, ClientState, StateMachine
from dtun.client.tunnel import Tunnel
from dtun.config import ClientConfig, Config
from dtun.errors import ConfigError, DtunError
from dtun.handover.fdstore import FdStore, NoFdStore
from dtun.handover.saved_session import SavedSession
from dtun.network.plan import FORWARDING
from dtun.pacing import Backoff, RateLimiter
from dtun.platform.interface import Kernel
from dtun.protocol.messages import Renew, Welcome
from dtun.protocol.record import is_hello_request
from dtun.session.config_change import AGAIN
from dtun.session.go import GoLiveness
from dtun.session.hooks import RunHook
from dtun.session.link import Link
from dtun.session.session import Closed, Event, PathMtuChanged, Received, Session, WornOut
from dtun.session.stall import StallDetector
from dtun.session.status import Failure, failure_status, link_status, timestamp
from dtun.session.tasks import Tasks
from dtun.text import duration, printable

GRACE = 1.0
"""Seconds for which a replaced session still receives packets that are on their way."""

SETTLE_TIME = 0.2
"""Seconds without a change of the host's network after which a burst of changes is over."""

SERVER_FORWARDS_NOT = (
    "the server does not forward packets: only its own addresses answer through the tunnel, not what is behind it;"
    " set `masquerade: true` or `forwarding: true` there"
)
FORWARDS_NOT = (
    "this host does not forward packets: through the tunnel only it is reached, not what is behind it (subnets);"
    " set `forwarding: true`"
)

GO_LIVENESS_CHECK = 5.0
"""Seconds between two checks whether a Go dtun is dead."""

# ICMP errors, which anybody could have sent, and a path that the host itself does not have at the moment.
_HINTS = frozenset(
    {
        errno.ECONNREFUSED,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.EADDRNOTAVAIL,
        errno.ENETDOWN,
        errno.ELOOP,
    }
)


class Client:
    """One configured client: `start`, then `run` until it is cancelled, then `stop`, or `suspend` before a restart."""

    def __init__(
        self,
        config: ClientConfig,
        kernel: Kernel,
        run_hook: RunHook,
        loop: asyncio.AbstractEventLoop,
        fdstore: FdStore | None = None,
        *,
        backoff: Backoff | None = None,
    ) -> None:
        """`fdstore` has what the process before this one saved, and saves what its successor needs."""
        self._fdstore = fdstore or NoFdStore()
        self._config = config
        self._kernel = kernel
        self._loop = loop
        self._log = ClientLog(config)
        self._loop_log = ClientLog(config, RateLimiter(burst=1, per_seconds=REMINDER))
        self._tunnel = Tunnel(config, kernel, run_hook, loop, self._fdstore)
        self._dialer = Dialer(
            config,
            self._tunnel,
            loop,
            make_link=self._make_link,
            serve=self._serve,
            serving=lambda: self._link,
        )
        self._states = StateMachine(_rekey_of(config), backoff=backoff)
        self._attempt_due = asyncio.Event()
        self._link: Link | None = None
        self._retiring: set[Link] = set()
        self._since = timestamp()
        self._without_since = loop.time()
        self._last_error: str | None = None
        self._last_failure: Failure | None = None
        self._state_timer: asyncio.TimerHandle | None = None
        self._go_timer: asyncio.TimerHandle | None = None
        self._host_timer: asyncio.TimerHandle | None = None
        self._tasks = Tasks(loop)
        self._stall = StallDetector()
        # The last reload did not apply everything.
        self._incomplete = False

    async def start(self) -> None:
        """Make the device and the kill switch, or resume the session that the process before this one saved.

        Raises:
            DtunError: the host lacks something, the name of the device is taken, or a permission is missing. `stop`
                is still to be called.
        """
        if self._config.forwarding:
            self._log.info(
                "this host forwards packets between its networks and the tunnel (%s=1)", FORWARDING[4]
            )
        resumable = take_session(self._tunnel.session_store, self._config) if self._fdstore.names() else None
        if resumable is None:
            await self._tunnel.open()
            self._handle(ClientEvent.START)
        else:
            await self._tunnel.open(resumable.welcome, resumable.sock.getpeername())
            await self._resume(resumable)
        # Not before: the device is taken from it, whatever else has changed.
        self._fdstore.close_rest()
        self._kernel.watch(self._host_changed, self._woke)

    async def run(self) -> None:
        """Make sessions whenever the state machine asks for one, until cancelled."""
        while True:
            await self._attempt_due.wait()
            self._attempt_due.clear()
            failure = await self._dialer.connect()
            if failure is None:
                self._handle(ClientEvent.ATTEMPT_SUCCEEDED)
            else:
                self._failed(failure)
                waited = self._loop.time() - self._without_since if self._link is None else None
                self._log.failed(failure, waited, self._loop.time())
                self._handle(ClientEvent.ATTEMPT_FAILED)

    async def stop(self) -> None:
        """Say goodbye to the server and remove what was made."""
        self._stop_attempts()
        for link in (self._link, *self._retiring):
            if link is not None:
                link.close("stopped", "the client is stopping")
        await self._tasks.cancel()
        await self._tunnel.close()

    async def suspend(self) -> None:
        """Stop, but leave the device and the session to the successor, which gets them from the fdstore."""
        self._stop_attempts()
        await self._tasks.cancel()
        self._tunnel.suspend()

    @property
    def link(self) -> Link | None:
        """The session in service."""
        return self._link

    def status(self) -> dict[str, object]:
        """The state of the tunnel, for the status socket."""
        tunnel, welcome = self._tunnel, self._tunnel.welcome
        refused = welcome.refused if welcome else ()
        rekey_at = self._states.rekey_at
        warnings = tunnel.warnings + [
            f"the server refuses {item.subnet}: {printable(item.reason)}" for item in refused
        ]
        warnings += self._link.warnings if self._link is not None else []
        warnings += self._dead_ends(welcome) if welcome is not None else []
        values = {
            "id": self._config.id,
            "state": tunnel.broken or ("connected" if self._link else "connecting"),
            "since": self._since,
            "device": tunnel.device,
            "address": str(welcome.address) if welcome else None,
            "peer_address": str(welcome.peer) if welcome else None,
            "subnets": [str(subnet) for subnet in self._config.subnets],
            "refused_subnets": {str(item.subnet): printable(item.reason) for item in refused},
            "pushed_routes": [str(network) for network in welcome.routes] if welcome else [],
            "mtu": tunnel.mtu,
            "offloads": tunnel.offloads_in_use,
            "next_rekey": timestamp(rekey_at - self._loop.time()) if rekey_at is not None else None,
            "last_error": self._last_error,
            "last_failure": failure_status(self._last_failure),
            "warnings": warnings,
            **link_status(self._link, tunnel.counters),
        }
        return {"tunnels": [values], "warnings": []}

    def _dead_ends(self, welcome: Welcome) -> list[str]:
        """What the tunnel leads to without an answer, as one end does not forward packets."""
        there = (
            [SERVER_FORWARDS_NOT] if welcome.forwards is False and self._tunnel.routes_beyond_server else []
        )
        return there + ([FORWARDS_NOT] if self._tunnel.cut_off_subnets else [])

    def stalled(self) -> bool:
        """Whether packets have been waiting for too long although they could be sent."""
        plane = self._tunnel.data_plane(self._link)
        return self._stall.stalled([plane] if plane is not None else [], self._loop.time())

    def summary(self) -> str:
        """One line for the service manager."""
        if self._link is None or self._tunnel.welcome is None:
            servers = ", ".join(map(str, self._config.servers))
            # In whole minutes, since the service manager is told of each change.
            minutes = int(self._loop.time() - self._without_since) // 60
            waited = f" for {duration(minutes * 60).removesuffix(' 0 s')}" if minutes else ""
            return f"connecting to {servers}{waited}" + (f": {self._last_error}" if self._last_error else "")
        return f"connected to {self._link.endpoint}, {self._tunnel.welcome.address} on {self._tunnel.device}"

    async def reload(self, config: Config, *, dry_run: bool) -> list[str]:
        """Apply another configuration; with `dry_run`, only return what would change, a line for each setting.

        Raises:
            ConfigError: it is a server's configuration.
            DtunError: the kernel refuses it.
        """
        if config.client is None:
            raise ConfigError("this is a client, but the file has a server section now; nothing was changed")
        change = compare(self._config, config.client)
        lines = [str(step) for step in change.steps]
        if not lines and (self._incomplete or self._tunnel.refusals):
            lines.append(AGAIN)
        if lines and not dry_run:
            await self._apply(change)
        return lines

    async def _apply(self, change: ClientReload) -> None:
        before, self._config = self._config, change.config
        self._log = ClientLog(self._config)
        self._dialer.reload(self._config)
        self._incomplete = True
        try:
            await self._tunnel.reload(self._config)
            self._incomplete = False
        finally:
            if before.rekey != self._config.rekey:
                self._states.set_rekey(_rekey_of(self._config), self._loop.time())
                self._set_state_timer()
            if change.reconnects:
                self._handle(ClientEvent.CONFIG_CHANGED)

    # The state machine

    def _handle(self, event: ClientEvent) -> None:
        if self._states.handle(event, self._loop.time()):
            self._attempt_due.set()
        self._set_state_timer()

    def _poll(self) -> None:
        if self._states.poll(self._loop.time()):
            self._attempt_due.set()
        self._set_state_timer()

    def _set_state_timer(self) -> None:
        _cancel(self._state_timer)
        when = self._states.next_timer()
        self._state_timer = None if when is None else self._loop.call_at(when, self._poll)

    def _stop_attempts(self) -> None:
        self._handle(ClientEvent.STOP)
        _cancel(self._go_timer)
        _cancel(self._host_timer)

    # A session, from its socket to its end

    def _make_link(self, sock: socket.socket, session: Session) -> Link:
        before = self._link
        same_path = before is not None and before.peer == sock.getpeername()
        return Link(
            sock,
            session,
            on_event=self._on_event,
            on_handshake=self._on_handshake,
            on_path=self._on_path,
            loop=self._loop,
            known_mtu=before.path_mtu if before is not None and same_path else None,
        )

    def _on_event(self, link: Link, event: Event) -> None:
        if link is self._link:
            match event:
                case Received(Renew()) | WornOut():
                    self._handle(ClientEvent.RENEWAL_DUE)
                case PathMtuChanged():
                    self._tasks.spawn(self._update_mtu(link))
                case Closed():
                    self._lost(link, event)
                case _:
                    pass
        self._dialer.on_event(link, event)

    def _on_handshake(self, link: Link, datagram: bytes) -> None:
        if link is self._link and is_hello_request(datagram):
            self._handle(ClientEvent.HINT)

    def _on_path(self, link: Link, number: int) -> None:
        if link is not self._link:
            self._dialer.on_path(link, number)
            return
        if number == errno.ELOOP:
            self._loop_log.warning("%s", self._tunnel.loop_warning, reason="routing loop", peer=link.endpoint)
        if number in _HINTS:
            self._handle(ClientEvent.HINT)

    async def _serve(self, link: Link, welcome: Welcome, saved: SavedSession | None = None) -> None:
        """Put a session that the server has welcomed in service; `saved` if it is resumed. Nothing if it has ended.

        Raises:
            DtunError: the kernel refuses an address.
        """
        routine = welcome == self._tunnel.welcome and self._states.routine
        if link.ended() or not await self._tunnel.switch_to(link, welcome):
            return
        liveness = link.session.dialect.liveness if link.session.dialect else None
        if liveness is not None:
            liveness.keepalive, liveness.timeout = welcome.keepalive, welcome.timeout
        before, self._link = self._link, link
        if saved is None:
            self._tunnel.session_store.keep_session(link, welcome, server=False, **notes(self._config))
        else:
            self._tunnel.session_store.resume(saved, link)
        if before is None:
            self._since = timestamp()
        else:
            self._retiring.add(before)
            self._loop.call_later(GRACE, self._retire, before)
        if before is not None and before.peer != link.peer:
            self._log.moved(before, link)
        if saved is not None or (routine and before is not None):
            self._log.renewed(link)
        else:
            self._log.connected(link, welcome, self._tunnel.device, self._tunnel.mtu)
            for dead_end in self._dead_ends(welcome):
                self._log.warning("%s", dead_end, reason="connected", peer=link.endpoint)
        self._last_error = None
        self._handle(ClientEvent.SESSION_UP)
        self._watch_go(link)
        # What was found out about the path while the network was set up.
        await self._update_mtu(link)
        await self._tunnel.finish_switch(link)
        if link is self._link:  # else it was lost meanwhile, and `down` is to run
            self._tasks.spawn(self._tunnel.up())

    async def _resume(self, resumable: ResumableSession) -> None:
        """Put the session that the process before this one saved in service again."""
        link = self._make_link(resumable.sock, resumable.session(self._loop.time()))
        try:
            await self._serve(link, resumable.welcome, resumable.saved)
        except DtunError as error:
            link.close("other", str(error))
        if link is self._link:
            link.flush()
            self._log.resumed(link)
        else:
            self._tunnel.session_store.discard(resumable.saved)
            self._tunnel.read_device()
            self._handle(ClientEvent.START)

    def _retire(self, link: Link) -> None:
        self._retiring.discard(link)
        link.close("renewed", "replaced by a new session")

    def _lost(self, link: Link, closed: Closed) -> None:
        self._link = None
        self._tunnel.session_store.forget_session()
        self._since, self._without_since = timestamp(), self._loop.time()
        self._failed(printable(closed.text))
        _cancel(self._go_timer)
        self._handle(ClientEvent.SESSION_LOST)
        if self._states.state is not ClientState.STOPPED:
            self._log.disconnected(link, closed)
            self._tasks.spawn(self._disconnect(closed.reason))
            self._dialer.session_lost()

    def _failed(self, reason: str) -> None:
        self._last_error = reason
        self._last_failure = Failure(reason)

    async def _disconnect(self, reason: str) -> None:
        """Change the host's network to what is wanted without a session, and run `down`."""
        try:
            await self._tunnel.disconnected()
        except DtunError as error:
            self._log.error("cannot adjust the host's network: %s", error)
        await self._tunnel.down(reason)

    async def _update_mtu(self, link: Link) -> None:
        before = self._tunnel.mtu
        try:
            await self._tunnel.update_mtu(link)
        except DtunError as error:
            self._log.error("cannot change the MTU of %s: %s", self._tunnel.device, error)
        else:
            if self._tunnel.mtu != before:
                self._log.info(
                    "the MTU of %s is %d now, as the path to %s allows",
                    self._tunnel.device,
                    self._tunnel.mtu,
                    link.endpoint,
                )

    def _watch_go(self, link: Link) -> None:
        """A Go dtun answers no keepalive: check now and then whether its packets still come."""
        _cancel(self._go_timer)
        if self._config.go:
            liveness = GoLiveness()
            self._go_timer = self._loop.call_later(GO_LIVENESS_CHECK, self._check_go, link, liveness)

    def _check_go(self, link: Link, liveness: GoLiveness) -> None:
        if liveness.dead(self._tunnel.counters.tx_packets, link.highest, self._loop.time()):
            link.close("timeout", f"nothing was received for {liveness.timeout:g} s")
        else:
            self._go_timer = self._loop.call_later(GO_LIVENESS_CHECK, self._check_go, link, liveness)

    # The host

    def _host_changed(self) -> None:
        _cancel(self._host_timer)
        self._host_timer = self._loop.call_later(
            SETTLE_TIME, lambda: self._tasks.spawn(self._refresh_network())
        )

    def _woke(self, seconds: float) -> None:
        """Make a session at once: the server may have ended this one long ago, which would take a timeout to notice."""
        self._log.info("the host slept for %.0f s, making a new session", seconds)
        self._handle(ClientEvent.HOST_WOKE)

    async def _refresh_network(self) -> None:
        """Update the routes outside the tunnel; make a new session if the host's route to the server has changed."""
        try:
            await self._tunnel.refresh()
        except DtunError as error:
            self._log.error("cannot adjust to the host's network: %s", error)
        link = self._link
        if link is None:
            self._handle(ClientEvent.NETWORK_CHANGED)
        elif await self._tunnel.next_hop_changed(link) and link is self._link:
            self._log.info("the route to %s has changed, making a new session", link.endpoint)
            self._handle(ClientEvent.PATH_CHANGED)


def _rekey_of(config: ClientConfig) -> float | None:
    """Seconds after which a session is renewed. A Go dtun gives a new session other addresses."""
    return None if config.go else config.rekey


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
