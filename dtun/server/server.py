"""The server: starts and stops, makes sessions, and passes their events on.

Demux receives datagrams, Authenticator finds keys, Logins lets clients in, Identities has their devices and addresses,
and ServerReload applies another configuration.
"""

import asyncio
import logging
import socket
from collections.abc import Sequence
from functools import partial

from dtun.config import ANY_ID, Config, Key, ServerConfig
from dtun.dtls.listener import Verified
from dtun.errors import ConfigError, DtunError, UnavailableError
from dtun.handover.fdstore import FdStore, NoFdStore, sessions
from dtun.handover.session_store import SessionStore
from dtun.platform.desired import refusal_lines
from dtun.platform.interface import Kernel
from dtun.protocol.messages import Hello, Renew, Welcome
from dtun.server.config_diff import changed_settings, usable
from dtun.server.demux import NOT_LISTENING, Demux
from dtun.server.identities import Identities
from dtun.server.leases import PoolFullError
from dtun.server.listeners import Listeners, endpoints
from dtun.server.login import Logins
from dtun.server.psk import Authenticator
from dtun.server.reload import ServerReload
from dtun.session.config_change import AGAIN
from dtun.session.dialect import Count, Dialect, NativeDialect
from dtun.session.go import GoServerDialect
from dtun.session.hooks import RunHook
from dtun.session.link import Link
from dtun.session.log import SessionLog
from dtun.session.session import (
    AnyAssociation,
    Closed,
    Event,
    PathMtuChanged,
    Received,
    Session,
    WornOut,
)
from dtun.session.stall import StallDetector
from dtun.session.status import failure_status
from dtun.session.tasks import Tasks
from dtun.text import printable

log = logging.getLogger("dtun.server")

FIREWALL_CHECK = 60.0
"""Seconds between two looks at other programs' firewalls, which may start after this one."""

HOST_CHANGE_DELAY = 0.2
"""Seconds from a change of the host's network until the server reacts: changes come in bursts."""


class Server:
    """Serves the clients of one configuration until it is stopped."""

    def __init__(
        self,
        config: ServerConfig,
        kernel: Kernel,
        run_hook: RunHook,
        loop: asyncio.AbstractEventLoop,
        fdstore: FdStore | None = None,
    ) -> None:
        """`fdstore` has what the process before this one has left, and keeps what a successor needs."""
        self._fdstore = fdstore or NoFdStore()
        self._kernel = kernel
        self._loop = loop
        self._tasks = Tasks(loop)
        self.identities = Identities(config, kernel, run_hook, loop, fdstore=self._fdstore)
        self._logins = Logins(self.identities, self._tasks, loop)
        self._reloading = asyncio.Lock()
        self._host_timer: asyncio.TimerHandle | None = None
        self._stall = StallDetector()
        # Of networks that the host has got since the start.
        self._pool_conflicts: list[str] = []
        self._authenticator = Authenticator(self.identities, loop)
        self.demux = Demux(
            self._authenticator.listener,
            make_link=self._new_link,
            failed=self._authenticator.failed,
            loop=loop,
            fdstore=self._fdstore,
        )
        self._server_reload = ServerReload(self.identities, self._logins, self.demux, loop)

    async def start(self) -> None:
        """Make the devices of the configured clients and listen.

        Raises:
            DtunError: something that this needs is missing, taken or not allowed. Call `stop` then, too.
        """
        config = self.identities.config
        conflicts = await self.identities.pool_conflicts()
        if conflicts:
            raise ConfigError("\n".join(conflicts))
        self._kernel.watch(self._host_changed)
        async with self.identities.desired_state.batch() as refused:
            await self.identities.reserve_pools()
            for name in config.clients:
                if name != ANY_ID:
                    await self.identities.create(name)
            listeners = Listeners(self._fdstore)
            for endpoint in endpoints(config):
                listener, keep = listeners.find(endpoint)
                self.demux.open(endpoint, listener, keep=keep)
                log.info("listening on UDP %s", endpoint)
            listeners.close()
            async with self.identities.lock:
                for device in sessions(self._fdstore):
                    await self._resume(device)
            for identity in self.identities.by_name.values():
                identity.start()
            self._fdstore.close_rest()
            await self.identities.forward()
        for line in refusal_lines(refused):
            log.warning("cannot add %s", line)

    async def run(self) -> None:
        """Until cancelled, look at other firewalls now and then: everything else happens in callbacks."""
        while True:
            await asyncio.sleep(FIREWALL_CHECK)
            if self.identities.config.forwards:
                await self.identities.forwarding.refresh(self.identities.config, self.identities.devices)

    async def stop(self) -> None:
        """Close all sessions and remove what was made."""
        if self._host_timer is not None:
            self._host_timer.cancel()
        for link in list(self.demux.links):
            link.close("stopped", "the server is stopping")
        self.demux.close()
        self._logins.stop()
        await self._tasks.cancel()
        identities = list(self.identities.by_name.values())
        # All at once: the service manager does not wait for slow hooks one after the other.
        await asyncio.gather(*(identity.run_down_hook("stopped") for identity in identities))
        await self.identities.remove_all()

    async def suspend(self) -> None:
        """Stop working. Devices and sessions stay as they are in the fd store, for a successor process."""
        if self._host_timer is not None:
            self._host_timer.cancel()
        self.demux.close()
        self._logins.stop()
        await self._tasks.cancel()
        for identity in self.identities.by_name.values():
            identity.suspend()

    async def _resume(self, device: str) -> None:
        """Resume the session that the process before this one had on this device, if that is possible."""
        store = SessionStore(self._fdstore, device)
        taken = store.take_session()
        if taken is None:
            return
        saved, sock = taken
        link, why = None, NOT_LISTENING
        try:
            dialect = partial(self._dialect, numbers=saved.message_ledger)
            session = Session.resumed(saved.association(), dialect, self._loop.time())
            link = self._link(sock, session)
            if self.demux.adopt(link):
                why = "cannot be resumed after the restart of the server"
                if await self._logins.resume(link, saved):
                    link.flush()
                    return
        except (DtunError, PoolFullError, OSError, ValueError) as error:
            log.warning("%s: cannot resume the session from before the restart: %s", device, error)
        except MemoryError:
            raise
        except Exception:
            log.exception("%s: internal error, please report it; cannot resume the session", device)
        if link is None:
            sock.close()
        else:
            link.close("other", why)
        store.discard(saved)

    async def reload(self, config: Config, *, dry_run: bool) -> list[str]:
        """Apply another configuration. Returns the changes, as lines for a person.

        Clients that it does not concern are not disturbed. With `dry_run` nothing is changed.

        Raises:
            ConfigError: it has no server section.
            UnavailableError: it cannot listen there. Nothing has changed.
            PermissionDeniedError: this process may not use ports below 1024. Nothing has changed.
        """
        if config.server is None:
            raise ConfigError(f"{config.path}: has no server section any more; nothing was changed")
        async with self._reloading:
            old = self.identities.config
            steps = changed_settings(old, config.server)
            lines = [str(step) for step in steps]
            if dry_run:
                self._server_reload.check(config.server)
            if self._server_reload.incomplete and not steps:
                lines.append(AGAIN)
            if dry_run or not lines:
                return lines
            lines += await self._server_reload.apply(usable(old, config.server))
            self._authenticator.reconfigure()
            return lines

    def kick(self, name: str) -> str:
        """End the session of this client, which may reconnect. Returns a line that says what was done.

        Raises:
            UnavailableError: there is no such client, or it is not connected.
        """
        identity = self.identities.by_name.get(name)
        if identity is None:
            raise UnavailableError(f"there is no client '{printable(name)}'; `dtun status` shows all")
        if identity.link is None:
            raise UnavailableError(f"client '{name}' is not connected")
        endpoint = identity.link.endpoint
        identity.link.close("other", "ended by the administrator of the server")
        return f"the session of client '{name}' from {endpoint} was ended"

    def status(self) -> dict[str, object]:
        """The state of the server and of each client, as plain values."""
        now = self._loop.time()
        identities = self.identities.by_name.values()
        return {
            "tunnels": [identity.status(now) for identity in identities],
            "half_open": self.demux.half_open,
            "handshake_budget": self.demux.handshake_budget(now),
            "drops": dict(self.demux.drops),
            "last_failure": failure_status(self._authenticator.last_failure),
            "old_key_in_use": [identity.name for identity in identities if identity.changes_key],
            "warnings": self._pool_conflicts + self.identities.forwarding.warnings,
        }

    def stalled(self) -> bool:
        """Whether packets of a client have waited for long although they could be carried."""
        planes = [plane for one in self.identities.by_name.values() if (plane := one.plane()) is not None]
        return self._stall.stalled(planes, self._loop.time())

    def summary(self) -> str:
        """One line for the service manager."""
        identities = self.identities.by_name.values()
        connected = sum(identity.link is not None for identity in identities)
        return f"{connected} of {len(identities)} clients connected"

    # Sessions

    def _new_link(self, verified: Verified[Key], sock: socket.socket) -> Link:
        now = self._loop.time()
        link = self._link(sock, Session(verified.association, self._dialect, now, handshake_deadline=now))
        self._authenticator.succeeded(verified)
        self._logins.add(link, verified.key)
        return link

    def _link(self, sock: socket.socket, session: Session) -> Link:
        return Link(
            sock,
            session,
            on_event=self._on_event,
            on_handshake=self.demux.receive_handshake,
            on_path=lambda link, number: None,  # noqa: ARG005 - ICMP is not authentic; keepalive decides
            loop=self._loop,
        )

    def _dialect(
        self, association: AnyAssociation, count: Count, now: float, numbers: Sequence[int] = (0, 0)
    ) -> Dialect:
        if association.native:
            config = self.identities.config
            return NativeDialect(count, config.keepalive, config.timeout, now, numbers)
        return GoServerDialect(count)

    def _on_event(self, link: Link, event: Event) -> None:
        match event:
            case Received(Hello() as hello):
                self._tasks.spawn(self._logins.admit(link, hello))
            case Received(Welcome() | Renew()):
                link.close("other", "the client sent a message that only a server sends")
            case WornOut():
                self._renew(link)
            case PathMtuChanged():
                self._tasks.spawn(self._logins.resize(link))
            case Closed():
                self.demux.remove(link)
                self._logins.closed(link, event)
            case _:
                pass

    def _renew(self, link: Link) -> None:
        """Ask the client for a new session, since the key of this one is worn out."""
        association = link.session.association
        if association.native:
            link.send(Renew())
            return
        # An original Go dtun cannot be asked.
        name, peer = association.identity, link.endpoint
        text = "%s: the key of this session is half worn out; restart the original dtun at %s"
        SessionLog(log).warning(text, name, peer, client=name, reason="worn out", peer=peer)

    # The host

    def _host_changed(self) -> None:
        if self._host_timer is not None:
            self._host_timer.cancel()
        self._host_timer = self._loop.call_later(
            HOST_CHANGE_DELAY, lambda: self._tasks.spawn(self._follow_host())
        )

    async def _follow_host(self) -> None:
        identities = self.identities
        if identities.config.forwards:
            await identities.forwarding.refresh(identities.config, identities.devices)
        try:
            known, self._pool_conflicts = self._pool_conflicts, await identities.pool_conflicts()
        except DtunError as error:
            log.warning("%s", error)
            return
        for conflict in self._pool_conflicts:
            if conflict not in known:
                log.warning("%s", conflict)
