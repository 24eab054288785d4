"""Who is served: the identities of a server with their devices, their addresses, and who owns which network.

Identities are made and changed only during the start or with `lock` held, so that each change sees the one before.
"""

import asyncio
import hashlib
import os
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from ipaddress import ip_network
from typing import Any

from dtun.config import ANY_ID, ClientEntry, Hook, ServerConfig
from dtun.config.server import Pushing
from dtun.errors import UnavailableError
from dtun.handover.fdstore import FdStore, NoFdStore, devices
from dtun.handover.session_store import SessionStore
from dtun.network.prefixes import PrefixSet
from dtun.network.state import Address, Network, NetworkState, Route
from dtun.platform.desired import DesiredState
from dtun.platform.interface import Kernel
from dtun.protocol.messages import Refusal
from dtun.server.forwarding import Forwarding
from dtun.server.identity import Identity
from dtun.server.leases import Leases
from dtun.session.hooks import RunHook, TunnelHooks
from dtun.session.link import Link

MAX_NAME = 15
"""Bytes of a device name (IFNAMSIZ less the final NUL)."""

PREFIX = "dtun-"

IDLE_TIME = 600.0
"""Seconds that a client which only `*` lets in keeps its device while it is away."""

MOST_IDLE = 64
"""Such clients that keep their devices; those that left first lose them."""

_POOLS = "pools"


class Identities:
    """The identities by name, and the configuration that holds now."""

    def __init__(
        self,
        config: ServerConfig,
        kernel: Kernel,
        run_hook: RunHook,
        loop: asyncio.AbstractEventLoop,
        *,
        fdstore: FdStore | None = None,
        read_only: bool = False,
    ) -> None:
        """`read_only`: new leases are not written, for a dry run."""
        self._config = config
        self._by_name: dict[str, Identity] = {}
        # One login at a time: it must see which subnets the one before got, and an address must not be given away
        # while its client is being let in.
        self.lock = asyncio.Lock()
        self.leases = Leases(
            config.pool,
            config.pool6,
            **_fixed(config),
            path=config.state_directory / "leases.json",
            read_only=read_only,
        )
        self._kernel = kernel
        self._run_hook = run_hook
        self._loop = loop
        self.desired_state = DesiredState(kernel)
        self._fdstore = fdstore or NoFdStore()
        self.forwarding = Forwarding(kernel, self.desired_state)

    @property
    def config(self) -> ServerConfig:
        return self._config

    @property
    def by_name(self) -> Mapping[str, Identity]:
        return self._by_name

    @property
    def devices(self) -> list[str]:
        return [identity.tun.name for identity in self._by_name.values()]

    def reconfigure(self, config: ServerConfig) -> None:
        """Use this configuration and its fixed addresses from now on. Identities that exist stay as they are."""
        self._config = config
        self.leases.fix(**_fixed(config))

    def served_by(self, link: Link) -> Identity | None:
        """The identity that this session serves now."""
        identity = self._by_name.get(link.session.association.identity or "")
        return identity if identity is not None and identity.link is link else None

    async def forward(self) -> None:
        """Forward for the devices that there are now, as far as the configuration says so.

        Raises:
            DtunError: the kernel does not answer.
        """
        await self.forwarding.apply(self._config, self.devices)

    async def create(self, name: str) -> Identity:
        """The identity of this name, made if there is none yet; `Identity.start` is due if its device was kept.

        Raises:
            PoolFullError: there is no address for it.
            DtunError: its device cannot be made.
        """
        existing = self._by_name.get(name)
        if existing is not None:
            return existing
        entry = self._config.entry(name)
        if entry is None:
            raise UnavailableError(f"{name}: not in the configuration")
        pair = self.leases.pair(name, self.is_used)
        await self._evict(pair.peer)
        taken = {identity.tun.name for identity in self._by_name.values()}
        taken |= {other.tun for other in self._config.clients.values() if other.tun}
        device = entry.tun or device_name(name, taken)
        session_store = SessionStore(self._fdstore, device)
        tun, kept = session_store.open_device(self._kernel)
        hooks = TunnelHooks(self._run_hook, *self._hooks_of(entry), name)
        identity = Identity(name, entry, pair, tun, session_store, hooks, self._loop, paused=kept)
        self._by_name[name] = identity
        await self.apply(identity, self._config.mtu or identity.mtu, ())
        return identity

    async def apply(self, identity: Identity, mtu: int, subnets: tuple[Network, ...]) -> list[Refusal]:
        """Have the kernel look as this client needs it. Returns the subnets whose routes the kernel refuses.

        Raises:
            UnavailableError: the kernel refuses the device's size or an address.
        """
        state = identity.network_state(mtu, subnets, forwards=self._config.forwards)
        refused = await self.desired_state.set(identity.owner, state)
        refusals = [
            Refusal(subnet=thing.destination, reason=reason[:256])
            for thing, reason in refused
            if isinstance(thing, Route)
        ]
        without = {refusal.subnet for refusal in refusals}
        identity.applied(
            mtu,
            tuple(subnet for subnet in subnets if subnet not in without),
            [(thing, reason) for thing, reason in refused if not isinstance(thing, Route)],
        )
        return refusals

    def reconfigure_identity(self, identity: Identity) -> None:
        """Have this identity use its present entry of the configuration."""
        entry = self._config.entry(identity.name) or identity.entry
        identity.reconfigure(entry, *self._hooks_of(entry))

    async def detach(self, identity: Identity) -> None:
        """Take an identity out of service and its addresses and routes out of the kernel. Its device stays.

        Follow with `readdress` or `remove`.
        """
        self.dismiss(identity)
        await self.desired_state.remove(identity.owner)

    async def readdress(self, identity: Identity) -> None:
        """Take a detached identity into service again, with the address pair that it should have now.

        Raises:
            PoolFullError: there is no address for it.
            DtunError: the kernel refuses its network.
        """
        identity.move(self.leases.pair(identity.name, self.is_used))
        await self._evict(identity.pair.peer)
        self._by_name[identity.name] = identity
        await self.apply(identity, identity.mtu, ())

    def dismiss(self, identity: Identity) -> None:
        """Take an identity out of service, with its session closed. Follow with `remove`."""
        del self._by_name[identity.name]

    async def remove(self, identity: Identity) -> None:
        """Remove the device of an identity that is out of service, and what the kernel has for it."""
        await self.desired_state.remove(identity.owner)
        identity.close()

    async def remove_all(self) -> None:
        """Remove all devices, and the forwarding between them."""
        identities = list(self._by_name.values())
        self._by_name.clear()
        await self.desired_state.remove_all([identity.owner for identity in identities])
        await self._close(identities)
        await self.forwarding.drop()
        await self.desired_state.remove(_POOLS)

    async def remove_idle(self) -> bool:
        """Remove the devices of clients that the configuration does not name (`*`) and that have been away for long.

        Their addresses stay theirs as long as the pool has others. Returns whether some may become due later.
        """
        now = self._loop.time()
        idle = sorted(
            (one.away_since, name)
            for name, one in self._by_name.items()
            if name not in self._config.clients and one.away_since is not None
        )
        surplus = len(idle) - MOST_IDLE
        due = [
            name for number, (since, name) in enumerate(idle) if number < surplus or now - since >= IDLE_TIME
        ]
        removed = [self._by_name.pop(name) for name in due]
        if removed:
            await self.desired_state.remove_all([identity.owner for identity in removed])
            await self._close(removed)
            await self.forward()
        return len(idle) > len(removed)

    async def _close(self, identities: Iterable[Identity]) -> None:
        """Remove devices whose network state is removed: the kernel takes 20 ms each, less if asked for several."""
        held = []
        for identity in identities:
            held.append(os.dup(identity.tun.fileno()))
            identity.close()
        await asyncio.gather(*(asyncio.to_thread(os.close, descriptor) for descriptor in held))

    def is_used(self, name: str) -> bool:
        """Whether this id may not lose its address: it is configured by name, or connected."""
        identity = self._by_name.get(name)
        return name in self._config.clients or (identity is not None and identity.link is not None)

    async def pool_conflicts(self) -> list[str]:
        """Networks of this host that overlap a pool: a sentence for each. dtun's own devices do not count."""
        ours = {*self.devices, *devices(self._fdstore)}
        local = {(one.network, one.device) for one in await self._kernel.local_networks()}
        local |= {(one.network, one.device) for one in await self._kernel.host_routes(connected=True)}
        return [
            f"{name}: {pool} overlaps {network}, a network of this host's own on {device}; choose another {name}"
            for name, pool in (("pool", self._config.pool), ("pool6", self._config.pool6))
            if pool is not None
            for network, device in sorted(local, key=str)
            if device not in ours and network.version == pool.version and network.overlaps(pool)
        ]

    async def reserve_pools(self) -> None:
        """Have the kernel refuse packets to addresses of the pools that no client has.

        They would leave by the default route, for whoever has such a network there.

        Raises:
            UnavailableError: the kernel does not answer.
        """
        pools = (pool for pool in (self._config.pool, self._config.pool6) if pool is not None)
        routes = frozenset(Route(pool, kind="unreachable") for pool in pools)
        await self.desired_state.set(_POOLS, NetworkState(routes=routes))

    async def routed(self, identity: Identity) -> dict[Network, str]:
        """Networks that this host sends elsewhere, each with a description. What the identity has is not among them."""
        had = PrefixSet(identity.granted)
        routes = await self._kernel.host_routes(connected=False)
        return {one.network: f"through {one.device}" for one in routes if one.network not in had}

    async def taken(self, identity: Identity, requested: Iterable[Network] = ()) -> dict[Network, str]:
        """Networks that this identity may not have, each with a description of its owner.

        Nobody can take the addresses of other clients outside the tunnel. One that lies in a subnet which this client
        has already is there by that tunnel. Name servers are nobody else's if the configuration names exactly the
        requested subnet that they are in.
        """
        config = self._config
        taken: dict[Network, str] = {config.pool: "the server's address pool"}
        if config.pool6 is not None:
            taken[config.pool6] = "the server's IPv6 pool"
        for local in await self._kernel.local_networks():
            taken[local.network] = f"the server's own interface {local.device}"
        for name, entry in config.clients.items():
            if name not in (identity.name, ANY_ID) and not entry.any_private:
                taken |= dict.fromkeys(entry.subnets, f"client {name}")
        had = PrefixSet(identity.granted)
        for other in self._by_name.values():
            if other is identity:
                continue
            taken |= dict.fromkeys(other.granted, f"client {other.name}")
            if other.outside is not None and other.outside not in had:
                taken[other.outside] = f"client {other.name} outside the tunnel"
        named = PrefixSet(set(identity.entry.named_subnets).intersection(requested))
        for server, description in self._name_servers():
            if server not in named:
                taken.setdefault(ip_network(server), description)
        return taken

    def _name_servers(self) -> Iterator[tuple[Address, str]]:
        for server in self._kernel.name_servers():
            yield server, "a name server of this host's"
        config = self._config
        pushing: list[Pushing] = [config, *config.clients.values()]
        for server in (server for section in pushing for server in section.push_dns or ()):
            yield server, "a name server that clients are told to ask"

    def _hooks_of(self, entry: ClientEntry) -> tuple[Hook | None, Hook | None]:
        return self._config.hook("up", entry), self._config.hook("down", entry)

    async def _evict(self, address: object) -> None:
        """Remove the identity, away for long, whose lease has just gone to another one."""
        for identity in list(self._by_name.values()):
            if identity.pair.peer == address:
                self.dismiss(identity)
                await self.remove(identity)


def device_name(identity: str, taken: Container[str] = ()) -> str:
    """`dtun-demo` for "demo". A name that would be too long or have odd characters is shortened and gets a hash.

    Raises:
        ValueError: all names for this id are taken.
    """
    plain = PREFIX + identity
    if re.fullmatch(r"[A-Za-z0-9_-]+", identity) and len(plain) <= MAX_NAME and plain not in taken:
        return plain
    readable = re.sub(r"[^A-Za-z0-9_-]", "", identity)
    digest = hashlib.sha256(identity.encode()).hexdigest()
    for length in range(4, MAX_NAME - len(PREFIX)):
        room = MAX_NAME - len(PREFIX) - length - 1
        name = f"{PREFIX}{readable[: max(room, 0)]}-{digest[:length]}"
        if name not in taken and len(name) <= MAX_NAME:
            return name
    raise ValueError(f"no device name is left for id {identity!r}")


def _fixed(config: ServerConfig) -> dict[str, Any]:
    """The addresses that the configuration gives to clients, as `Leases` wants them."""
    return {
        "fixed": {name: entry.address for name, entry in config.clients.items() if entry.address},
        "fixed6": {name: entry.address6 for name, entry in config.clients.items() if entry.address6},
    }
