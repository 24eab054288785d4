"""How a client is let in, once it has proven its key: one login after the other.

    hello --> address pair, device --> subnets --> kernel --> data plane --> welcome

The session before is given up only then, so that knowing an id disturbs nobody.
"""

import asyncio
import hashlib
import logging
from ipaddress import ip_network

from dtun.config import ClientEntry, Key
from dtun.dtls.suites import LEGACY_SUITE
from dtun.errors import DtunError
from dtun.handover.saved_session import SavedSession
from dtun.pacing import RateLimiter
from dtun.protocol.messages import MAX_REFUSALS, Hello, Refusal, Renew, Welcome
from dtun.server.config_diff import keys_of
from dtun.server.grants import grant
from dtun.server.identities import Identities
from dtun.server.identity import Identity
from dtun.server.leases import PoolFullError
from dtun.session.link import Link
from dtun.session.log import about, remark
from dtun.session.session import Closed
from dtun.session.tasks import Tasks
from dtun.text import printable

log = logging.getLogger("dtun.server")

SHOWN_REFUSALS = 8
"""Refused subnets that the log names for one login."""

GRACE = 3.0
"""Seconds for which a session that its own client has replaced still receives what is under way."""

MAX_NEWCOMERS = 8
"""Sessions of one id that have proven the key but are not let in yet. Each costs a descriptor that others need, too."""


class Logins:
    """Lets clients in. `proven` tells with which key each session was made."""

    def __init__(self, identities: Identities, tasks: Tasks, loop: asyncio.AbstractEventLoop) -> None:
        self.proven: dict[Link, Key] = {}
        self._identities = identities
        self._tasks = tasks
        self._loop = loop
        self._refusals = RateLimiter(burst=10, per_seconds=60)
        self._newcomers: dict[Link, None] = {}  # the oldest first

    def established(self, link: Link) -> None:
        """Somebody with a key is there, who may only wait for so long and in such numbers."""
        self._newcomers[link] = None
        name = link.session.association.identity
        waiting = [other for other in self._newcomers if other.session.association.identity == name]
        if len(waiting) > MAX_NEWCOMERS:
            waiting[0].close("other", "this id makes too many sessions at once")
        if not link.session.association.native:
            self._tasks.spawn(self.admit(link, None))

    def gone(self, link: Link, closed: Closed) -> None:
        """A session is over, which may never have been let in."""
        self.proven.pop(link, None)
        if link in self._newcomers:
            del self._newcomers[link]
            if closed.reason in ("other", "timeout"):
                name = link.session.association.identity
                text = f"{name}: the session from {link.endpoint} came to nothing: {printable(closed.text)}"
                self._refused(logging.WARNING, text, link, closed.reason)

    def may_stay(self, link: Link, entry: ClientEntry) -> bool:
        """Whether this session was made with a key, and in a way, that this entry allows now."""
        legacy = link.session.association.suite is LEGACY_SUITE
        return self.proven.get(link) in keys_of(entry) and entry.go == legacy

    async def admit(self, link: Link, hello: Hello | None) -> None:
        """Let a client in, or tell it why not. An original one says hello only after it was told its address."""
        association = link.session.association
        if not association.native and association.suite is not LEGACY_SUITE:
            # With the suite of the original, the look-up of its key has seen to it that the entry allows it.
            link.close("other", "it does not speak dtun's protocol")
            return
        name = association.identity or ""
        try:
            async with self._identities.lock:
                if link.ended():
                    return
                entry = self._identities.config.entry(name)
                if entry is None or not self.may_stay(link, entry):
                    link.close("refused", "the server's configuration has changed meanwhile")
                    return
                known = name in self._identities.by_name
                identity = await self._identities.create(name)
                if not known:
                    await self._identities.forward()
                if hello is None:
                    link.send(Welcome(address=identity.pair.peer, peer=identity.pair.local))
                else:
                    await self._let_in(identity, link, hello)
        except PoolFullError:
            pool = self._identities.config.pool
            self._refused(logging.WARNING, f"{name}: refused, the address pool {pool} is full", link)
            link.close("refused", f"the server's address pool {pool} is full")
        except DtunError as error:
            self._refused(logging.ERROR, f"{name}: refused: {error}", link)
            link.close("refused", "the server cannot set up its side of the tunnel")
        except Exception:
            # A bug, which the log will tell. Nobody would ever serve this session.
            link.close("refused", "the server has failed")
            raise

    async def grant(self, identity: Identity, link: Link, hello: Hello, mtu: int) -> list[Refusal]:
        """Give a client what it asks for and may have, in the kernel and in the data plane. Returns what it may not.

        Raises:
            DtunError: the kernel refuses more than a route, or does not answer.
        """
        taken = await self._identities.taken(identity)
        if link.ended():
            return []
        # With a route to it through the tunnel, the tunnel's own packets would go round in circles.
        outside = ip_network(str(link.peer[0]).partition("%")[0])
        taken[outside] = "this client outside the tunnel"
        granted = grant(hello.subnets, identity.entry.grants, taken)
        installed, not_installed = await self._identities.put(identity, mtu, granted.granted)
        identity.mtu = mtu
        identity.grant(installed)
        return [*granted.refused, *not_installed]

    def agreed_mtu(self, identity: Identity, link: Link, hello: Hello) -> int:
        """The MTU of a client's tunnel, in bytes."""
        ipv6 = identity.pair.local6 is not None
        return link.agreed_mtu(self._identities.config.mtu, hello.mtu, ipv6=ipv6)

    async def resize(self, identity: Identity, link: Link, hello: Hello) -> None:
        """Have the device fit the path of this client's session.

        Raises:
            DtunError: the kernel refuses the size.
        """
        mtu = self.agreed_mtu(identity, link, hello)
        if mtu != identity.mtu:
            await self._identities.put(identity, mtu, identity.granted)
            text = "%s: the MTU is %d now, not %d"
            log.debug(text, identity.name, mtu, identity.mtu, extra=about(client=identity.name))
            identity.mtu = mtu

    async def _let_in(self, identity: Identity, link: Link, hello: Hello) -> None:
        config = self._identities.config
        if link.ended():
            return
        mtu = self.agreed_mtu(identity, link, hello)
        refusals = await self.grant(identity, link, hello, mtu)
        if refusals:
            shown = "; ".join(f"{refusal.subnet}: {refusal.reason}" for refusal in refusals[:SHOWN_REFUSALS])
            more = f"; and {len(refusals) - SHOWN_REFUSALS} more" if len(refusals) > SHOWN_REFUSALS else ""
            self._remark(identity, logging.WARNING, f"subnets refused: {shown}{more}", link, "refused")
        if link.ended():
            return
        if link.session.open:
            self._put_to_service(identity, link, hello)
            # What was found out about the path while the network was set up.
            await self.resize(identity, link, hello)
        pair, pushed = identity.pair, config.pushed(identity.entry)
        identity.pushed = pushed
        link.send(
            Welcome(
                address=pair.peer,
                peer=pair.local,
                address6=pair.peer6,
                peer6=pair.local6,
                mtu=config.mtu,
                keepalive=config.keepalive,
                timeout=config.timeout,
                refused=tuple(refusals[:MAX_REFUSALS]),
                features=tuple(sorted(identity.tun.offloads)),
                routes=pushed.routes,
                dns=pushed.dns,
                domains=pushed.domains,
            )
        )

    def _put_to_service(self, identity: Identity, link: Link, hello: Hello) -> None:
        """The moment at which an identity moves over to a new session."""
        self._newcomers.pop(link, None)
        instance = hello.instance or str(link.peer[0])
        if identity.duplicate_ids.login(instance, link.endpoint, self._loop.time()):
            log.warning(
                "%s: %s; give each host an id of its own",
                identity.name,
                identity.duplicate_ids.describe(),
                extra=about(client=identity.name, reason="replaced", peer=link.endpoint),
            )
        same_host = instance == identity.instance and hello.instance != ""
        news = identity.link is None
        identity.hello, identity.key = hello, self.proven.get(link)
        before = identity.serve(link, instance, hello.features)
        identity.session_store.keep_session(link, hello, server=True, **self._notes(identity))
        if before is not None and same_host:
            self._retire(identity, before)
        elif before is not None:
            before.close("replaced", f"another host has logged in with this id, from {link.endpoint}")
        if news or not same_host:
            subnets = ", ".join(map(str, identity.granted)) or "none"
            where = f"{identity.pair.peer} on {identity.tun.name}, subnets: {subnets}"
            text = f"connected from {link.endpoint}, {where}"
            self._remark(identity, logging.INFO, text, link, "connected")
            for warning in link.warnings:
                self._remark(identity, logging.WARNING, warning, link, "connected")
        self._tasks.spawn(identity.hooks.up(identity.hook_variables("connected")))

    async def resume(self, link: Link, saved: SavedSession) -> Identity | None:
        """Go on with a session of a process before this one. None if the configuration does not allow it any more.

        Raises:
            DtunError: its client cannot be served.
        """
        description = saved.description
        hello, name = description.greeting, description.identity
        entry = self._identities.config.entry(name)
        if entry is None or not isinstance(hello, Hello):
            return None
        key = next((key for key in keys_of(entry) if _mark(key) == description.notes.get("key")), None)
        if key is None:
            return None
        identity = await self._identities.create(name)
        self.proven[link] = key
        await self.grant(identity, link, hello, self.agreed_mtu(identity, link, hello))
        identity.hello, identity.key = hello, key
        identity.duplicate_ids.login(hello.instance or str(link.peer[0]), link.endpoint, self._loop.time())
        identity.hooks.resume()
        identity.serve(link, hello.instance or str(link.peer[0]), hello.features)
        identity.session_store.resume(saved, link)
        identity.pushed = self._identities.config.pushed(entry)
        if self._notes(identity) != description.notes:
            link.send(Renew())
        text = f"goes on with {link.endpoint} after the restart"
        self._remark(identity, logging.INFO, text, link, "resumed")
        return identity

    def _notes(self, identity: Identity) -> dict[str, str]:
        """What has to be the same after a restart, for the session to need nothing new."""
        pushed = identity.pushed or self._identities.config.pushed(identity.entry)
        told = f"{identity.pair} {pushed} {self._identities.config.mtu}"
        return {"key": _mark(identity.key), "told": hashlib.sha256(told.encode()).hexdigest()}

    def _retire(self, identity: Identity, before: Link) -> None:
        """Let a session receive for a while. Only one of each client, which might renew without end."""
        if identity.retiring is not None:
            identity.retiring.close("renewed", "", tell=False)
        identity.retiring = before
        self._loop.call_later(GRACE, lambda: before.close("renewed", "", tell=False))

    def _remark(self, identity: Identity, level: int, text: str, link: Link, reason: str) -> None:
        extra = about(client=identity.name, reason=reason, peer=link.endpoint)
        remark(identity.remarks, level, f"{identity.name}: {text}", self._loop.time(), extra)

    def _refused(self, level: int, text: str, link: Link, reason: str = "refused") -> None:
        extra = about(client=link.session.association.identity, reason=reason, peer=link.endpoint)
        remark(self._refusals, level, text, self._loop.time(), extra)


def _mark(key: Key | None) -> str:
    """Tells keys apart without being one."""
    return hashlib.sha256(b"dtun" + key.secret()).hexdigest() if key is not None else ""
