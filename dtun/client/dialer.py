"""Makes a client's sessions: tries each address of each server, in order, until one welcomes the client.

socket --> handshake --> Hello --> Welcome --> `serve` --> in service
  |            |           |          |           |
  '------------+-----------+----------+-----------+--> the next address
"""

import asyncio
import errno
import logging
import os
import secrets
import socket
from collections.abc import Awaitable, Callable

from dtun.client.tunnel import Tunnel
from dtun.config import ClientConfig, ServerName
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


class Dialer:
    """Makes one session at a time.

    `make_link` must pass the link's events, and the path errors of a link that is not in service, to `on_event` and
    `on_path`.
    """

    def __init__(
        self,
        config: ClientConfig,
        tunnel: Tunnel,
        loop: asyncio.AbstractEventLoop,
        *,
        make_link: Callable[[socket.socket, Session], Link],
        serve: Serve,
        in_service: Callable[[Link], bool],
    ) -> None:
        self._config = config
        self._engine = _engine(config)
        self._tunnel = tunnel
        self._loop = loop
        self._make_link = make_link
        self._serve = serve
        self._in_service = in_service
        self._instance = secrets.token_hex(8)
        self._addresses: dict[ServerName, list[SockAddr]] = {}
        self._link: Link | None = None
        self._answer: asyncio.Future[Welcome | None] = loop.create_future()

    def reload(self, config: ClientConfig) -> None:
        """Use another configuration from the next attempt on."""
        self._config = config
        self._engine = _engine(config)

    async def connect(self) -> str | None:
        """Try all addresses of all servers. Returns None once a session is in service, or why there is none."""
        reasons: list[str] = []
        for server in self._config.servers:
            try:
                addresses = await self._resolve(server)
            except (OSError, TimeoutError) as error:
                reasons.append(f"{server.host}: cannot resolve the name: {describe_error(error)}")
                # The name servers may be reachable only through the tunnel.
                addresses = self._addresses.get(server, [])
            for address in addresses:
                failure = await self._attempt(address)
                if failure is None:
                    return None
                reasons.append(f"{udp.show(address)}: {failure}")
        return "; ".join(reasons)

    def on_event(self, link: Link, event: Event) -> None:
        """An event of any link; those of the attempt matter."""
        if link is not self._link:
            return
        match event:
            case Established():
                self._send_hello(link)
            case Received(Welcome() as welcome) if not self._answer.done():
                self._answer.set_result(welcome)
            case Received(Hello()):
                link.close("other", "peer sent a client message")
            case Closed() if not self._answer.done():
                self._answer.set_result(None)
            case _:
                pass

    def on_path(self, link: Link, number: int) -> None:
        """The host or ICMP says that the server cannot be reached."""
        if link is self._link:
            link.close("no answer", describe_error(OSError(number, os.strerror(number))))

    async def _resolve(self, server: ServerName) -> list[SockAddr]:
        async with asyncio.timeout(RESOLVE_TIME):
            found = await self._loop.getaddrinfo(server.host, server.port, type=socket.SOCK_DGRAM)
        self._addresses[server] = list(dict.fromkeys(sockaddr for _, _, _, _, sockaddr in found))
        return self._addresses[server]

    async def _attempt(self, address: SockAddr) -> str | None:
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
        self._answer = self._loop.create_future()
        self._link = link = self._make_link(sock, session)
        try:
            link.start()
            welcome = await self._answer
            if welcome is not None:
                await self._serve(link, welcome)
        except DtunError as error:
            link.close("other", str(error))
        except Exception:
            log.exception("internal error, please report it")
            link.close("other", "internal error in the client")
        finally:
            self._link = None
            if not self._in_service(link):
                link.close("other", "the attempt was abandoned")
        return None if self._in_service(link) else self._failure(link)

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


def _engine(config: ClientConfig) -> ClientEngine:
    suites = [LEGACY_SUITE] if config.go else [by_name(name) for name in config.suites]
    return ClientEngine(config.id, config.psk.secret(), suites, native=not config.go)
