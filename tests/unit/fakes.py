"""A simulated host: its network state, and devices that are pairs of sockets."""

import os
import socket
from collections.abc import Callable, Collection
from dataclasses import fields

from dtun.errors import UnavailableError
from dtun.network.difference import Change, Thing, difference
from dtun.network.state import Address, Network, NetworkState, Sysctl
from dtun.platform.interface import ChangesRefusedError, ForeignRule, HostRoute, LocalNetwork, NextHop


class FakeTun:
    """A device; `host` is the host's side of it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.vnet_header = False
        self.family_header = False
        self.offloads: frozenset[str] = frozenset()
        self.enabled_offloads: frozenset[str] = frozenset()
        self._device, self.host = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._device.setblocking(False)
        self.host.setblocking(False)
        self.up = True

    def fileno(self) -> int:
        return self._device.fileno()

    def enable_offloads(self, offloads: frozenset[str]) -> None:
        assert offloads <= self.offloads

    def works(self) -> bool:
        return self.up

    def watch(self, lost: Callable[[], None], renewed: Callable[[], None]) -> None:
        self.lost, self.renewed = lost, renewed

    @property
    def closed(self) -> bool:
        return self._device.fileno() < 0

    def close(self) -> None:
        self._device.close()
        self.host.close()


class FakeKernel:
    """Applies every state, except for what is in `refuses`."""

    def __init__(self) -> None:
        self.state = NetworkState()
        self.applied = 0
        self.refuses: dict[Thing, str] = {}
        self.networks: list[LocalNetwork] = []
        self.connected: list[HostRoute] = []
        self.routed: list[HostRoute] = []
        self.rules: list[ForeignRule] = []
        self.forgotten: list[tuple[frozenset[Network], frozenset[Network]]] = []
        self.obstacles: list[str] = []
        self.advertised: list[str] = []
        self.resolvers: list[Address] = []
        self.settings = {Sysctl("net.ipv4.ip_forward", "1")}
        self.gateways: dict[int, NextHop] = {}
        self.hop: NextHop | None = NextHop("eth0", None, None, 1500)
        self.tuns: dict[str, FakeTun] = {}
        self.changed: Callable[[], None] = lambda: None
        self.woke: Callable[[float], None] | None = None

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def detach(self) -> None: ...

    def create_tun(self, name: str, descriptor: int | None = None) -> FakeTun:
        if descriptor is not None:
            # The device still exists in this process; what was kept is only a copy.
            os.close(descriptor)
            return self.tuns[name]
        if name in self.tuns and not self.tuns[name].closed:
            raise UnavailableError(f"{name}: the name is taken")
        self.tuns[name] = FakeTun(name)
        return self.tuns[name]

    async def apply(self, desired: NetworkState) -> list[Change]:
        self.applied += 1
        changes = difference(desired, self.state)
        refused = [(change, self.refuses[change.what]) for change in changes if change.what in self.refuses]
        gone = {change.what for change, _ in refused}
        self.state = NetworkState(
            *(
                frozenset(one for one in getattr(desired, field.name) if one not in gone)
                for field in fields(NetworkState)
            )
        )
        applied = [change for change in changes if change.what not in gone]
        if refused:
            raise ChangesRefusedError(refused, applied)
        return applied

    async def next_hop(self, address: Address, mark: int | None = None) -> NextHop | None:
        del address, mark
        return self.hop

    async def default_hop(self, version: int) -> NextHop | None:
        return self.gateways.get(version)

    async def local_networks(self) -> list[LocalNetwork]:
        return self.networks

    async def host_routes(self, *, connected: bool) -> list[HostRoute]:
        return self.connected if connected else self.routed

    def has(self, setting: Sysctl) -> bool:
        return setting in self.settings or setting in self.state.sysctls

    async def foreign_rules(self) -> list[ForeignRule]:
        return self.rules

    async def forwarding_obstacles(
        self, devices: Collection[str], networks: Collection[Network]
    ) -> list[str]:
        assert devices or networks
        return self.obstacles

    async def forget_connections(self, networks: Collection[Network], but: Collection[Network]) -> None:
        self.forgotten.append((frozenset(networks), frozenset(but)))

    async def advertised_devices(self) -> list[str]:
        return self.advertised

    def name_servers(self) -> list[Address]:
        return self.resolvers

    def watch(self, changed: Callable[[], None], woke: Callable[[float], None] | None = None) -> None:
        self.changed = changed
        self.woke = woke


class FakeFdStore:
    """Keeps copies of descriptors, as systemd does; `names` and `take` give them to every successor."""

    keeps = True

    def __init__(self) -> None:
        self._kept: dict[str, int] = {}
        self._given: set[str] = set()

    @property
    def ports(self) -> frozenset[int]:
        kept = [found for name, found in self._kept.items() if name.startswith(("listen.", "socket."))]
        return frozenset(map(_port, kept))

    def keep(self, name: str, descriptor: int) -> None:
        self.forget(name)
        self._kept[name] = os.dup(descriptor)

    def forget(self, name: str) -> None:
        if name in self._kept:
            os.close(self._kept.pop(name))

    def take(self, name: str) -> int | None:
        self._given.add(name)
        return os.dup(self._kept[name]) if name in self._kept else None

    def names(self) -> list[str]:
        return [name for name in self._kept if name not in self._given]

    def listeners(self) -> list[socket.socket]:
        return []

    def close_rest(self) -> None:
        for name in self.names():
            self.forget(name)

    def start_successor(self) -> None:
        """The next process gets everything again."""
        self._given.clear()

    def close(self) -> None:
        for name in list(self._kept):
            self.forget(name)


def _port(descriptor: int) -> int:
    with socket.socket(fileno=os.dup(descriptor)) as sock:
        port: int = sock.getsockname()[1]
        return port
