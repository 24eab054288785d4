"""Brings a running server in line with its new configuration. Whom that does not concern does not notice.

It goes by what is there, not by what has changed: each identity, session and socket is looked at, and kept as it is if
the configuration still wants it so.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping

from dtun.config import ANY_ID, Endpoint, ServerConfig
from dtun.dtls.suites import LEGACY_SUITE
from dtun.errors import DtunError
from dtun.network.state import Network
from dtun.protocol.messages import Renew
from dtun.tunnel import sockets
from dtun.tunnel.admission import Admission
from dtun.tunnel.frontdoor import FrontDoor
from dtun.tunnel.identity import Identity
from dtun.tunnel.leases import PoolFullError
from dtun.tunnel.link import Link
from dtun.tunnel.remarks import about
from dtun.tunnel.roster import Roster, fixed

log = logging.getLogger("dtun.server")

Claim = tuple[Network, ...]

PATIENCE = 60.0
"""Seconds for a client to replace a session that must not stay: made with a former key, or at a former address."""


class Reconciler:
    """Follows configurations, one at a time."""

    def __init__(
        self, roster: Roster, admission: Admission, door: FrontDoor, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._roster = roster
        self._admission = admission
        self._door = door
        self._loop = loop

    async def follow(self, config: ServerConfig) -> list[str]:
        """Serve as `config` says from now on. Returns what did not work, in lines for a person."""
        roster = self._roster
        problems: list[str] = []
        async with roster.lock:
            before, roster.config = roster.config, config
            roster.leases.fix(**fixed(config))
            leaving = self._dismiss()
        # Without the lock: whoever logs in does not wait for the hooks of others.
        await asyncio.gather(*(self._remove(identity) for identity in leaving))
        async with roster.lock:
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
        config, identities = self._roster.config, self._roster.identities
        for link in list(self._door.links):
            if config.entry(link.session.association.identity or "") is None:
                link.close("refused", "the server's configuration has this id no more")
        leaving = []
        for name, identity in list(identities.items()):
            entry = config.entry(name)
            if entry is None:
                self._roster.leases.forget(name)
            elif entry.tun == identity.entry.tun:
                continue
            elif identity.link is not None:
                identity.link.close("other", "its device on the server is another now; come again")
            del identities[name]
            leaving.append(identity)
        return leaving

    async def _remove(self, identity: Identity) -> None:
        await identity.hooks.down(identity.hook_variables("refused"))
        await self._roster.remove(identity)

    async def _move(self) -> list[str]:
        """Give another address to whom the configuration gives one, or takes the present one from."""
        roster, problems = self._roster, []
        moving = []
        # First away with all: two may change places.
        for name, identity in list(roster.identities.items()):
            if roster.leases.current(name) == identity.pair:
                continue
            if identity.link is not None:
                identity.link.close("other", "its address in the tunnel is another now; come again")
            del roster.identities[name]
            await roster.withdraw(identity)
            moving.append(identity)
        for identity in moving:
            try:
                identity.pair = roster.leases.pair(identity.name, roster.is_used)
            except PoolFullError:
                problems.append(self._pool_is_full(identity.name))
                await roster.remove(identity)
                continue
            await roster.evict(identity.pair.peer)
            roster.identities[identity.name] = identity
            identity.grant(())
            problems += await self._put(identity)
        return problems

    async def _create(self) -> list[str]:
        """Make the devices of new clients."""
        problems = []
        for name in self._roster.config.clients:
            if name == ANY_ID:
                continue
            await asyncio.sleep(0)
            try:
                await self._roster.create(name)
            except PoolFullError:
                problems.append(self._pool_is_full(name))
            except DtunError as error:
                problems.append(f"client {name}: {error}")
        return problems

    def _look_at_sessions(self) -> set[Link]:
        """Tell the identities what holds for them now. Returns the sessions that are to be renewed for it."""
        roster = self._roster
        renewing = set()
        for name, identity in roster.identities.items():
            entry = roster.config.entry(name) or identity.entry
            identity.entry = entry
            identity.hooks.change(*roster.hooks_of(entry))
            link = identity.link
            if link is None:
                continue
            if entry.go != (link.session.association.suite is LEGACY_SUITE):
                link.close("other", "its entry is for another kind of dtun now")
            elif not self._admission.may_stay(link, entry):
                renewing.add(link)
                self._end_later(link, self._has_valid_key, "it was made with a key that is valid no more")
            elif identity.pushed != roster.config.pushed(entry):
                renewing.add(link)
        return renewing

    async def _forward(self, before: ServerConfig) -> list[str]:
        """Switch forwarding and NAT on or off, and make room for the packets of new devices."""
        roster = self._roster
        problems = []
        if before.forwards != roster.config.forwards:
            for identity in list(roster.identities.values()):
                problems += await self._put(identity)
        try:
            await roster.forward()
        except DtunError as error:
            problems.append(f"forwarding: {error}")
        return problems

    async def _regrant(self, before: ServerConfig) -> list[str]:
        """Judge anew which subnets whom belong to: what one has lost, another may get."""
        claims = _claims(before), _claims(self._roster.config)
        if claims[0] == claims[1]:
            return []
        problems = []
        for _ in range(2):
            for identity in list(self._roster.identities.values()):
                link, hello = identity.link, identity.hello
                if link is None or hello is None or not self._may_differ(identity, claims[0]):
                    continue
                had = identity.granted
                await asyncio.sleep(0)
                try:
                    await self._admission.grant(identity, link, hello, identity.mtu)
                except DtunError as error:
                    problems.append(f"client {identity.name}: {error}")
                if identity.granted != had:
                    subnets = ", ".join(map(str, identity.granted)) or "none"
                    extra = about(client=identity.name)
                    log.info("%s: its subnets are now: %s", identity.name, subnets, extra=extra)
        return problems

    def _may_differ(self, identity: Identity, claimed: Mapping[str, Claim]) -> bool:
        """Whether another judgement is possible: its own claim has changed, or others' matter to it."""
        entry = identity.entry
        asked = set(identity.hello.subnets) if identity.hello else set()
        return (
            entry.any_private or set(identity.granted) != asked or claimed.get(identity.name) != entry.subnets
        )

    def _listen(self, before: ServerConfig, renewing: set[Link]) -> list[str]:
        """Open and close listening sockets. If a new one cannot be had, the old ones stay: better than none."""
        config, door = self._roster.config, self._door
        problems: list[str] = []
        opened: list[Endpoint] = []
        for endpoint in config.listen:
            if endpoint in before.listen:
                continue
            try:
                # From 0.0.0.0 to one address of the same port, and the reverse: it is ours that is in the way.
                ours = any(endpoint.port == other.port for other in (*before.listen, *opened))
                door.open(endpoint, sockets.listen(str(endpoint.address), endpoint.port, shared=ours))
            except DtunError as error:
                problems.append(f"{error}; the present addresses are kept")
                continue
            opened.append(endpoint)
            log.info("listening on UDP %s", endpoint)
        if problems:
            update = {"listen": (*before.listen, *opened)}
            self._roster.config = config.model_copy(update=update)
            return problems
        for endpoint in before.listen:
            if endpoint not in config.listen:
                log.info("listening on UDP %s no more", endpoint)
                for link in door.shut(endpoint):
                    renewing.add(link)
                    self._end_later(link, door.is_open_for, "the server has left this address")
        return []

    async def _put(self, identity: Identity) -> list[str]:
        await asyncio.sleep(0)  # there may be a thousand of them, and packets do not wait
        try:
            await self._roster.put(identity, identity.mtu, identity.granted)
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
        entry = self._roster.config.entry(link.session.association.identity or "")
        return entry is not None and self._admission.may_stay(link, entry)

    def _pool_is_full(self, name: str) -> str:
        return f"client {name}: the address pool {self._roster.config.pool} is full"


def _claims(config: ServerConfig) -> Mapping[str, Claim]:
    """The subnets that each client may ask for."""
    return {name: entry.subnets for name, entry in config.clients.items()}
