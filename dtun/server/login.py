"""How clients log in, once they have proven their key, and what happens when their sessions end. One login at a time:

    Hello --> address pair, device --> subnets --> kernel --> data plane --> Welcome

Only then is the previous session given up, so nobody can disturb a client merely by knowing its id.
"""

import asyncio
import hashlib
import logging
from collections.abc import Mapping
from ipaddress import ip_network

from dtun.config import Key, Pushed
from dtun.dtls.suites import LEGACY_SUITE
from dtun.errors import DtunError
from dtun.handover.saved_session import SavedSession
from dtun.pacing import RateLimiter
from dtun.protocol.messages import MAX_REFUSALS, Hello, Refusal, Renew, Welcome
from dtun.server.config_diff import keys_of
from dtun.server.grants import grant
from dtun.server.identities import Identities
from dtun.server.identity import ActiveSession, Identity
from dtun.server.leases import PoolFullError
from dtun.server.psk import usable_keys
from dtun.session.link import Link
from dtun.session.log import SessionLog
from dtun.session.session import Closed
from dtun.session.tasks import Tasks
from dtun.text import printable

SHOWN_REFUSALS = 8
"""Refused subnets that the log names for one login."""

MAX_WAITING = 8
"""Sessions of one id that have proven the key but have not logged in yet. Each costs a descriptor."""

IDLE_CHECK = 60.0
"""Seconds between two looks for idle devices."""


class Logins:
    """Lets clients in, and notes when they leave."""

    def __init__(self, identities: Identities, tasks: Tasks, loop: asyncio.AbstractEventLoop) -> None:
        self._identities = identities
        self._tasks = tasks
        self._loop = loop
        limiter = RateLimiter(burst=10, per_seconds=60)
        self._log = SessionLog(logging.getLogger("dtun.server"), limiter=limiter, clock=loop.time)
        self._idle_timer: asyncio.TimerHandle | None = None
        # Sessions that have not logged in yet, each with the key that its client has proven; the oldest first.
        self._waiting: dict[Link, Key] = {}

    def add(self, link: Link, key: Key) -> None:
        """A client has proven this key. Its session may wait for a limited time, and so may only a few of each id."""
        self._waiting[link] = key
        name = link.session.association.identity
        waiting = [other for other in self._waiting if other.session.association.identity == name]
        if len(waiting) > MAX_WAITING:
            waiting[0].close("other", "too many sessions with this id at once")
        if not link.session.association.native:
            self._tasks.spawn(self.admit(link, None))

    def closed(self, link: Link, closed: Closed) -> None:
        """A session is over, whether it had logged in or not."""
        if self._waiting.pop(link, None) is not None and closed.reason in ("other", "timeout"):
            text = f"the session from {link.endpoint} ended before its login: {printable(closed.text)}"
            self._note_failure(link, text)
            self._log_refusal(logging.WARNING, link, text, closed.reason)
        identity = self._identities.served_by(link)
        if identity is not None:
            identity.ended(closed)
            self._left(identity, link, closed)

    async def admit(self, link: Link, hello: Hello | None) -> None:
        """Let a client in, or tell it why not.

        An original Go dtun first wants to know its address: without a `hello`, it is told.
        """
        association = link.session.association
        if not association.native and association.suite is not LEGACY_SUITE:
            # With the suite of the original, the look-up of its key has seen to it that the entry allows it.
            link.close("other", "the client does not speak dtun's protocol")
            return
        name = association.identity or ""
        try:
            async with self._identities.lock:
                key = self._waiting.get(link)
                if key is None:  # ended meanwhile
                    return
                entry = self._identities.config.entry(name)
                if entry is None or key not in usable_keys(entry, association.suite):
                    link.close("refused", "the server's configuration has changed meanwhile")
                    return
                known = name in self._identities.by_name
                identity = await self._identities.create(name)
                if not known:
                    await self._identities.forward()
                    await self._remove_idle()
                if link.ended():
                    return
                if hello is None:
                    link.send(Welcome(address=identity.pair.peer, peer=identity.pair.local))
                else:
                    await self._let_in(identity, link, hello, key)
        except PoolFullError:
            pool = self._identities.config.pool
            self._note_failure(link, f"refused, the address pool {pool} is full")
            self._log_refusal(logging.WARNING, link, f"refused, the address pool {pool} is full")
            link.close("refused", f"the server's address pool {pool} is full")
        except DtunError as error:
            self._note_failure(link, f"refused: {error}")
            self._log_refusal(logging.ERROR, link, f"refused: {error}")
            link.close("refused", "the server cannot set up its side of the tunnel")
        except Exception:
            # A bug, which the log will tell. This session would wait for ever.
            link.close("refused", "the server has failed")
            raise

    def stop(self) -> None:
        """No further logins will come."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()

    async def _remove_idle(self) -> None:
        """With the lock: remove what is idle, and look again if there may be more later."""
        if await self._identities.remove_idle() and self._idle_timer is None:
            self._idle_timer = self._loop.call_later(IDLE_CHECK, self._check_idle)

    def _check_idle(self) -> None:
        async def check() -> None:
            async with self._identities.lock:
                await self._remove_idle()

        self._idle_timer = None
        self._tasks.spawn(check())

    async def grant(self, identity: Identity, link: Link, hello: Hello, mtu: int) -> list[Refusal]:
        """Give a client the subnets that it asks for and may have, in kernel and data plane. Returns the others.

        Raises:
            DtunError: the kernel refuses more than a route, or does not answer.
        """
        taken = await self._identities.taken(identity, hello.subnets)
        routed = await self._identities.routed(identity) if hello.subnets else {}
        if link.ended():
            return []
        # With a route to it through the tunnel, the tunnel's own packets would loop.
        outside = ip_network(str(link.peer[0]).partition("%")[0])
        taken[outside] = "this client outside the tunnel"
        entry = identity.entry
        granted = grant(hello.subnets, entry.grants, taken, routed, entry.named_subnets)
        refused = await self._identities.apply(identity, mtu, granted.granted)
        return [*granted.refused, *refused]

    async def resize(self, link: Link) -> None:
        """Fit the device of a client to the path of this session, if it serves."""
        async with self._identities.lock:
            identity = self._identities.served_by(link)
            if identity is None or identity.active is None:
                return
            try:
                await self._resize(identity, link, identity.active.hello)
            except DtunError as error:
                identity.log.log(logging.ERROR, "%s", error, peer=link.endpoint)

    async def resume(self, link: Link, saved: SavedSession) -> bool:
        """Resume a session of the process before this one. False if it has ended or is not allowed any more.

        Raises:
            PoolFullError: there is no address for its client.
            DtunError: its client cannot be served.
        """
        description = saved.description
        hello, name = description.greeting, description.identity
        entry = self._identities.config.entry(name)
        if entry is None or not isinstance(hello, Hello):
            return False
        key = next((key for key in keys_of(entry) if _fingerprint(key) == description.notes.get("key")), None)
        if key is None:
            return False
        identity = await self._identities.create(name)
        await self.grant(identity, link, hello, self._agreed_mtu(identity, link, hello))
        closed = link.session.closed
        if closed is not None:
            identity.ended_before_resume(link, closed)
            self._left(identity, link, closed)
            return False
        pushed = self._identities.config.pushed(entry)
        identity.resume(ActiveSession(link, hello, key, pushed), saved)
        if self._notes(identity, key, pushed) != description.notes:
            link.send(Renew())
        peer = link.endpoint
        text = "resumed the session with %s after the restart"
        identity.log.info(text, peer, reason="resumed", peer=peer)
        return True

    async def _let_in(self, identity: Identity, link: Link, hello: Hello, key: Key) -> None:
        config = self._identities.config
        refusals = await self.grant(identity, link, hello, self._agreed_mtu(identity, link, hello))
        identity.note_refusals(refusals)
        if refusals:
            shown = "; ".join(f"{refusal.subnet}: {refusal.reason}" for refusal in refusals[:SHOWN_REFUSALS])
            more = f"; and {len(refusals) - SHOWN_REFUSALS} more" if len(refusals) > SHOWN_REFUSALS else ""
            peer = link.endpoint
            identity.log.warning("subnets refused: %s%s", shown, more, reason="refused", peer=peer)
        if link.ended():
            return
        pair, pushed = identity.pair, config.pushed(identity.entry)
        if link.session.open:
            self._activate(identity, ActiveSession(link, hello, key, pushed))
            # What was found out about the path while the network was set up.
            await self._resize(identity, link, hello)
        link.send(
            Welcome(
                address=pair.peer,
                peer=pair.local,
                address6=pair.peer6 if identity.carries_ipv6 else None,
                peer6=pair.local6 if identity.carries_ipv6 else None,
                mtu=config.mtu,
                keepalive=config.keepalive,
                timeout=config.timeout,
                refused=tuple(refusals[:MAX_REFUSALS]),
                features=tuple(sorted(identity.tun.offloads)),
                routes=pushed.routes,
                dns=pushed.dns,
                domains=pushed.domains,
                forwards=config.forwards or self._identities.forwarding.by_host,
            )
        )

    def _activate(self, identity: Identity, session: ActiveSession) -> None:
        """Move an identity over to a new session."""
        link, before = session.link, identity.active
        del self._waiting[link]
        identity.serve(session, self._notes(identity, session.key, session.pushed))
        if before is None or not session.is_of_same_process(before):
            peer = link.endpoint
            where = f"{identity.pair.peer} on {identity.tun.name}, subnets: {identity.shown_subnets}"
            identity.log.info("connected from %s, %s", peer, where, reason="connected", peer=peer)
            for warning in link.warnings:
                identity.log.warning("%s", warning, reason="connected", peer=peer)
        self._tasks.spawn(identity.run_up_hook())

    def _left(self, identity: Identity, link: Link, closed: Closed) -> None:
        self._identities.leases.used(identity.name)
        cause = "the client closed the session: " if closed.by_peer else ""
        text = printable(closed.text)
        identity.log.info("away, %s%s", cause, text, reason=closed.reason, peer=link.endpoint)
        self._tasks.spawn(identity.run_down_hook(closed.reason))
        if self._idle_timer is None and identity.name not in self._identities.config.clients:
            self._idle_timer = self._loop.call_later(IDLE_CHECK, self._check_idle)

    async def _resize(self, identity: Identity, link: Link, hello: Hello) -> None:
        before, mtu = identity.mtu, self._agreed_mtu(identity, link, hello)
        if mtu != before:
            await self._identities.apply(identity, mtu, identity.granted)
            identity.log.debug("the MTU is %d now, not %d", mtu, before)

    def _agreed_mtu(self, identity: Identity, link: Link, hello: Hello) -> int:
        """The MTU of a client's tunnel, in bytes."""
        ipv6 = identity.pair.local6 is not None
        return link.agree_mtu(self._identities.config.mtu, hello.mtu, ipv6=ipv6)

    def _notes(self, identity: Identity, key: Key, pushed: Pushed) -> Mapping[str, str]:
        """What has to be the same after a restart, if the client is not to make a new session."""
        told = f"{identity.pair} {pushed} {self._identities.config.mtu}"
        return {"key": _fingerprint(key), "told": hashlib.sha256(told.encode()).hexdigest()}

    def _note_failure(self, link: Link, reason: str) -> None:
        identity = self._identities.by_name.get(link.session.association.identity or "")
        if identity is not None:
            identity.failed(reason)

    def _log_refusal(self, level: int, link: Link, text: str, reason: str = "refused") -> None:
        name = link.session.association.identity
        self._log.log(level, "%s: %s", name, text, client=name, reason=reason, peer=link.endpoint)


def _fingerprint(key: Key) -> str:
    """Tells keys apart without being one."""
    return hashlib.sha256(b"dtun" + key.secret()).hexdigest()
