"""How a client finds a server: each address of each server, in order, until one welcomes it."""

import asyncio
import errno
import socket
from collections.abc import Callable

from dtun.client.tunnel import Tunnel
from dtun.config import ClientConfig, ServerName
from dtun.dtls.engine import ClientEngine
from dtun.dtls.suites import LEGACY_SUITE, by_name
from dtun.errors import UnavailableError
from dtun.session import udp
from dtun.session.dialect import Count, Dialect, NativeDialect
from dtun.session.go import GoClientDialect
from dtun.session.link import Link
from dtun.session.session import AnyAssociation, Closed, Session
from dtun.session.udp import SockAddr
from dtun.text import printable

ATTEMPT_TIME = 5.0
"""Seconds for one address of one server, until the handshake is over."""

RESOLVE_TIME = 10.0
"""Seconds for the name of a server."""

KEEPALIVE, TIMEOUT = 10.0, 30.0
"""Until the server has pushed its own."""

Outcome = asyncio.Future[str | None]
"""Why an attempt has failed; None once its session is in service."""


class Dialer:
    """Makes one session at a time. `make_link` gives it its events, `in_service` tells whether it has come to stay."""

    def __init__(
        self,
        config: ClientConfig,
        end: Tunnel,
        make_link: Callable[[socket.socket, Session, Outcome], Link],
        in_service: Callable[[Link], bool],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._config = config
        self._engine = _engine(config)
        self._tunnel = end
        self._make_link = make_link
        self._in_service = in_service
        self._loop = loop
        self._known: dict[ServerName, list[SockAddr]] = {}

    def go_on_with(self, config: ClientConfig) -> None:
        """Another configuration, for the next attempt."""
        self._config = config
        self._engine = _engine(config)

    async def connect(self) -> str | None:
        """Try every address of every server, in order, until one welcomes us; returns why none did."""
        reasons: list[str] = []
        for server in self._config.servers:
            try:
                addresses = await self._resolve(server)
            except (OSError, TimeoutError) as error:
                reasons.append(f"{server.host}: cannot resolve the name: {words_for(error)}")
                # Name servers may be behind the tunnel that is to be made.
                addresses = self._known.get(server, [])
            for address in addresses:
                failure = await self._attempt(address)
                if failure is None:
                    return None
                reasons.append(f"{udp.show(address)}: {failure}")
        return "; ".join(reasons)

    def explain(self, link: Link, closed: Closed) -> str:
        """Why an attempt has failed, and what to do where that can be guessed."""
        text = printable(closed.text)
        # An original Go dtun has one suite, which is none of ours, so that it does not even say hello.
        if closed.reason == "handshake" and not link.session.association.answered and not self._config.go:
            return f"{text} (if that is an original Go dtun, set `compat: go`)"
        return text

    async def _resolve(self, server: ServerName) -> list[SockAddr]:
        async with asyncio.timeout(RESOLVE_TIME):
            found = await self._loop.getaddrinfo(server.host, server.port, type=socket.SOCK_DGRAM)
        self._known[server] = list(dict.fromkeys(sockaddr for _, _, _, _, sockaddr in found))
        return self._known[server]

    async def _attempt(self, address: SockAddr) -> str | None:
        """Make a session with the server at this address; returns why not, or None if it is in service now."""
        mark = self._config.mark if self._config.routing == "policy" else None
        try:
            if not await self._tunnel.make_way(address):
                return "no route to host"
            sock = udp.connect(address, mark)
        except UnavailableError as error:
            return str(error)
        except OSError as error:
            return words_for(error)
        outcome: Outcome = self._loop.create_future()
        now = self._loop.time()
        session = Session(
            self._engine.associate(now), self._dialect, now, handshake_deadline=now + ATTEMPT_TIME
        )
        link = self._make_link(sock, session, outcome)
        link.start()
        try:
            return await outcome
        finally:
            if not self._in_service(link):
                link.close("other", "the attempt was given up")

    def _dialect(self, association: AnyAssociation, count: Count, now: float) -> Dialect:
        if association.native or not self._config.go:
            return NativeDialect(count, KEEPALIVE, TIMEOUT, now)
        return GoClientDialect(count)


def words_for(error: BaseException) -> str:
    """What a failed system call means to a person."""
    match error:
        case TimeoutError():
            return "no answer in time"
        case OSError(errno=errno.ECONNREFUSED):
            return "nobody listens there"
        case OSError(strerror=str(text)):
            return text.lower()
    return str(error)


def _engine(config: ClientConfig) -> ClientEngine:
    suites = [LEGACY_SUITE] if config.go else [by_name(name) for name in config.suites]
    return ClientEngine(config.id, config.psk.secret(), suites, native=not config.go)
