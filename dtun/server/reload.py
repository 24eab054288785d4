"""Brings a running server in line with its new configuration. Whom that does not concern does not notice.

It goes by what is there, not by what has changed: each identity, session and socket is looked at, and kept as it is if
the configuration still wants it so.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping

from dtun.config import ANY_ID, Endpoint, ServerConfig
from dtun.errors import DtunError
from dtun.network.state import Network
from dtun.protocol.messages import Hello, Renew
from dtun.server.demux import Demux
from dtun.server.identities import Identities
from dtun.server.identity import Identity
from dtun.server.leases import PoolFullError
from dtun.server.login import Logins
from dtun.server.psk import usable_keys
from dtun.session import udp
from dtun.session.link import Link

log = logging.getLogger("dtun.server")

Claim = tuple[Network, ...]

PATIENCE = 60.0
"""Seconds for a client to replace a session that must not stay: made with a former key, or at a former address."""


class ServerReload:
    """Follows configurations, one at a time."""

    def __init__(
        self, identities: Identities, logins: Logins, demux: Demux, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._identities = identities
        self._logins = logins
        self._demux = demux
        self._loop = loop

    async def apply(self, config: ServerConfig) -> list[str]:
        """Serve as `config` says from now on. Returns what did not work, in lines for a person."""
        identities = self._identities
        problems: list[str] = []
        async with identities.lock:
            before = identities.config
            identities.reconfigure(config)
            leaving = self._dismiss()
        # Without the lock: whoever logs in does not wait for the hooks of others.
        await asyncio.gather(*(self._remove(identity) for identity in leaving))
        async with identities.lock:
            problems += await self._move()
            problems += await self._create()
            renewing = self._look_at_sessions()
            problems += await self._forward(before)
            problems += await self._regrant(before)
            problems += self._listen(before, renewing)
            for link in renewing:
                link.send(Renew())
        return [f"error: {problem}" for problem in problems]

    def _dismiss(self) -> list[Identity]:
        """End the sessions of those who are clients no more, or get another device. Returns whose device goes."""
        config, identities = self._identities.config, self._identities
        for link in list(self._demux.links):
            if config.entry(link.session.association.identity or "") is None:
                link.close("refused", "the server's configuration has this id no more")
        leaving = []
        for name, identity in list(identities.by_name.items()):
            entry = config.entry(name)
            if entry is None:
                identities.leases.forget(name)
            elif entry.tun == identity.entry.tun:
                continue
            elif identity.link is not None:
                identity.link.close("other", "its device on the server is another now; come again")
            identities.dismiss(identity)
            leaving.append(identity)
        return leaving

    async def _remove(self, identity: Identity) -> None:
        await identity.run_down_hook("refused")
        await self._identities.remove(identity)

    async def _move(self) -> list[str]:
        """Give another address to whom the configuration gives one, or takes the present one from."""
        identities, problems = self._identities, []
        moving = []
        # First away with all: two may change places.
        for name, identity in list(identities.by_name.items()):
            if identities.leases.current(name) == identity.pair:
                continue
            if identity.link is not None:
                identity.link.close("other", "its address in the tunnel is another now; come again")
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

    def _look_at_sessions(self) -> set[Link]:
        """Tell the identities what holds for them now. Returns the sessions that are to be renewed for it."""
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
                link.close("other", "its entry is for another kind of dtun now")
            elif active.key not in usable:
                renewing.add(link)
                self._end_later(link, self._has_valid_key, "its key is not valid any more")
            elif active.pushed != identities.config.pushed(entry):
                renewing.add(link)
        return renewing

    async def _forward(self, before: ServerConfig) -> list[str]:
        """Switch forwarding and NAT on or off, and make room for the packets of new devices."""
        identities = self._identities
        problems = []
        if before.forwards != identities.config.forwards:
            for identity in list(identities.by_name.values()):
                problems += await self._apply(identity)
        try:
            await identities.forward()
        except DtunError as error:
            problems.append(f"forwarding: {error}")
        return problems

    async def _regrant(self, before: ServerConfig) -> list[str]:
        """Judge anew which subnets whom belong to: what one has lost, another may get."""
        claims = _claims(before), _claims(self._identities.config)
        if claims[0] == claims[1]:
            return []
        problems = []
        for _ in range(2):
            for identity in list(self._identities.by_name.values()):
                active = identity.active
                if active is None or not self._may_differ(identity, active.hello, claims[0]):
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
        """Whether another judgement is possible: its own claim has changed, or others' matter to it."""
        entry = identity.entry
        return (
            entry.any_private
            or set(identity.granted) != set(hello.subnets)
            or claimed.get(identity.name) != entry.subnets
        )

    def _listen(self, before: ServerConfig, renewing: set[Link]) -> list[str]:
        """Open and close listening sockets. If a new one cannot be had, the old ones stay: better than none."""
        config, demux = self._identities.config, self._demux
        problems: list[str] = []
        opened: list[Endpoint] = []
        for endpoint in config.listen:
            if endpoint in before.listen:
                continue
            try:
                # From 0.0.0.0 to one address of the same port, and the reverse: it is ours that is in the way.
                ours = any(endpoint.port == other.port for other in (*before.listen, *opened))
                demux.open(endpoint, udp.listen(str(endpoint.address), endpoint.port, shared=ours))
            except DtunError as error:
                problems.append(f"{error}; the present addresses are kept")
                continue
            opened.append(endpoint)
            log.info("listening on UDP %s", endpoint)
        if problems:
            update = {"listen": (*before.listen, *opened)}
            self._identities.reconfigure(config.model_copy(update=update))
            return problems
        for endpoint in before.listen:
            if endpoint not in config.listen:
                log.info("listening on UDP %s no more", endpoint)
                for link in demux.shut(endpoint):
                    renewing.add(link)
                    self._end_later(link, demux.is_open_for, "the server has left this address")
        return []

    async def _apply(self, identity: Identity) -> list[str]:
        await asyncio.sleep(0)  # there may be a thousand of them, and packets do not wait
        try:
            await self._identities.apply(identity, identity.mtu, identity.granted)
        except DtunError as error:
            return [f"client {identity.name}: {error}"]
        return []

    def _end_later(self, link: Link, may_stay: Callable[[Link], bool], text: str) -> None:
        """End this session when its time is over, unless it is in order by then."""

        def look() -> None:
            if not may_stay(link):
                link.close("other", text)

        self._loop.call_later(PATIENCE, look)

    def _has_valid_key(self, link: Link) -> bool:
        identity = self._identities.served_by(link)
        if identity is None or identity.active is None:
            return True  # not in service any more: it ends anyway
        return identity.active.key in usable_keys(identity.entry, link.session.association.suite)

    def _pool_is_full(self, name: str) -> str:
        return f"client {name}: the address pool {self._identities.config.pool} is full"


def _claims(config: ServerConfig) -> Mapping[str, Claim]:
    """The subnets that each client may ask for."""
    return {name: entry.subnets for name, entry in config.clients.items()}
