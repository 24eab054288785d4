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
import logging
import os
import random
import secrets
import socket
from collections.abc import Callable

from dtun.config import ClientConfig, ServerName
from dtun.dtls.association import Association
from dtun.dtls.engine import ClientEngine
from dtun.dtls.suites import LEGACY_SUITE, by_name
from dtun.errors import DtunError, UnavailableError
from dtun.platform.interface import Kernel
from dtun.protocol.messages import Hello, Renew, Welcome
from dtun.protocol.record import is_hello_request
from dtun.tunnel import sockets
from dtun.tunnel.backoff import Backoff
from dtun.tunnel.dialect import Count, Dialect, GoClientDialect, NativeDialect
from dtun.tunnel.hooks import RunHook
from dtun.tunnel.limiter import Limiter
from dtun.tunnel.link import Link
from dtun.tunnel.liveness import Silence
from dtun.tunnel.near_end import NearEnd
from dtun.tunnel.session import Closed, Established, Event, Received, Session, WornOut
from dtun.tunnel.sockets import SockAddr
from dtun.tunnel.status import iso, link_status
from dtun.tunnel.tasks import Tasks
from dtun.tunnel.text import harmless

log = logging.getLogger("dtun.client")

ATTEMPT_TIME = 5.0
"""Seconds for one address of one server, until the handshake is over."""

RESOLVE_TIME = 10.0
"""Seconds for the name of a server."""

GRACE = 1.0
"""Seconds for which the session before still receives what is under way."""

STABLE_TIME = 10.0
"""Seconds after which a session counts as a success, so that the next failure starts with a short wait."""

HINT_INTERVAL = 5.0
"""Seconds between two new sessions, at most, that were made because of unauthenticated hints."""

SETTLE_TIME = 0.2
"""Seconds until a burst of changes on the host is over."""

SILENCE_CHECK = 5.0
GO_TIMEOUT = 60.0
"""Seconds of sending without hearing anything from an original Go dtun, which answers no keepalive."""

KEEPALIVE, TIMEOUT = 10.0, 30.0
"""Until the server has pushed its own."""

# ICMP says that nobody listens, or that there is no way: a hint, since anybody could have sent it.
_HINTS = frozenset(
    {errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.ENETDOWN}
)


class Client:
    """One configured client. `run` works until it is cancelled; `stop` then cleans up."""

    def __init__(
        self, config: ClientConfig, kernel: Kernel, run_hook: RunHook, loop: asyncio.AbstractEventLoop
    ) -> None:
        suites = [LEGACY_SUITE] if config.go else [by_name(name) for name in config.suites]
        self._config = config
        self._kernel = kernel
        self._loop = loop
        self._end = NearEnd(config, kernel, run_hook, loop)
        self._engine = ClientEngine(config.id, config.psk.secret(), suites, native=not config.go)
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
        self._since = iso()
        self._last_error: str | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._tasks = Tasks(loop)
        self._stopping = False

    async def start(self) -> None:
        """Make the device.

        Raises:
            DtunError: something that this needs is missing, taken or not allowed; `stop` still is to be called.
        """
        self._end.open()
        self._kernel.watch(self._host_changed)
        self._wanted.set()

    async def run(self) -> None:
        """Keep a session in service."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            self._hurry.clear()
            if await self._try_servers():
                continue
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
        await self._end.close()

    def status(self) -> dict[str, object]:
        """How the tunnel is doing."""
        end, welcome = self._end, self._end.welcome
        warnings = [end.hook_error] if end.hook_error else []
        refused = welcome.refused if welcome else ()
        warnings += [f"the server refuses {item.subnet}: {harmless(item.reason)}" for item in refused]
        tunnel = {
            "id": self._config.id,
            "state": "connected" if self._link else "connecting",
            "since": self._since,
            "device": self._config.tun,
            "address": str(welcome.address) if welcome else None,
            "peer_address": str(welcome.peer) if welcome else None,
            "subnets": [str(subnet) for subnet in self._config.subnets],
            "mtu": end.mtu,
            "last_error": self._last_error,
            "warnings": warnings,
            **link_status(self._link, end.counters),
        }
        return {"tunnels": [tunnel], "warnings": []}

    def summary(self) -> str:
        """One line for the service manager."""
        if self._link is None or self._end.welcome is None:
            return f"connecting to {', '.join(map(str, self._config.servers))}"
        return f"connected to {self._link.endpoint}, {self._end.welcome.address} on {self._config.tun}"

    # Making a session

    async def _try_servers(self) -> bool:
        """Try every address of every server, in order, until one welcomes us."""
        reasons: list[str] = []
        for server in self._config.servers:
            try:
                addresses = await self._resolve(server)
            except (OSError, TimeoutError) as error:
                reasons.append(f"{server.host}: cannot resolve the name: {_words(error)}")
                continue
            for address in addresses:
                failure = await self._attempt(address)
                if failure is None:
                    return True
                reasons.append(f"{sockets.show(address)}: {failure}")
        self._complain("; ".join(reasons))
        return False

    async def _resolve(self, server: ServerName) -> list[SockAddr]:
        async with asyncio.timeout(RESOLVE_TIME):
            found = await self._loop.getaddrinfo(server.host, server.port, type=socket.SOCK_DGRAM)
        return list(dict.fromkeys(sockaddr for _, _, _, _, sockaddr in found))

    async def _attempt(self, address: SockAddr) -> str | None:
        """Make a session with the server at this address; returns why not, or None if it is in service now."""
        try:
            if not await self._end.make_way(address):
                return "no route to host"
            sock = sockets.connect(address)
        except UnavailableError as error:
            return str(error)
        except OSError as error:
            return _words(error)
        outcome: asyncio.Future[str | None] = self._loop.create_future()
        now = self._loop.time()
        link = Link(
            sock,
            Session(self._engine.associate(now), self._dialect, now, handshake_deadline=now + ATTEMPT_TIME),
            on_event=lambda link, event: self._on_event(link, event, outcome),
            on_handshake=self._on_handshake,
            on_path=lambda link, number: self._on_path(link, number, outcome),
            loop=self._loop,
        )
        link.start()
        try:
            return await outcome
        finally:
            if link is not self._link:
                link.close("other", "the attempt was given up")

    def _dialect(self, association: Association, count: Count, now: float) -> Dialect:
        if association.native or not self._config.go:
            return NativeDialect(count, KEEPALIVE, TIMEOUT, now)
        return GoClientDialect(count)

    def _on_event(self, link: Link, event: Event, outcome: "asyncio.Future[str | None]") -> None:
        match event:
            case Established():
                self._introduce(link)
            case Received(Welcome() as welcome):
                self._tasks.spawn(self._serve(link, welcome, outcome))
            case Received(Hello()):
                link.close("other", "it talks like a client")
            case Received(Renew()) | WornOut():
                if link is self._link:
                    self._want("renewal")
            case Closed():
                if not outcome.done():
                    outcome.set_result(self._explained(link, event))
                if link is self._link:
                    self._lost(event)
            case _:
                pass

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
                mtu=self._config.mtu or link.inner_mtu,
                features=self._end.offloads,
            )
        )

    async def _serve(self, link: Link, welcome: Welcome, outcome: "asyncio.Future[str | None]") -> None:
        """Let the tunnel move over to a new session."""
        try:
            await self._move_over(link, welcome, outcome)
        except DtunError as error:
            link.close("other", str(error))
        except Exception:
            # A bug, which the log will tell. Nobody would ever use this session, nor look for another.
            link.close("other", "the client has failed")
            raise

    async def _move_over(self, link: Link, welcome: Welcome, outcome: "asyncio.Future[str | None]") -> None:
        renewed = welcome == self._end.welcome and self._reason == "renewal"
        if link.ended() or not await self._end.take_up(link, welcome):
            return
        liveness = link.session.dialect.liveness if link.session.dialect else None
        if liveness is not None:
            liveness.keepalive, liveness.timeout = welcome.keepalive, welcome.timeout
        before, self._link = self._link, link
        if before is not None and before is not link:
            self._retiring.add(before)
            self._loop.call_later(GRACE, self._retire, before)
        if before is None:
            self._since = iso()
        if before is None or not renewed:
            self._announce(link, welcome)
        else:
            log.debug("the session with %s has been renewed", link.endpoint)
        self._last_error = None
        # The session before may have ended while this one was made. Yet another would bring nothing, and
        # an original Go dtun would give it other addresses.
        self._cancel("again")
        self._schedule(link)
        await self._end.settle(link)
        if not outcome.done():
            outcome.set_result(None)
        if link is self._link:  # else it was lost meanwhile, and `down` has its turn
            self._tasks.spawn(self._end.up())

    def _explained(self, link: Link, closed: Closed) -> str:
        """Why an attempt has failed, and what to do where that can be guessed."""
        text = harmless(closed.text)
        # An original Go dtun has one suite, which is none of ours, so that it does not even say hello.
        if closed.reason == "handshake" and not link.session.association.answered and not self._config.go:
            return f"{text} (if that is an original Go dtun, set `compat: go`)"
        return text

    def _retire(self, link: Link) -> None:
        self._retiring.discard(link)
        link.close("renewed", "a new session has taken over")

    def _announce(self, link: Link, welcome: Welcome) -> None:
        """Say what has come about."""
        suite = link.session.association.suite
        log.info(
            "connected to %s as %s: %s to %s on %s, MTU %d, %s",
            link.endpoint,
            self._config.id,
            welcome.address,
            welcome.peer,
            self._config.tun,
            self._end.mtu,
            suite.label if suite else "",
        )
        for refusal in welcome.refused:
            log.warning("the server refuses subnet %s: %s", refusal.subnet, harmless(refusal.reason))

    # What ends a session, or asks for a new one

    def _schedule(self, link: Link) -> None:
        """When this session is to be replaced, and when it has proven itself."""
        self._timer("stable", STABLE_TIME, self._backoff.reset)
        if self._config.rekey and not self._config.go:
            delay = self._config.rekey * random.uniform(0.95, 1.0)  # noqa: S311 - spreads load, hides nothing
            self._timer("rekey", delay, lambda: self._want("renewal"))
        if self._config.go:
            silence = Silence(GO_TIMEOUT)
            self._timer("silence", SILENCE_CHECK, lambda: self._check_silence(link, silence))

    def _check_silence(self, link: Link, silence: Silence) -> None:
        if link is not self._link:
            return
        if silence.lasts(self._end.counters.tx_packets, link.highest, self._loop.time()):
            link.close("timeout", f"nothing was heard for {GO_TIMEOUT:g} s")
        else:
            self._timer("silence", SILENCE_CHECK, lambda: self._check_silence(link, silence))

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

    def _lost(self, closed: Closed) -> None:
        self._link = None
        self._since = iso()
        self._last_error = harmless(closed.text)
        self._cancel("stable", "rekey", "silence")
        if self._stopping:
            return
        if closed.reason == "replaced":
            log.error("another host uses the id %s: %s", self._config.id, harmless(closed.text))
        else:
            log.warning("disconnected: %s", harmless(closed.text))
        self._tasks.spawn(self._end.down(closed.reason))
        # The first try waits a little, too: a server that refuses us after the welcome must not be hammered.
        self._timer("again", self._backoff.next(), lambda: self._want("lost"))

    def _on_handshake(self, link: Link, datagram: bytes) -> None:
        if is_hello_request(datagram):
            self._hint(link)

    def _on_path(self, link: Link, number: int, outcome: "asyncio.Future[str | None]") -> None:
        if link is self._link:
            if number in _HINTS:
                self._hint(link)
        elif not outcome.done():
            link.close("no answer", _words(OSError(number, os.strerror(number))))

    def _hint(self, link: Link) -> None:
        """Somebody, perhaps not the server, says that this session is gone: make another, keep this one till then."""
        now = self._loop.time()
        if link is self._link and now - self._hinted_at >= HINT_INTERVAL:
            self._hinted_at = now
            self._want("hint")

    def _host_changed(self) -> None:
        self._timer("host", SETTLE_TIME, lambda: self._tasks.spawn(self._follow_host()))

    async def _follow_host(self) -> None:
        """Make a new session if the host reaches the server another way than before."""
        link = self._link
        if link is None:
            self._hurry.set()
            again = self._timers.get("again")
            if again is not None and again.when() > self._loop.time():
                self._cancel("again")
                self._want("lost")
            return
        if await self._end.way_has_changed(link) and link is self._link:
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
            log.warning("no %ssession: %s%s", "new " if self._link else "", text, more)


def _complaints() -> Limiter:
    """The same reason is worth a line every five minutes; a new one a line at once."""
    return Limiter(burst=1, per_seconds=300)


def _words(error: BaseException) -> str:
    match error:
        case TimeoutError():
            return "no answer in time"
        case OSError(errno=errno.ECONNREFUSED):
            return "nobody listens there"
        case OSError(strerror=str(text)):
            return text.lower()
    return str(error)
