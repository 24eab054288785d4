"""Who is served: the identities of a server with their devices, their addresses, and what is whose.

Only while starting, or with `lock`: whoever makes or changes an identity must see what the one before got.
"""

import asyncio
import logging
from typing import Any

from dtun.config import ANY_ID, ClientEntry, Hook, ServerConfig
from dtun.errors import UnavailableError
from dtun.network.state import Network, Route
from dtun.platform.interface import Kernel
from dtun.protocol.messages import Refusal
from dtun.tunnel.forwarding import Forwarding
from dtun.tunnel.hooks import RunHook, UpDown
from dtun.tunnel.identity import Identity
from dtun.tunnel.keeper import Keeper
from dtun.tunnel.leases import Leases
from dtun.tunnel.naming import device_name
from dtun.tunnel.vault import NoVault, Vault
from dtun.tunnel.wishes import Refused, Wishes

log = logging.getLogger("dtun.server")


class Roster:
    """The identities by name. `config` is the configuration that holds now."""

    def __init__(
        self,
        config: ServerConfig,
        kernel: Kernel,
        run_hook: RunHook,
        loop: asyncio.AbstractEventLoop,
        *,
        vault: Vault | None = None,
        read_only: bool = False,
    ) -> None:
        """`read_only`: new leases are not written, for one who only wants to know."""
        self.config = config
        self.identities: dict[str, Identity] = {}
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
        self.wishes = Wishes(kernel)
        self._vault = vault or NoVault()
        self.forwarding = Forwarding(kernel, self.wishes)

    @property
    def devices(self) -> list[str]:
        return [identity.tun.name for identity in self.identities.values()]

    async def forward(self) -> None:
        """Forward for the devices that there are now, as far as the configuration says so."""
        await self.forwarding.put(self.config, self.devices)

    async def create(self, name: str) -> Identity:
        """The identity of this name, made if there is none yet.

        Raises:
            PoolFullError: there is no address for it.
            DtunError: its device cannot be made.
        """
        existing = self.identities.get(name)
        if existing is not None:
            return existing
        entry = self.config.entry(name)
        if entry is None:
            raise UnavailableError(f"{name}: not in the configuration")
        pair = self.leases.pair(name, self.is_used)
        await self.evict(pair.peer)
        taken = {identity.tun.name for identity in self.identities.values()}
        taken |= {other.tun for other in self.config.clients.values() if other.tun}
        device = entry.tun or device_name(name, taken)
        keeper = Keeper(self._vault, device)
        kept = keeper.take_device()
        tun = self._kernel.create_tun(device, kept)
        if kept is None:
            keeper.keep_device(tun.fileno())
        hooks = UpDown(self._run_hook, *self.hooks_of(entry), name)
        identity = Identity(name, entry, pair, tun, keeper, hooks, self._loop)
        self.identities[name] = identity
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
        refused = await self.wishes.put(identity.owner, state)
        others: Refused = [(thing, reason) for thing, reason in refused if not isinstance(thing, Route)]
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
        await self.wishes.drop(identity.owner)

    async def remove(self, identity: Identity) -> None:
        """Take away what this identity has in the kernel. Its session is over, and it is in the list no more."""
        await self.withdraw(identity)
        identity.close()

    async def evict(self, address: object) -> None:
        """Remove the identity, away for long, whose lease has just gone to somebody else."""
        for name, identity in list(self.identities.items()):
            if identity.pair.peer == address:
                del self.identities[name]
                await self.remove(identity)

    def is_used(self, name: str) -> bool:
        """Whether this id may not lose its address: it is configured by name, or connected."""
        identity = self.identities.get(name)
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
        for other in self.identities.values():
            if other is not identity:
                taken |= dict.fromkeys(other.granted, f"client {other.name}")
        return taken


def fixed(config: ServerConfig) -> dict[str, Any]:
    """The addresses that the configuration gives to clients, as `Leases` wants them."""
    return {
        "fixed": {name: entry.address for name, entry in config.clients.items() if entry.address},
        "fixed6": {name: entry.address6 for name, entry in config.clients.items() if entry.address6},
    }
