"""Who is served: the identities of a server with their devices, their addresses, and who owns which network.

Identities are made and changed only during the start or with `lock` held, so that each change sees the one before.
"""

import asyncio
import hashlib
import re
from collections.abc import Container, Mapping
from typing import Any

from dtun.config import ANY_ID, ClientEntry, Hook, ServerConfig
from dtun.errors import UnavailableError
from dtun.handover.fdstore import FdStore, NoFdStore
from dtun.handover.session_store import SessionStore
from dtun.network.state import Network, Route
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
        kept = session_store.take_device()
        tun = self._kernel.create_tun(device, kept)
        if kept is None:
            session_store.keep_device(tun.fileno())
        hooks = TunnelHooks(self._run_hook, *self._hooks_of(entry), name)
        identity = Identity(name, entry, pair, tun, session_store, hooks, self._loop, paused=kept is not None)
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
        for identity in list(self._by_name.values()):
            await self.remove(identity)
        self._by_name.clear()
        await self.forwarding.drop()

    def is_used(self, name: str) -> bool:
        """Whether this id may not lose its address: it is configured by name, or connected."""
        identity = self._by_name.get(name)
        return name in self._config.clients or (identity is not None and identity.link is not None)

    async def taken(self, identity: Identity) -> dict[Network, str]:
        """Networks that this identity may not have, each with a description of its owner."""
        config = self._config
        taken: dict[Network, str] = {config.pool: "the server's address pool"}
        if config.pool6 is not None:
            taken[config.pool6] = "the server's IPv6 pool"
        for local in await self._kernel.local_networks():
            taken[local.network] = f"the server's own interface {local.device}"
        for name, entry in config.clients.items():
            if name not in (identity.name, ANY_ID) and not entry.any_private:
                taken |= dict.fromkeys(entry.subnets, f"client {name}")
        for other in self._by_name.values():
            if other is not identity:
                taken |= dict.fromkeys(other.granted, f"client {other.name}")
        return taken

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
