"""Makes a client's sessions: tries each address of each server, in order, until one welcomes the client.

socket --> handshake --> Hello --> Welcome --> `serve` --> in service
  |            |           |          |           |
  '------------+-----------+----------+-----------+--> the next address

While an address is silent, the next one is tried beside it (RFC 8305, section 5). Handshakes may run side by side, but
only one session says Hello at a time: two logins of one identity would replace each other.

A renewal begins with the address in service, because another server may give other addresses inside the tunnel, which
ends all connections through it.
"""

import asyncio
import errno
import logging
import os
import secrets
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import ip_address

from dtun.client.race import Race
from dtun.client.tunnel import Tunnel
from dtun.config import ClientConfig, ServerName
from dtun.dtls.association import KEY_REFUSED
from dtun.dtls.engine import ClientEngine
from dtun.dtls.suites import LEGACY_SUITE, by_name
from dtun.errors import DtunError, UnavailableError
from dtun.protocol.messages import Hello, Welcome
from dtun.session import udp
from dtun.session.dialect import Count, Dialect, NativeDialect
from dtun.session.go import GoClientDialect
from dtun.session.link import Link
from dtun.session.session import AnyAssociation, Closed, Established, Event, Received, Session
from dtun.session.udp import SockAddr
from dtun.text import printable

log = logging.getLogger("dtun.client")

ATTEMPT_TIME = 5.0
"""Seconds for the handshake with one address of one server."""

RESOLVE_TIME = 10.0
"""Seconds to resolve the name of a server."""

KEEPALIVE, TIMEOUT = 10.0, 30.0
"""Seconds, until the server's Welcome brings its own."""

Serve = Callable[[Link, Welcome], Awaitable[None]]
"""Puts a session in service, unless it ends meanwhile. May raise DtunError."""


@dataclass(eq=False, slots=True)
class _Attempt:
    """One address that is tried. `answer` is the Welcome, or None once the session has ended."""

    link: Link
    answer: asyncio.Future[Welcome | None]
    established: bool = False


class Dialer:
    """Makes one session at a time.

    `make_link` must pass the link's events, and the path errors of a link that is not in service, to `on_event` and
    `on_path`. `serving` is the session in service; `session_lost` must be called when it has ended.
    """

    def __init__(
        self,
        config: ClientConfig,
        tunnel: Tunnel,
        loop: asyncio.AbstractEventLoop,
        *,
        make_link: Callable[[socket.socket, Session], Link],
        serve: Serve,
        serving: Callable[[], Link | None],
    ) -> None:
        self._config = config
        self._engine = _engine(config)
        self._tunnel = tunnel
        self._loop = loop
        self._make_link = make_link
        self._serve = serve
        self._serving = serving
        self._instance = secrets.token_hex(8)
        self._addresses: dict[ServerName, list[SockAddr]] = {}
        self._latest: SockAddr | None = None
        self._stays = True
        self._attempts: dict[Link, _Attempt] = {}
        self._speaker: _Attempt | None = None
        self._admitting = False
        self._lost = asyncio.Event()

    def reload(self, config: ClientConfig) -> None:
        """Use another configuration from the next attempt on."""
        if config.servers != self._config.servers:
            self._stays = False
        self._config = config
        self._engine = _engine(config)

    async def connect(self) -> str | None:
        """Try all addresses of all servers. Returns None once a session is in service, or why there is none."""
        current = self._serving()
        if current is not None:
            self._latest = current.peer
        self._lost.clear()
        self._admitting = True
        stays, self._stays = self._stays, True
        race = Race(self._try, self._look_up, self._loop)
        try:
            if current is not None and stays:
                # There is no hurry while the present session works.
                await race.run_alone(current.peer, self._lost)
            await race.run(self._config.servers)
        finally:
            self._admitting = False
            await race.stop()
            self._speaker = None
        if not race.won:
            return "; ".join(race.reasons)
        if race.reasons:
            log.info("not used: %s", "; ".join(race.reasons))
        return None

    def session_lost(self) -> None:
        """The session in service has ended: what goes through the tunnel now leads nowhere."""
        self._lost.set()

    def on_event(self, link: Link, event: Event) -> None:
        """An event of any link; those of the attempts matter."""
        attempt = self._attempts.get(link)
        if attempt is None:
            return
        match event:
            case Established():
                attempt.established = True
                self._let_one_speak()
            case Received(Welcome() as welcome) if not attempt.answer.done():
                attempt.answer.set_result(welcome)
            case Received(Hello()):
                link.close("other", "peer sent a client message")
            case Closed() if not attempt.answer.done():
                attempt.answer.set_result(None)
            case _:
                pass

    def on_path(self, link: Link, number: int) -> None:
        """The host or ICMP says that the server cannot be reached."""
        if link in self._attempts:
            link.close("no answer", describe_error(OSError(number, os.strerror(number))))

    async def _look_up(self, server: ServerName) -> tuple[list[SockAddr], str | None]:
        """The addresses of a server, the one in service first; those of an earlier look-up if this one fails."""
        problem = None
        try:
            self._addresses[server] = await self._resolve(server)
        except (OSError, TimeoutError) as error:
            problem = f"{server.host}: cannot resolve the name: {describe_error(error)}"
        found = self._addresses.get(server, [])
        return sorted(found, key=lambda address: address != self._latest), problem

    async def _resolve(self, server: ServerName) -> list[SockAddr]:
        """Ask the host's name servers: around the tunnel while there is no session."""
        if _is_address(server.host):
            return await self._ask(server)
        async with asyncio.timeout(RESOLVE_TIME):
            if self._serving() is not None:
                asking = asyncio.ensure_future(self._ask(server))
                losing = asyncio.ensure_future(self._lost.wait())
                try:
                    await asyncio.wait({asking, losing}, return_when=asyncio.FIRST_COMPLETED)
                    if asking.done():
                        return asking.result()
                finally:
                    losing.cancel()
                    asking.cancel()
                # The question went into the tunnel, and nobody will answer it.
            async with self._tunnel.look_ups_outside():
                return await self._ask(server)

    async def _ask(self, server: ServerName) -> list[SockAddr]:
        found = await self._loop.getaddrinfo(server.host, server.port, type=socket.SOCK_DGRAM)
        return list(dict.fromkeys(sockaddr for _, _, _, _, sockaddr in found))

    async def _try(self, address: SockAddr, on_heard: Callable[[], None]) -> str | None:
        """Try this address; once more if the key was refused.

        While a client's key is being changed, the server has two of them and cannot know which one the client means.
        The second time it tries the other.
        """
        failure = await self._attempt(address, on_heard)
        return await self._attempt(address, on_heard) if failure == KEY_REFUSED else failure

    async def _attempt(self, address: SockAddr, on_heard: Callable[[], None]) -> str | None:
        """Make a session with the server at this address. Returns None once it is in service, or why it is not."""
        mark = self._config.mark if self._config.routing == "policy" else None
        try:
            if not await self._tunnel.route_to_server(address):
                return "no route to host"
            sock = udp.connect(address, mark)
        except UnavailableError as error:
            return str(error)
        except OSError as error:
            return describe_error(error)
        now = self._loop.time()
        session = Session(
            self._engine.associate(now), self._dialect, now, handshake_deadline=now + ATTEMPT_TIME
        )
        link = self._make_link(sock, session)
        link.on_heard = on_heard
        attempt = self._attempts[link] = _Attempt(link, self._loop.create_future())
        try:
            link.start()
            welcome = await attempt.answer
            if welcome is not None:
                await self._serve(link, welcome)
        except DtunError as error:
            link.close("other", str(error))
        except Exception:
            log.exception("internal error, please report it")
            link.close("other", "internal error in the client")
        finally:
            del self._attempts[link]
            if link is not self._serving():
                link.close("other", "the attempt was abandoned")
                if self._speaker is attempt:
                    self._speaker = None
                    self._let_one_speak()
        return None if link is self._serving() else self._failure(link)

    def _let_one_speak(self) -> None:
        """Say Hello in the first session whose handshake is complete, unless another is being admitted."""
        if self._speaker is not None or not self._admitting:
            return
        for attempt in list(self._attempts.values()):
            if attempt.established and not attempt.link.ended():
                self._speaker = attempt
                self._send_hello(attempt.link)
                if not attempt.link.ended():
                    return
                self._speaker = None

    def _send_hello(self, link: Link) -> None:
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

    def _failure(self, link: Link) -> str:
        """Why the attempt has failed, and what to do about it if that can be guessed."""
        closed = link.session.closed
        text = printable(closed.text) if closed is not None else ""
        # A Go dtun accepts only a suite that we do not offer, so that it does not answer with a ServerHello.
        silent = not link.session.association.answered
        if closed is not None and closed.reason == "handshake" and silent and not self._config.go:
            return f"{text} (if that is an original Go dtun, set `compat: go`)"
        return text

    def _dialect(self, association: AnyAssociation, count: Count, now: float) -> Dialect:
        if association.native or not self._config.go:
            return NativeDialect(count, KEEPALIVE, TIMEOUT, now)
        return GoClientDialect(count)


def describe_error(error: BaseException) -> str:
    """What a failed system call means, for people."""
    match error:
        case TimeoutError():
            return "no answer in time"
        case OSError(errno=errno.ECONNREFUSED):
            return "connection refused, no server runs at that port"
        case OSError(strerror=str(text)):
            return text.lower()
    return str(error)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _engine(config: ClientConfig) -> ClientEngine:
    suites = [LEGACY_SUITE] if config.go else [by_name(name) for name in config.suites]
    return ClientEngine(config.id, config.psk.secret(), suites, native=not config.go)
