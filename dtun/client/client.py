"""The client: one tunnel, kept up for ever.

    wanted --> try each server, each of its addresses --> welcome --> in service
      ^            |  none answered: back off                           |
      '------------+----------------------------------------------------'
           lost, due for a new key, host moved, server asks for it

A new session is always made beside the one that is in service, from a new source port, and takes its
place once it is welcome. The TUN device and its addresses stay throughout.
"""

import asyncio
import contextlib
import errno
import hashlib
import logging
import os
import random
import secrets
import socket
from collections.abc import Callable

from dtun.client.dialer import Dialer, Outcome, words_for
from dtun.client.reload import changed_settings, usable
from dtun.client.tunnel import Tunnel
from dtun.config import ClientConfig, Config
from dtun.errors import ConfigError, DtunError
from dtun.handover.fdstore import FdStore, NoFdStore
from dtun.handover.saved_session import SavedSession
from dtun.handover.session_store import numbers_of
from dtun.network.plan import FORWARDING
from dtun.pacing import Backoff, RateLimiter
from dtun.platform.interface import Kernel
from dtun.protocol.messages import Hello, Renew, Welcome
from dtun.protocol.record import is_hello_request
from dtun.session.dialect import NativeDialect
from dtun.session.go import GoLiveness
from dtun.session.hooks import RunHook
from dtun.session.link import Link
from dtun.session.log import about
from dtun.session.session import Closed, Established, Event, PathMtuChanged, Received, Session, WornOut
from dtun.session.stall import StallDetector
from dtun.session.status import link_status, timestamp
from dtun.session.tasks import Tasks
from dtun.text import printable

log = logging.getLogger("dtun.client")

GRACE = 1.0
"""Seconds for which the session before still receives what is under way."""

STABLE_TIME = 10.0
"""Seconds after which a session counts as a success, so that the next failure starts with a short wait."""

HINT_INTERVAL = 5.0
"""Seconds between two new sessions, at most, that were made because of unauthenticated hints."""

SETTLE_TIME = 0.2
"""Seconds until a burst of changes on the host is over."""

GO_LIVENESS_CHECK = 5.0
"""Seconds between two checks whether a Go dtun is dead."""

# ICMP says that nobody listens, or that there is no way: a hint, since anybody could have sent it.
_HINTS = frozenset(
    {errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.ENETDOWN}
)


class Client:
    """One configured client. `run` works until it is cancelled; `stop` then cleans up."""

    def __init__(
        self,
        config: ClientConfig,
        kernel: Kernel,
        run_hook: RunHook,
        loop: asyncio.AbstractEventLoop,
        fdstore: FdStore | None = None,
    ) -> None:
        """`fdstore` has what a process before this one has kept, and gets what a successor will need."""
        self._fdstore = fdstore or NoFdStore()
        self._config = config
        self._kernel = kernel
        self._loop = loop
        self._tunnel = Tunnel(config, kernel, run_hook, loop, self._fdstore)
        self._dialer = Dialer(config, self._tunnel, self._make_link, self._is_in_service, loop)
        self._instance = secrets.token_hex(8)
        self._backoff = Backoff()
        self._complaint = ""
        self._complaints = _complaints()
        self._wanted = asyncio.Event()
        self._hurry = asyncio.Event()
        self._reason = "start"
        self._link: Link | None = None
        self._retiring: set[Link] = set()
        self._hinted_at = float("-inf")
        self._since = timestamp()
        self._last_error: str | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._tasks = Tasks(loop)
        self._stopping = False
        self._stall = StallDetector()

    async def start(self) -> None:
        """Make the device, and close the ways past the tunnel if that is wanted.

        Raises:
            DtunError: something that this needs is missing, taken or not allowed; `stop` still is to be called.
        """
        if self._config.forwarding:
            log.info("this host forwards packets between its networks and the tunnel (%s=1)", FORWARDING[4])
        taken = self._tunnel.session_store.take_session() if self._fdstore.names() else None
        welcome = taken[0].description.greeting if taken else None
        if taken is None or not isinstance(welcome, Welcome) or taken[0].description.notes != self._notes():
            if taken is not None:
                # Without a word: the server finds out when the new session comes.
                taken[0].close()
                taken[1].close()
            self._fdstore.give_up_rest()
            await self._tunnel.open()
            self._wanted.set()
        else:
            await self._tunnel.open(welcome, taken[1].getpeername())
            self._fdstore.give_up_rest()
            await self._resume(*taken, welcome)
        self._kernel.watch(self._host_changed, self._woke)

    async def run(self) -> None:
        """Keep a session in service."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            self._hurry.clear()
            failures = await self._dialer.connect()
            if failures is None:
                continue
            self._complain(failures)
            self._wanted.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._backoff.next()):
                    await self._hurry.wait()

    async def stop(self) -> None:
        """Say goodbye and remove what was made."""
        self._stopping = True
        for timer in self._timers.values():
            timer.cancel()
        for link in (self._link, *self._retiring):
            if link is not None:
                link.close("stopped", "the client stops")
        await self._tasks.cancel()
        await self._tunnel.close()

    def status(self) -> dict[str, object]:
        """How the tunnel is doing."""
        end, welcome = self._tunnel, self._tunnel.welcome
        refused = welcome.refused if welcome else ()
        rekey = self._timers.get("rekey")
        warnings = end.warnings + [
            f"the server refuses {item.subnet}: {printable(item.reason)}" for item in refused
        ]
        warnings += self._link.warnings if self._link is not None else []
        tunnel = {
            "id": self._config.id,
            "state": "connected" if self._link else "connecting",
            "since": self._since,
            "device": end.device,
            "address": str(welcome.address) if welcome else None,
            "peer_address": str(welcome.peer) if welcome else None,
            "subnets": [str(subnet) for subnet in self._config.subnets],
            "mtu": end.mtu,
            "offloads": end.offloads_in_use,
            "next_rekey": timestamp(rekey.when() - self._loop.time()) if rekey else None,
            "last_error": self._last_error,
            "warnings": warnings,
            **link_status(self._link, end.counters),
        }
        return {"tunnels": [tunnel], "warnings": []}

    def stalled(self) -> bool:
        """Whether packets wait although they could be carried."""
        plane = self._tunnel.plane(self._link)
        return self._stall.stalled([plane] if plane is not None else [], self._loop.time())

    def summary(self) -> str:
        """One line for the service manager."""
        if self._link is None or self._tunnel.welcome is None:
            return f"connecting to {', '.join(map(str, self._config.servers))}"
        return f"connected to {self._link.endpoint}, {self._tunnel.welcome.address} on {self._tunnel.device}"

    async def suspend(self) -> None:
        """Go, and leave device and session as they are, for the successor that the fdstore hands them to."""
        self._stopping = True
        for timer in self._timers.values():
            timer.cancel()
        await self._tasks.cancel()
        self._tunnel.suspend()

    async def _resume(self, saved: SavedSession, sock: socket.socket, welcome: Welcome) -> None:
        """Go on with the session of a process before this one."""
        numbers = numbers_of(saved)
        session = Session.resumed(
            saved.association(),
            lambda _, count, now: NativeDialect(count, welcome.keepalive, welcome.timeout, now, numbers),
            self._loop.time(),
        )
        outcome: Outcome = self._loop.create_future()
        link = self._make_link(sock, session, outcome)
        await self._serve(link, welcome, outcome, saved)
        if link is self._link:
            link.flush()
            extra = about(client=self._config.id, reason="resumed", peer=link.endpoint)
            log.info("goes on with the session with %s after the restart", link.endpoint, extra=extra)
        else:
            self._want("start")

    def _notes(self) -> dict[str, str]:
        """What has to be the same after a restart, for the session to go on."""
        config = self._config
        told = f"{config.id} {config.subnets} {config.mtu} {config.servers} {config.routing} {config.mark}"
        return {"told": hashlib.sha256(told.encode() + config.psk.secret()).hexdigest()}

    async def reload(self, config: Config, *, dry_run: bool) -> list[str]:
        """Go on with another configuration, or only tell what that would mean.

        Raises:
            ConfigError: it is a server's.
            DtunError: the kernel refuses what it wants.
        """
        if config.client is None:
            raise ConfigError("this is a client, but the file has a server section now; nothing was changed")
        steps = changed_settings(self._config, config.client)
        if dry_run or not steps:
            return [str(step) for step in steps]
        before, self._config = self._config, usable(self._config, config.client)
        self._dialer.go_on_with(self._config)
        await self._tunnel.go_on_with(self._config)
        if self._link is not None and before.rekey != self._config.rekey:
            self._schedule_rekey()
        if any(step.effect == "reconnect" for step in steps):
            self._want("configuration")
            self._hurry.set()
        return [str(step) for step in steps]

    # Making a session

    def _make_link(self, sock: socket.socket, session: Session, outcome: Outcome) -> Link:
        before = self._link
        same_path = before is not None and before.peer == sock.getpeername()
        return Link(
            sock,
            session,
            on_event=lambda link, event: self._on_event(link, event, outcome),
            on_handshake=self._on_handshake,
            on_path=lambda link, number: self._on_path(link, number, outcome),
            loop=self._loop,
            known_mtu=before.path_mtu if before is not None and same_path else None,
        )

    def _on_event(self, link: Link, event: Event, outcome: Outcome) -> None:
        match event:
            case Established():
                self._introduce(link)
            case Received(Welcome() as welcome):
                self._tasks.spawn(self._serve(link, welcome, outcome))
            case Received(Hello()):
                link.close("other", "it talks like a client")
            case Received(Renew()) | WornOut() if link is self._link:
                self._want("renewal")
            case PathMtuChanged() if link is self._link:
                self._tasks.spawn(self._resize(link))
            case Closed():
                self._ended(link, event, outcome)
            case _:
                pass

    def _ended(self, link: Link, closed: Closed, outcome: Outcome) -> None:
        if not outcome.done():
            outcome.set_result(self._dialer.explain(link, closed))
        if link is self._link:
            self._lost(link, closed)

    def _introduce(self, link: Link) -> None:
        if link.ended():
            return  # in the same breath: the next event tells why
        if not link.session.association.native and not self._config.go:
            link.close("other", "the server is an original Go dtun; set `compat: go` for it")
            return
        link.send(
            Hello(
                instance=self._instance,
                subnets=self._config.subnets,
                mtu=self._config.mtu,
                features=self._tunnel.offloads,
            )
        )

    async def _serve(
        self, link: Link, welcome: Welcome, outcome: Outcome, saved: SavedSession | None = None
    ) -> None:
        """Let the tunnel move over to a new session; with `saved`, to one from before a restart."""
        try:
            await self._move_over(link, welcome, outcome, saved)
        except DtunError as error:
            link.close("other", str(error))
        except Exception:
            # A bug, which the log will tell. Nobody would ever use this session, nor look for another.
            link.close("other", "the client has failed")
            raise

    async def _move_over(
        self, link: Link, welcome: Welcome, outcome: Outcome, saved: SavedSession | None
    ) -> None:
        renewed = saved is not None or (welcome == self._tunnel.welcome and self._reason == "renewal")
        if link.ended() or not await self._tunnel.take_up(link, welcome):
            return
        liveness = link.session.dialect.liveness if link.session.dialect else None
        if liveness is not None:
            liveness.keepalive, liveness.timeout = welcome.keepalive, welcome.timeout
        before, self._link = self._link, link
        if saved is None:
            self._tunnel.session_store.keep_session(link, welcome, server=False, **self._notes())
        else:
            self._tunnel.session_store.resume(saved, link)
        if before is not None and before is not link:
            self._retiring.add(before)
            self._loop.call_later(GRACE, self._retire, before)
        if before is None:
            self._since = timestamp()
        if not renewed or (before is None and saved is None):
            self._announce(link, welcome)
        else:
            extra = about(client=self._config.id, reason="renewed", peer=link.endpoint)
            log.debug("the session with %s has been renewed", link.endpoint, extra=extra)
        self._last_error = None
        # The session before may have ended while this one was made. Yet another would bring nothing, and
        # an original Go dtun would give it other addresses.
        self._cancel("again")
        self._schedule(link)
        # What was found out about the path while the network was set up.
        await self._resize(link)
        await self._tunnel.settle(link)
        if not outcome.done():
            outcome.set_result(None)
        if link is self._link:  # else it was lost meanwhile, and `down` has its turn
            self._tasks.spawn(self._tunnel.up())

    def _is_in_service(self, link: Link) -> bool:
        return link is self._link

    def _retire(self, link: Link) -> None:
        self._retiring.discard(link)
        link.close("renewed", "a new session has taken over")

    def _announce(self, link: Link, welcome: Welcome) -> None:
        """Say what has come about."""
        suite = link.session.association.suite
        extra = about(client=self._config.id, reason="connected", peer=link.endpoint)
        log.info(
            "connected to %s as %s: %s to %s on %s, MTU %d, %s",
            link.endpoint,
            self._config.id,
            welcome.address,
            welcome.peer,
            self._tunnel.device,
            self._tunnel.mtu,
            suite.label if suite else "",
            extra=extra,
        )
        for warning in link.warnings:
            log.warning("%s", warning, extra=extra)
        extra = about(client=self._config.id, reason="refused", peer=link.endpoint)
        for refusal in welcome.refused:
            reason = printable(refusal.reason)
            log.warning("the server refuses subnet %s: %s", refusal.subnet, reason, extra=extra)

    # What ends a session, or asks for a new one

    def _schedule(self, link: Link) -> None:
        """When this session is to be replaced, and when it has proven itself."""
        self._timer("stable", STABLE_TIME, self._backoff.reset)
        self._schedule_rekey()
        if self._config.go:
            liveness = GoLiveness()
            self._timer("liveness", GO_LIVENESS_CHECK, lambda: self._check_go_liveness(link, liveness))

    def _schedule_rekey(self) -> None:
        self._cancel("rekey")
        if self._config.rekey and not self._config.go:
            delay = self._config.rekey * random.uniform(0.95, 1.0)  # noqa: S311 - spreads load, hides nothing
            self._timer("rekey", delay, lambda: self._want("renewal"))

    def _check_go_liveness(self, link: Link, liveness: GoLiveness) -> None:
        if link is not self._link:
            return
        if liveness.dead(self._tunnel.counters.tx_packets, link.highest, self._loop.time()):
            link.close("timeout", f"nothing was received for {liveness.timeout:g} s")
        else:
            self._timer("liveness", GO_LIVENESS_CHECK, lambda: self._check_go_liveness(link, liveness))

    def _timer(self, name: str, delay: float, action: Callable[[], None]) -> None:
        if name in self._timers:
            self._timers[name].cancel()
        self._timers[name] = self._loop.call_later(delay, action)

    def _cancel(self, *names: str) -> None:
        for name in names:
            if name in self._timers:
                self._timers.pop(name).cancel()

    def _want(self, reason: str) -> None:
        """Ask for a new session beside the present one."""
        self._reason = reason
        self._wanted.set()

    def _lost(self, link: Link, closed: Closed) -> None:
        self._link = None
        self._tunnel.session_store.forget_session()
        self._since = timestamp()
        self._last_error = printable(closed.text)
        self._cancel("stable", "rekey", "liveness")
        if self._stopping:
            return
        name, text = self._config.id, printable(closed.text)
        extra = about(client=name, reason=closed.reason, peer=link.endpoint)
        if closed.reason == "replaced":
            log.error("another host uses the id %s: %s", name, text, extra=extra)
        else:
            log.warning("disconnected: %s", text, extra=extra)
        self._tasks.spawn(self._let_go(closed.reason))
        # The first try waits a little, too: a server that refuses us after the welcome must not be hammered.
        self._timer("again", self._backoff.next(), lambda: self._want("lost"))

    async def _let_go(self, reason: str) -> None:
        """Adjust the host's network to there being no session, and run `down`."""
        try:
            await self._tunnel.lost()
        except DtunError as error:
            log.error("cannot adjust the host's network: %s", error)  # noqa: TRY400 - a line for a person
        await self._tunnel.down(reason)

    async def _resize(self, link: Link) -> None:
        before = self._tunnel.mtu
        try:
            await self._tunnel.resize(link)
        except DtunError as error:
            log.error("cannot change the MTU of %s: %s", self._tunnel.device, error)  # noqa: TRY400 - the same
        else:
            if self._tunnel.mtu != before:
                log.info("the path to %s takes packets of %d bytes now", link.endpoint, self._tunnel.mtu)

    def _on_handshake(self, link: Link, datagram: bytes) -> None:
        if is_hello_request(datagram):
            self._hint(link)

    def _on_path(self, link: Link, number: int, outcome: Outcome) -> None:
        if link is self._link:
            if number in _HINTS:
                self._hint(link)
        elif not outcome.done():
            link.close("no answer", words_for(OSError(number, os.strerror(number))))

    def _hint(self, link: Link) -> None:
        """Somebody, perhaps not the server, says that this session is gone: make another, keep this one till then."""
        now = self._loop.time()
        if link is self._link and now - self._hinted_at >= HINT_INTERVAL:
            self._hinted_at = now
            self._want("hint")

    def _host_changed(self) -> None:
        self._timer("host", SETTLE_TIME, lambda: self._tasks.spawn(self._follow_host()))

    def _woke(self, seconds: float) -> None:
        """The host has slept. The server may have given up the session long ago: no need to wait until that shows."""
        log.info("the host has slept for %.0f s, making a new session", seconds)
        self._want("host changed")
        self._hurry.set()

    async def _follow_host(self) -> None:
        """Move what goes around the tunnel; a new session if the host reaches the server another way than before."""
        try:
            await self._tunnel.follow()
        except DtunError as error:
            log.error("cannot follow the change of the host's network: %s", error)  # noqa: TRY400 - the same
        link = self._link
        if link is None:
            self._hurry.set()
            again = self._timers.get("again")
            if again is not None and again.when() > self._loop.time():
                self._cancel("again")
                self._want("lost")
            return
        if await self._tunnel.way_has_changed(link) and link is self._link:
            log.info("the way to %s has changed, making a new session", link.endpoint)
            self._want("host changed")
            self._hurry.set()

    # Odds and ends

    def _complain(self, text: str) -> None:
        self._last_error = text
        if text != self._complaint:
            self._complaint, self._complaints = text, _complaints()
        held_back = self._complaints.allow(self._loop.time())
        if held_back is not None:
            more = f" (and {held_back} more tries)" if held_back else ""
            extra = about(client=self._config.id, reason="no session")
            log.warning("no %ssession: %s%s", "new " if self._link else "", text, more, extra=extra)


def _complaints() -> RateLimiter:
    """The same reason is worth a line every five minutes; a new one a line at once."""
    return RateLimiter(burst=1, per_seconds=300)
