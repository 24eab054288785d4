"""Who is served: the identities of a server with their devices, their addresses, and what is whose.

Only while starting, or with `lock`: whoever makes or changes an identity must see what the one before got.
"""

import asyncio
import logging
from typing import Any

from dtun.config import ANY_ID, ClientEntry, Hook, ServerConfig
from dtun.errors import UnavailableError
from dtun.handover.fdstore import FdStore, NoFdStore
from dtun.handover.session_store import SessionStore
from dtun.network.state import Network, Route
from dtun.platform.desired import DesiredState, Rejection
from dtun.platform.interface import Kernel
from dtun.protocol.messages import Refusal
from dtun.server.forwarding import Forwarding
from dtun.server.identity import Identity
from dtun.server.leases import Leases
from dtun.server.naming import device_name
from dtun.session.hooks import RunHook, TunnelHooks

log = logging.getLogger("dtun.server")


class Identities:
    """The identities by name. `config` is the configuration that holds now."""

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
        """`read_only`: new leases are not written, for one who only wants to know."""
        self.config = config
        self.by_name: dict[str, Identity] = {}
        # One login at a time: it must see which subnets the one before got, and nobody may take away the address
        # of a client that is just being let in.
        self.lock = asyncio.Lock()
        self.leases = Leases(
            config.pool,
            config.pool6,
            **fixed(config),
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
    def devices(self) -> list[str]:
        return [identity.tun.name for identity in self.by_name.values()]

    async def forward(self) -> None:
        """Forward for the devices that there are now, as far as the configuration says so."""
        await self.forwarding.put(self.config, self.devices)

    async def create(self, name: str) -> Identity:
        """The identity of this name, made if there is none yet.

        Raises:
            PoolFullError: there is no address for it.
            DtunError: its device cannot be made.
        """
        existing = self.by_name.get(name)
        if existing is not None:
            return existing
        entry = self.config.entry(name)
        if entry is None:
            raise UnavailableError(f"{name}: not in the configuration")
        pair = self.leases.pair(name, self.is_used)
        await self.evict(pair.peer)
        taken = {identity.tun.name for identity in self.by_name.values()}
        taken |= {other.tun for other in self.config.clients.values() if other.tun}
        device = entry.tun or device_name(name, taken)
        session_store = SessionStore(self._fdstore, device)
        kept = session_store.take_device()
        tun = self._kernel.create_tun(device, kept)
        if kept is None:
            session_store.keep_device(tun.fileno())
        hooks = TunnelHooks(self._run_hook, *self.hooks_of(entry), name)
        identity = Identity(name, entry, pair, tun, session_store, hooks, self._loop)
        self.by_name[name] = identity
        await self.put(identity, self.config.mtu or identity.mtu, ())
        return identity

    async def put(
        self, identity: Identity, mtu: int, subnets: tuple[Network, ...]
    ) -> tuple[tuple[Network, ...], list[Refusal]]:
        """Have the kernel look as this client needs it. Returns the subnets that it takes, and the others.

        Raises:
            UnavailableError: the kernel refuses the device's size or an address.
        """
        state = identity.network_state(mtu, subnets, forwards=self.config.forwards)
        refused = await self.desired_state.set(identity.owner, state)
        others: list[Rejection] = [
            (thing, reason) for thing, reason in refused if not isinstance(thing, Route)
        ]
        identity.refusals.replace(others)
        refusals = [
            Refusal(subnet=thing.destination, reason=reason[:256])
            for thing, reason in refused
            if isinstance(thing, Route)
        ]
        without = {refusal.subnet for refusal in refusals}
        return tuple(subnet for subnet in subnets if subnet not in without), refusals

    async def withdraw(self, identity: Identity) -> None:
        """Take addresses and routes of this identity out of the kernel. Its device stays."""
        await self.desired_state.remove(identity.owner)

    async def remove(self, identity: Identity) -> None:
        """Take away what this identity has in the kernel. Its session is over, and it is in the list no more."""
        await self.withdraw(identity)
        identity.close()

    async def evict(self, address: object) -> None:
        """Remove the identity, away for long, whose lease has just gone to somebody else."""
        for name, identity in list(self.by_name.items()):
            if identity.pair.peer == address:
                del self.by_name[name]
                await self.remove(identity)

    def is_used(self, name: str) -> bool:
        """Whether this id may not lose its address: it is configured by name, or connected."""
        identity = self.by_name.get(name)
        return name in self.config.clients or (identity is not None and identity.link is not None)

    def hooks_of(self, entry: ClientEntry) -> tuple[Hook | None, Hook | None]:
        """The up and the down hook of a client."""
        return self.config.hook("up", entry), self.config.hook("down", entry)

    async def taken(self, identity: Identity) -> dict[Network, str]:
        """Networks that this identity may not have, each with its owner in words."""
        taken: dict[Network, str] = {self.config.pool: "the server's address pool"}
        if self.config.pool6 is not None:
            taken[self.config.pool6] = "the server's IPv6 pool"
        for local in await self._kernel.local_networks():
            taken[local.network] = f"the server's own interface {local.device}"
        for name, entry in self.config.clients.items():
            if name not in (identity.name, ANY_ID) and not entry.any_private:
                taken |= dict.fromkeys(entry.subnets, f"client {name}")
        for other in self.by_name.values():
            if other is not identity:
                taken |= dict.fromkeys(other.granted, f"client {other.name}")
        return taken


def fixed(config: ServerConfig) -> dict[str, Any]:
    """The addresses that the configuration gives to clients, as `Leases` wants them."""
    return {
        "fixed": {name: entry.address for name, entry in config.clients.items() if entry.address},
        "fixed6": {name: entry.address6 for name, entry in config.clients.items() if entry.address6},
    }
