"""Applies another configuration to a running server. Clients that it does not concern are not disturbed.

It checks what is there, not what has changed in the configuration: each identity, session and socket is kept if the new
configuration still allows it.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping

from dtun.config import ANY_ID, Endpoint, ServerConfig
from dtun.errors import DtunError
from dtun.network.state import Network
from dtun.protocol.messages import Hello, Renew
from dtun.server.demux import NOT_LISTENING, Demux
from dtun.server.identities import Identities
from dtun.server.identity import Identity
from dtun.server.leases import PoolFullError
from dtun.server.listeners import endpoints
from dtun.server.login import Logins
from dtun.server.psk import usable_keys
from dtun.session import udp
from dtun.session.link import Link

log = logging.getLogger("dtun.server")

Claim = tuple[Network, ...]
"""The subnets that a client may ask for."""

RENEWAL_TIME = 60.0
"""Seconds that a client has to replace a session that must not stay: made with a former key, or at a former address."""


class ServerReload:
    """Applies configurations, one at a time."""

    def __init__(
        self, identities: Identities, logins: Logins, demux: Demux, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._identities = identities
        self._logins = logins
        self._demux = demux
        self._loop = loop
        self._incomplete = False

    @property
    def incomplete(self) -> bool:
        """Whether something of the present configuration is not in place, so that `apply` has to apply all of it."""
        return self._incomplete or bool(self._identities.forwarding.rejections)

    async def apply(self, config: ServerConfig) -> list[str]:
        """Serve as `config` says from now on. Returns what did not work, as lines for a person.

        Raises:
            UnavailableError: a port is taken, or this host does not have an address. Nothing has changed.
            PermissionDeniedError: this process may not use ports below 1024. Nothing has changed.
        """
        identities = self._identities
        problems: list[str] = []
        async with identities.lock:
            before, everything = identities.config, self.incomplete
            self._listen(config)
            self._incomplete = True
            identities.reconfigure(config)
            leaving = self._dismiss()
        # Without the lock: logins need not wait for these hooks.
        await asyncio.gather(*(self._remove(identity) for identity in leaving))
        async with identities.lock:
            problems += await self._readdress()
            problems += await self._create()
            renewing = self._reconfigure()
            problems += await self._forward(before, everything=everything)
            problems += await self._regrant({} if everything else _claims(before))
            self._stop_listening(before, renewing)
            for link in renewing:
                link.send(Renew())
        self._incomplete = bool(problems)
        return [f"error: {problem}" for problem in problems]

    def check(self, config: ServerConfig) -> None:
        """Whether `apply` could listen there.

        Raises:
            UnavailableError: a port is taken, or this host does not have an address.
            PermissionDeniedError: this process may not use ports below 1024.
        """
        for endpoint in config.listen:
            if not self._demux.has_port(endpoint.port):
                udp.listen(str(endpoint.address), endpoint.port).close()

    def _dismiss(self) -> list[Identity]:
        """End the sessions of former clients, and of those that get another device. Returns them, to be removed."""
        config, identities = self._identities.config, self._identities
        for link in list(self._demux.links):
            if config.entry(link.session.association.identity or "") is None:
                link.close("refused", "the server's configuration does not have this id any more")
        leaving = []
        for name, identity in list(identities.by_name.items()):
            entry = config.entry(name)
            if entry is None:
                identities.leases.forget(name)
            elif entry.tun == identity.entry.tun:
                continue
            elif identity.link is not None:
                identity.link.close("other", "its device on the server has changed; reconnect")
            identities.dismiss(identity)
            leaving.append(identity)
        return leaving

    async def _remove(self, identity: Identity) -> None:
        await identity.run_down_hook("refused")
        await self._identities.remove(identity)

    async def _readdress(self) -> list[str]:
        """Give clients the addresses that the configuration demands."""
        identities, problems = self._identities, []
        moving = []
        # All are detached first: two clients may swap their addresses.
        for name, identity in list(identities.by_name.items()):
            if identities.leases.current(name) == identity.pair:
                continue
            if identity.link is not None:
                identity.link.close("other", "its address in the tunnel has changed; reconnect")
            await identities.detach(identity)
            moving.append(identity)
        for identity in moving:
            await asyncio.sleep(0)
            try:
                await identities.readdress(identity)
            except PoolFullError:
                problems.append(self._pool_is_full(identity.name))
                await identities.remove(identity)
            except DtunError as error:
                problems.append(f"client {identity.name}: {error}")
        return problems

    async def _create(self) -> list[str]:
        """Make the devices of new clients."""
        problems = []
        for name in self._identities.config.clients:
            if name == ANY_ID:
                continue
            await asyncio.sleep(0)
            try:
                await self._identities.create(name)
            except PoolFullError:
                problems.append(self._pool_is_full(name))
            except DtunError as error:
                problems.append(f"client {name}: {error}")
        return problems

    def _reconfigure(self) -> set[Link]:
        """Update the entries of all identities. Returns the sessions that have to be renewed because of that."""
        identities = self._identities
        renewing = set()
        for identity in identities.by_name.values():
            identities.reconfigure_identity(identity)
            active, entry = identity.active, identity.entry
            if active is None:
                continue
            link = active.link
            usable = usable_keys(entry, link.session.association.suite)
            if not usable:
                link.close("other", "`compat` of its entry has changed on the server")
            elif active.key not in usable:
                renewing.add(link)
                self._end_later(link, self._has_valid_key, "its key is not valid any more")
            elif active.pushed != identities.config.pushed(entry):
                renewing.add(link)
        return renewing

    async def _forward(self, before: ServerConfig, *, everything: bool) -> list[str]:
        """Switch forwarding and NAT on or off, and update them for new devices."""
        identities = self._identities
        problems = []
        if everything or before.forwards != identities.config.forwards:
            for identity in list(identities.by_name.values()):
                problems += await self._apply(identity)
        try:
            await identities.forward()
        except DtunError as error:
            problems.append(f"forwarding: {error}")
        return problems

    async def _regrant(self, before: Mapping[str, Claim]) -> list[str]:
        """Grant subnets anew: one client may get what another has lost, so in two rounds."""
        if before == _claims(self._identities.config):
            return []
        problems = []
        for _ in range(2):
            for identity in list(self._identities.by_name.values()):
                active = identity.active
                if active is None or not self._may_differ(identity, active.hello, before):
                    continue
                had = identity.granted
                await asyncio.sleep(0)
                try:
                    await self._logins.grant(identity, active.link, active.hello, identity.mtu)
                except DtunError as error:
                    problems.append(f"client {identity.name}: {error}")
                if identity.granted != had:
                    identity.log.info("its subnets are now: %s", identity.shown_subnets)
        return problems

    def _may_differ(self, identity: Identity, hello: Hello, claimed: Mapping[str, Claim]) -> bool:
        """Whether its grants may change: its own claim has changed, or depends on those of other clients."""
        entry = identity.entry
        return (
            entry.any_private
            or set(identity.granted) != set(hello.subnets)
            or claimed.get(identity.name) != entry.subnets
        )

    def _listen(self, config: ServerConfig) -> None:
        """Open the new listening sockets: all of them, or none."""
        demux, opened = self._demux, list[Endpoint]()
        for endpoint in endpoints(config):
            if demux.listens_on(endpoint):
                continue
            try:
                # The port may be taken by this server itself: from 0.0.0.0 to one address or the reverse, or by
                # sessions that were made there before an earlier change.
                shared = demux.has_port(endpoint.port)
                demux.open(endpoint, udp.listen(str(endpoint.address), endpoint.port, shared=shared))
            except DtunError:
                for other in opened:
                    demux.close_endpoint(other)
                raise
            opened.append(endpoint)
        for endpoint in opened:
            log.info("listening on UDP %s", endpoint)

    def _stop_listening(self, before: ServerConfig, renewing: set[Link]) -> None:
        """Close the listening sockets that are not wanted any more; sessions that were made there are renewed."""
        for endpoint in before.listen:
            if endpoint not in self._identities.config.listen and self._demux.listens_on(endpoint):
                log.info("stopped listening on UDP %s", endpoint)
                for link in self._demux.close_endpoint(endpoint):
                    renewing.add(link)
                    self._end_later(link, self._demux.is_open_for, NOT_LISTENING)

    async def _apply(self, identity: Identity) -> list[str]:
        await asyncio.sleep(0)  # there may be a thousand clients: let packets through in between
        try:
            await self._identities.apply(identity, identity.mtu, identity.granted)
        except DtunError as error:
            return [f"client {identity.name}: {error}"]
        return []

    def _end_later(self, link: Link, may_stay: Callable[[Link], bool], text: str) -> None:
        """End this session after RENEWAL_TIME, unless it may stay then."""

        def end() -> None:
            if not may_stay(link):
                link.close("other", text)

        self._loop.call_later(RENEWAL_TIME, end)

    def _has_valid_key(self, link: Link) -> bool:
        identity = self._identities.served_by(link)
        if identity is None or identity.active is None:
            return True  # replaced: it ends anyway
        return identity.active.key in usable_keys(identity.entry, link.session.association.suite)

    def _pool_is_full(self, name: str) -> str:
        return f"client {name}: the address pool {self._identities.config.pool} is full"


def _claims(config: ServerConfig) -> Mapping[str, Claim]:
    """The subnets that each client may ask for."""
    return {name: entry.subnets for name, entry in config.clients.items()}
