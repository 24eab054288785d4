"""The server: identities that stay, sessions that come and go, and what that means for the network.

A client that has proven its key says hello; then, one client after the other: address pair, device, subnets,
kernel, data plane, welcome. The session before is given up only then, so that knowing an id disturbs nobody.
"""

import asyncio
import logging
import socket
from ipaddress import ip_network

from dtun.config import ANY_ID, ServerConfig
from dtun.dtls.association import Association
from dtun.dtls.engine import ServerEngine
from dtun.dtls.listener import Failed, Listener
from dtun.dtls.suites import LEGACY_SUITE, Suite, by_name
from dtun.errors import DtunError, UnavailableError
from dtun.network.state import Network
from dtun.platform.interface import Kernel
from dtun.protocol.messages import MAX_REFUSALS, Hello, Refusal, Renew, Welcome
from dtun.tunnel import sockets
from dtun.tunnel.dialect import Count, Dialect, GoServerDialect, NativeDialect
from dtun.tunnel.frontdoor import FrontDoor
from dtun.tunnel.grants import grant
from dtun.tunnel.hooks import RunHook, UpDown
from dtun.tunnel.identity import Identity
from dtun.tunnel.leases import Leases, PoolFullError
from dtun.tunnel.limiter import Limiter
from dtun.tunnel.link import Link
from dtun.tunnel.naming import device_name
from dtun.tunnel.session import Closed, Established, Event, Received, Session, WornOut
from dtun.tunnel.status import iso
from dtun.tunnel.tasks import Tasks
from dtun.tunnel.text import harmless
from dtun.tunnel.wishes import Wishes

log = logging.getLogger("dtun.server")

SHOWN_REFUSALS = 8
"""Refused subnets that the log names for one login."""

GRACE = 3.0
"""Seconds for which a session that its own client has replaced still receives what is under way."""

MAX_NEWCOMERS = 8
"""Sessions of one id that have proven the key but are not let in yet. Each costs a descriptor that others need, too."""


class Server:
    """Serves the clients of one configuration until it is stopped."""

    def __init__(
        self, config: ServerConfig, kernel: Kernel, run_hook: RunHook, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._config = config
        self._kernel = kernel
        self._run_hook = run_hook
        self._loop = loop
        self._wishes = Wishes(kernel)
        self._identities: dict[str, Identity] = {}
        # One login at a time: it must see which subnets the one before got, and nobody may take away the address
        # of a client that is just being let in.
        self._admitting = asyncio.Lock()
        self._tasks = Tasks(loop)
        self._failures = Limiter(burst=10, per_seconds=60)
        self._refusals = Limiter(burst=10, per_seconds=60)
        self._newcomers: dict[Link, None] = {}  # the oldest first
        self._stopping = False
        fixed = {name: entry.address for name, entry in config.clients.items() if entry.address}
        fixed6 = {name: entry.address6 for name, entry in config.clients.items() if entry.address6}
        self._leases = Leases(
            config.pool, config.pool6, fixed=fixed, fixed6=fixed6, path=config.state_directory / "leases.json"
        )
        suites = [by_name(name) for name in config.suites]
        if any(entry.go for entry in config.clients.values()):
            suites.append(LEGACY_SUITE)
        self._door = FrontDoor(
            Listener(ServerEngine(self._key, suites)),
            welcome=self._new_link,
            failed=self._handshake_failed,
            loop=loop,
        )

    async def start(self) -> None:
        """Make the devices of the configured clients and listen.

        Raises:
            DtunError: something that this needs is missing, taken or not allowed; `stop` still is to be called.
        """
        for name in self._config.clients:
            if name != ANY_ID:
                await self._create(name)
        for endpoint in self._config.listen:
            self._door.open(sockets.listen(str(endpoint.address), endpoint.port))
            log.info("listening on UDP %s", endpoint)

    async def run(self) -> None:
        """Everything happens in the event loop; there is nothing to do but to be there."""
        await self._loop.create_future()

    async def stop(self) -> None:
        """Say goodbye to everybody and remove what was made."""
        self._stopping = True
        for link in list(self._door.links):
            link.close("stopped", "the server stops")
        self._door.close()
        await self._tasks.cancel()
        # All at once: the service manager does not wait for one slow hook after the other.
        await asyncio.gather(
            *(
                identity.hooks.down(identity.hook_variables("stopped"))
                for identity in self._identities.values()
            )
        )
        for identity in self._identities.values():
            await self._wishes.drop(identity.owner)
            identity.close()
        self._identities.clear()

    def status(self) -> dict[str, object]:
        """How every client is doing."""
        now = self._loop.time()
        return {
            "tunnels": [identity.status(now) for identity in self._identities.values()],
            "half_open": self._door.half_open,
            "drops": dict(self._door.all_drops),
            "warnings": [],
        }

    def summary(self) -> str:
        """One line for the service manager."""
        connected = sum(identity.link is not None for identity in self._identities.values())
        return f"{connected} of {len(self._identities)} clients connected"

    # Sessions

    def _key(self, name: str, suite: Suite) -> bytes | None:
        """The key of this id, if it may use this suite; the suite of the original is for its clients alone."""
        entry = self._config.entry(name)
        if name == ANY_ID or entry is None or entry.go != (suite is LEGACY_SUITE):
            return None
        return entry.psk.secret()

    def _new_link(self, association: Association, sock: socket.socket) -> Link:
        now = self._loop.time()
        return Link(
            sock,
            Session(association, self._dialect, now, handshake_deadline=now),
            on_event=self._on_event,
            on_handshake=self._door.handshake,
            on_path=lambda link, number: None,  # noqa: ARG005 - ICMP is not authentic; keepalive decides
            loop=self._loop,
        )

    def _dialect(self, association: Association, count: Count, now: float) -> Dialect:
        if association.native:
            return NativeDialect(count, self._config.keepalive, self._config.timeout, now)
        return GoServerDialect(count)

    def _on_event(self, link: Link, event: Event) -> None:
        match event:
            case Established():
                self._note_newcomer(link)
                if not link.session.association.native:
                    self._tasks.spawn(self._admit(link, None))
            case Received(Hello() as hello):
                self._tasks.spawn(self._admit(link, hello))
            case Received(Welcome() | Renew()):
                link.close("other", "it talks like a server")
            case WornOut():
                link.send(Renew())
            case Closed():
                self._gone(link, event)
            case _:
                pass

    def _note_newcomer(self, link: Link) -> None:
        """Somebody with a key is there, who may only wait for so long and in such numbers."""
        self._newcomers[link] = None
        name = link.session.association.identity
        waiting = [other for other in self._newcomers if other.session.association.identity == name]
        if len(waiting) > MAX_NEWCOMERS:
            waiting[0].close("other", "this id makes too many sessions at once")

    def _handshake_failed(self, failed: Failed) -> None:
        if failed.identity is not None:
            reason = self._mismatch(failed.identity, failed.reason) or failed.reason
            what = f"a handshake with id '{harmless(failed.identity)}' failed"
            self._say(self._failures, logging.WARNING, f"{sockets.show(failed.path.peer)}: {what}: {reason}")

    def _mismatch(self, name: str, reason: str) -> str | None:
        """In words for the log, if this id is only unknown for the suite that was used, see `_key`."""
        entry = self._config.entry(name)
        if entry is None or reason != "unknown id":
            return None
        if entry.go:
            return "its entry is for an original Go dtun; remove `compat: go` there, or set it on the client"
        return "it is an original Go dtun, which its entry does not allow; set `compat: go` there"

    def _say(self, limiter: Limiter, level: int, text: str) -> None:
        """Log what a client has caused, which it must not be able to do without end."""
        held_back = limiter.allow(self._loop.time())
        if held_back is not None:
            log.log(level, "%s%s", text, f" (and {held_back} more like this)" if held_back else "")

    def _gone(self, link: Link, closed: Closed) -> None:
        self._door.forget(link)
        name = link.session.association.identity or ""
        if link in self._newcomers:
            del self._newcomers[link]
            if closed.reason in ("other", "timeout"):
                text = f"{name}: the session from {link.endpoint} came to nothing: {harmless(closed.text)}"
                self._say(self._refusals, logging.WARNING, text)
        identity = self._identities.get(name)
        if identity is None or identity.link is not link:
            return
        identity.link = None
        identity.since = iso()
        self._leases.used(name)
        text = harmless(closed.text)
        identity.last_error = None if closed.reason == "stopped" else text
        why = f"it said goodbye: {text}" if closed.by_peer else text
        self._say(identity.remarks, logging.INFO, f"{name}: away, {why}")
        if not self._stopping:
            self._tasks.spawn(identity.hooks.down(identity.hook_variables(closed.reason)))

    # Identities

    async def _create(self, name: str) -> Identity:
        """The identity of this name, made if there is none yet. Only while starting, or with `_admitting`.

        Raises:
            PoolFullError: there is no address for it.
            DtunError: its device cannot be made.
        """
        existing = self._identities.get(name)
        if existing is not None:
            return existing
        entry = self._config.entry(name)
        if entry is None:
            raise UnavailableError(f"{name}: not in the configuration")
        pair = self._leases.pair(name, self._is_used)
        await self._evict(pair.peer)
        taken = {identity.tun.name for identity in self._identities.values()}
        taken |= {other.tun for other in self._config.clients.values() if other.tun}
        tun = self._kernel.create_tun(entry.tun or device_name(name, taken))
        hooks = UpDown(self._run_hook, self._config.hook("up", entry), self._config.hook("down", entry), name)
        identity = Identity(name, entry, pair, tun, hooks, self._loop)
        self._identities[name] = identity
        await self._wishes.put(identity.owner, identity.network_state(self._config.mtu or identity.mtu, ()))
        return identity

    def _is_used(self, name: str) -> bool:
        """Whether this id may not lose its address: it is configured by name, or connected."""
        identity = self._identities.get(name)
        return name in self._config.clients or (identity is not None and identity.link is not None)

    async def _evict(self, address: object) -> None:
        """Remove the identity, away for long, whose lease has just gone to somebody else."""
        for name, identity in list(self._identities.items()):
            if identity.pair.peer == address:
                del self._identities[name]
                await self._wishes.drop(identity.owner)
                identity.close()

    async def _admit(self, link: Link, hello: Hello | None) -> None:
        """Let a client in, or tell it why not. An original one says hello only after it was told its address."""
        association = link.session.association
        if not association.native and association.suite is not LEGACY_SUITE:
            # With the suite of the original, `_key` has seen to it that the entry allows it.
            link.close("other", "it does not speak dtun's protocol")
            return
        name = association.identity or ""
        try:
            async with self._admitting:
                if link.ended():
                    return
                identity = await self._create(name)
                if hello is None:
                    link.send(Welcome(address=identity.pair.peer, peer=identity.pair.local))
                else:
                    await self._let_in(identity, link, hello)
        except PoolFullError:
            text = f"{name}: refused, the address pool {self._config.pool} is full"
            self._say(self._refusals, logging.WARNING, text)
            link.close("refused", f"the server's address pool {self._config.pool} is full")
        except DtunError as error:
            self._say(self._refusals, logging.ERROR, f"{name}: refused: {error}")
            link.close("refused", "the server cannot set up its side of the tunnel")
        except Exception:
            # A bug, which the log will tell. Nobody would ever serve this session.
            link.close("refused", "the server has failed")
            raise

    async def _let_in(self, identity: Identity, link: Link, hello: Hello) -> None:
        taken = await self._taken(identity)
        if link.ended():
            return
        # With a route to it through the tunnel, the tunnel's own packets would go round in circles.
        outside = ip_network(str(link.peer[0]).partition("%")[0])
        taken[outside] = "this client outside the tunnel"
        granted = grant(hello.subnets, identity.entry.grants, taken)
        mtu = link.agreed_mtu(self._config.mtu, hello.mtu, ipv6=identity.pair.local6 is not None)
        refused_routes = await self._wishes.put(identity.owner, identity.network_state(mtu, granted.granted))
        refusals = list(granted.refused) + [
            Refusal(subnet=route.destination, reason=reason[:256]) for route, reason in refused_routes
        ]
        identity.mtu = mtu
        identity.grant(
            tuple(subnet for subnet in granted.granted if subnet not in {r.subnet for r in refusals})
        )
        if refusals:
            shown = "; ".join(f"{refusal.subnet}: {refusal.reason}" for refusal in refusals[:SHOWN_REFUSALS])
            more = f"; and {len(refusals) - SHOWN_REFUSALS} more" if len(refusals) > SHOWN_REFUSALS else ""
            self._say(identity.remarks, logging.WARNING, f"{identity.name}: subnets refused: {shown}{more}")
        if link.ended():
            return
        if link.session.open:
            self._put_to_service(identity, link, hello)
        pair = identity.pair
        link.send(
            Welcome(
                address=pair.peer,
                peer=pair.local,
                address6=pair.peer6,
                peer6=pair.local6,
                mtu=mtu,
                keepalive=self._config.keepalive,
                timeout=self._config.timeout,
                refused=tuple(refusals[:MAX_REFUSALS]),
                features=tuple(sorted(identity.tun.offloads)),
            )
        )

    def _put_to_service(self, identity: Identity, link: Link, hello: Hello) -> None:
        """The moment at which an identity moves over to a new session."""
        self._newcomers.pop(link, None)
        instance = hello.instance or str(link.peer[0])
        if identity.rivalry.login(instance, link.endpoint, self._loop.time()):
            log.warning("%s: %s; give each host an id of its own", identity.name, identity.rivalry.describe())
        same_host = instance == identity.instance and hello.instance != ""
        news = identity.link is None
        before = identity.serve(link, instance, hello.features)
        if before is not None and same_host:
            self._retire(identity, before)
        elif before is not None:
            before.close("replaced", f"another host has logged in with this id, from {link.endpoint}")
        if news or not same_host:
            subnets = ", ".join(map(str, identity.granted)) or "none"
            where = f"{identity.pair.peer} on {identity.tun.name}, subnets: {subnets}"
            text = f"{identity.name}: connected from {link.endpoint}, {where}"
            self._say(identity.remarks, logging.INFO, text)
        self._tasks.spawn(identity.hooks.up(identity.hook_variables("connected")))

    def _retire(self, identity: Identity, before: Link) -> None:
        """Let a session receive for a while. Only one of each client, which might renew without end."""
        if identity.retiring is not None:
            identity.retiring.close("renewed", "", tell=False)
        identity.retiring = before
        self._loop.call_later(GRACE, lambda: before.close("renewed", "", tell=False))

    async def _taken(self, identity: Identity) -> dict[Network, str]:
        """Networks that this identity may not have, each with its owner in words."""
        taken: dict[Network, str] = {self._config.pool: "the server's address pool"}
        if self._config.pool6 is not None:
            taken[self._config.pool6] = "the server's IPv6 pool"
        for local in await self._kernel.local_networks():
            taken[local.network] = f"the server's own interface {local.device}"
        for name, entry in self._config.clients.items():
            if name not in (identity.name, ANY_ID) and not entry.any_private:
                taken |= dict.fromkeys(entry.subnets, f"client {name}")
        for other in self._identities.values():
            if other is not identity:
                taken |= dict.fromkeys(other.granted, f"client {other.name}")
        return taken
