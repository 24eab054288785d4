"""The network configuration of a Linux host: TUN devices by ioctl, everything else by netlink."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Literal

from dtun.errors import DtunError, UnavailableError
from dtun.network.difference import Change, Thing, difference
from dtun.network.prefixes import PrefixSet
from dtun.network.state import Address, NetDevice, Network, NetworkState, Route, Sysctl
from dtun.platform import resolv_conf
from dtun.platform.interface import ChangesRefusedError, ForeignRule, HostRoute, LocalNetwork, NextHop
from dtun.platform.journal import Journal, runtime_directory as default_directory
from dtun.platform.linux import conntrack, lookup, sysctl
from dtun.platform.linux.applied import Applied, Devices, devices_of, read_devices, without_devices
from dtun.platform.linux.applier import Applier, Outcome
from dtun.platform.linux.netlink.monitor import HostView, Monitor
from dtun.platform.linux.netlink.removals import RemovalWatch
from dtun.platform.linux.netlink.sockets import device_index
from dtun.platform.linux.nftables import foreign
from dtun.platform.linux.sysctl import SysctlError
from dtun.platform.linux.tun import LinuxTun, adopt_tun, open_tun
from dtun.platform.repair import Repairer, RepairResult

# With this many routes or more, their difference is computed in a thread.
_MANY = 1000


class _Open:
    """What exists between `open` and `close`."""

    def __init__(self, journal: Journal, devices: Devices) -> None:
        self.applier = Applier(journal, devices, self._filters_removed)
        self.monitor: Monitor | None = None
        self.repairer: Repairer | None = None

    def _filters_removed(self) -> None:
        if self.repairer is not None:
            self.repairer.removed()

    async def close(self) -> None:
        if self.repairer is not None:
            await self.repairer.close()
        if self.monitor is not None:
            self.monitor.close()
        await self.applier.close()


class LinuxKernel:
    """Implements `dtun.platform.interface.Kernel`.

    What this process has applied is kept in memory and compared with each desired state, so that a full routing table
    is not read for each client. The kernel is read again after the host's network changed, because routes go with
    their link or address, and after another program may have removed something.
    """

    def __init__(self, instance: str, runtime_directory: Path | None = None) -> None:
        self._journal = Journal(instance, runtime_directory or default_directory())
        self._view = HostView()
        self._removals = RemovalWatch()
        self._watchers: list[Callable[[], None]] = []
        self._devices = Devices()
        self._tuns: dict[str, LinuxTun] = {}
        self._inherited: set[str] = set()
        # What was read of the host, with the version of the view.
        self._local_networks: tuple[int, list[LocalNetwork]] | None = None
        self._host_routes: dict[bool, tuple[int, list[HostRoute]]] = {}
        self._desired: NetworkState | None = None
        # The host's network changed since the kernel was read.
        self._stale = False
        # Still missing after the last repair.
        self._unrepaired: set[Thing] = set()
        self._lock = asyncio.Lock()
        self._open: _Open | None = None

    async def open(self) -> None:
        """See `Kernel.open`."""
        self._desired, self._stale = None, False
        self._unrepaired.clear()
        opened = _Open(self._journal, self._devices)
        try:
            await opened.applier.check_permission()
            leftovers = self._journal.open()
            async with self._lock:
                self._open = opened
                opened.repairer = Repairer(self._repair)
                # Before the first read, so that no change is missed in between.
                opened.monitor = Monitor(
                    self._view,
                    self._removals,
                    changed=self._host_changed,
                    removed=self._removed,
                    ports=opened.applier.ports,
                )
                await lookup.fill(self._view)
                await opened.applier.adopt(leftovers)
        except BaseException:
            await self._release(opened, keep_journal=True)
            raise

    async def close(self) -> None:
        """See `Kernel.close`."""
        if self._open is None:
            return
        opened = self._open
        try:
            if opened.repairer is not None:
                await opened.repairer.close()
            await self.apply(NetworkState())
        finally:
            await self._release(opened, keep_journal=bool(self._journal.entries))

    async def detach(self) -> None:
        """See `Kernel.detach`."""
        if self._open is not None:
            async with self._lock:
                await self._release(self._open, keep_journal=True)

    def create_tun(self, name: str, descriptor: int | None = None) -> LinuxTun:
        """See `Kernel.create_tun`."""
        if descriptor is None:
            tun = open_tun(name, self._device_closed)
        else:
            if device_index(name) is None:
                raise UnavailableError(
                    "the device was deleted, renamed or moved to another network namespace"
                )
            tun = adopt_tun(name, descriptor, self._device_closed)
            self._inherited.add(name)
        self._tuns[name] = tun
        self._device_created(name)
        return tun

    async def apply(self, desired: NetworkState) -> list[Change]:
        """See `Kernel.apply`."""
        async with self._lock:
            self._desired = desired
            applied, refused = await self._change_to(desired)
            if refused:
                raise ChangesRefusedError(refused, applied)
            return applied

    async def next_hop(self, address: Address, mark: int | None = None) -> NextHop | None:
        """See `Kernel.next_hop`."""
        return await lookup.next_hop(address, self._devices.own, mark)

    async def default_hop(self, version: Literal[4, 6]) -> NextHop | None:
        """See `Kernel.default_hop`."""
        return await lookup.default_hop(version, self._devices.own)

    async def local_networks(self) -> list[LocalNetwork]:
        """See `Kernel.local_networks`."""
        version = self._view.networks_version
        if self._open is None or self._local_networks is None or self._local_networks[0] != version:
            # Not at each login: with a thousand clients there are a thousand links and addresses.
            self._local_networks = (version, await lookup.local_networks(self._devices.own))
        return [local for local in self._local_networks[1] if local.device not in self._devices.own]

    async def host_routes(self, *, connected: bool) -> list[HostRoute]:
        """See `Kernel.host_routes`."""
        version = self._view.networks_version
        known = self._host_routes.get(connected)
        if self._open is None or known is None or known[0] != version:
            known = (version, await lookup.host_routes(self._devices.own, connected=connected))
            self._host_routes[connected] = known
        return [route for route in known[1] if route.device not in self._devices.own]

    def has(self, setting: Sysctl) -> bool:
        """See `Kernel.has`."""
        return sysctl.is_set(setting)

    async def foreign_rules(self) -> list[ForeignRule]:
        """See `Kernel.foreign_rules`."""
        return await lookup.foreign_rules(self._devices.own)

    async def forwarding_obstacles(
        self, devices: Collection[str], networks: Collection[Network]
    ) -> list[str]:
        """See `Kernel.forwarding_obstacles`."""
        found = await asyncio.to_thread(foreign.read_obstacles, devices, networks)
        return [foreign.explain(one, devices) for one in found]

    async def forget_connections(self, networks: Collection[Network], but: Collection[Network]) -> None:
        """See `Kernel.forget_connections`."""
        wanted, spared = PrefixSet(networks), PrefixSet(but)
        await asyncio.to_thread(conntrack.forget, lambda address: address in wanted and address not in spared)

    async def advertised_devices(self) -> list[str]:
        """See `Kernel.advertised_devices`."""
        ours = self._applier.applied.state().sysctls if self._open is not None else frozenset()
        return await lookup.advertised_devices(self._devices.own, ours)

    def name_servers(self) -> list[Address]:
        """See `Kernel.name_servers`."""
        return resolv_conf.name_servers()

    def watch(self, changed: Callable[[], None], woke: Callable[[float], None] | None = None) -> None:
        """See `Kernel.watch`. `woke` is not called: after a suspend, addresses and links change anyway."""
        del woke
        self._watchers.append(changed)

    @property
    def applied(self) -> Applied:
        """What this process has put in the kernel."""
        return self._applier.applied

    @property
    def _applier(self) -> Applier:
        if self._open is None:
            raise RuntimeError("the kernel is not open")
        return self._open.applier

    async def _change_to(self, desired: NetworkState) -> Outcome:
        applier = self._applier
        if self._inherited:
            for thing in await read_devices(self._inherited & self._devices.own.keys()):
                applier.applied.add(thing)
            self._inherited.clear()
        desired = self._without_gone_devices(desired)
        changes = await self._difference(desired)
        doubtful: set[Thing] = {change.previous for change in changes if isinstance(change.previous, Route)}
        if self._stale or doubtful:
            # If a route of ours is gone, a replacement would overwrite the one that took its place.
            doubtful.update(applier.not_on_own_devices() if self._stale else ())
            self._stale = False
            if await applier.forget_missing(doubtful):
                changes = await self._difference(desired)
        return await applier.apply(changes, desired.filters)

    async def _difference(self, desired: NetworkState) -> tuple[Change, ...]:
        applied = self._applier.applied.state()
        if len(desired.routes) + len(applied.routes) < _MANY:
            return difference(desired, applied)
        return await asyncio.to_thread(difference, desired, applied)

    async def _repair(self) -> RepairResult:
        """Restore what is missing of the last desired state."""
        async with self._lock:
            if self._open is None:
                return RepairResult()
            applier = self._applier
            self._find_lost_devices()
            without_device = self._renew_devices()
            missing = self._unrepaired | await applier.forget_missing(applier.applied.things())
            if not missing:
                return RepairResult(refused=without_device)
            self._stale = False
            self._unrepaired.clear()
            if self._desired is None:
                applier.prune_journal()
                return RepairResult(refused=without_device)
            applied, refused = await self._change_to(self._desired)
            applier.prune_journal()
            result = RepairResult(
                [change for change in applied if change.what in missing],
                [(change, reason) for change, reason in refused if change.what in missing],
            )
            self._unrepaired.update(change.what for change, _ in result.refused)
            result.refused.extend(without_device)
            return result

    def _renew_devices(self) -> list[tuple[Change, str]]:
        """Make lost devices anew. Returns those that cannot be made now, each with the reason."""
        refused: list[tuple[Change, str]] = []
        for name, things in list(self._devices.lost.items()):
            try:
                self._tuns[name].renew()
            except DtunError as error:
                device = next((thing for thing in things if isinstance(thing, NetDevice)), NetDevice(name, 0))
                refused.append((Change("add", device), str(error)))
                continue
            self._device_created(name)
            self._unrepaired |= things
        return refused

    def _removed(self) -> None:
        """Another program may have removed something of ours."""
        if self._removals.take_lost():
            self._find_lost_devices()
        if self._open is not None and self._open.repairer is not None:
            self._open.repairer.removed()

    def _find_lost_devices(self) -> None:
        """Note which devices were removed, renamed or moved: their names may belong to others now."""
        for name, index in list(self._devices.own.items()):
            if device_index(name) != index:
                del self._devices.own[name]
                self._view.networks_version += 1  # it may be there under another name
                self._removals.device_closed(index)
                self._devices.lost[name] = self._applier.applied.discard_device(name)

    def _device_created(self, name: str) -> None:
        # Otherwise an address that replaces another with the same peer is removed together with it.
        with contextlib.suppress(SysctlError):
            sysctl.write(f"net.ipv4.conf.{name}.promote_secondaries", "1")
        index = socket.if_nametoindex(name)
        self._view.add_own(index)
        self._removals.device_created(index, name)
        self._devices.created(name, index)

    def _host_changed(self) -> None:
        self._stale = True
        if self._open is not None and self._open.repairer is not None:
            self._open.repairer.host_changed()
        for changed in self._watchers:
            changed()

    def _device_closed(self, tun: LinuxTun) -> None:
        """Addresses and routes went with the device."""
        self._tuns.pop(tun.name, None)
        index = self._devices.removed(tun.name)
        if index is not None:
            self._removals.device_closed(index)
        if self._open is not None:
            self._open.applier.applied.discard_device(tun.name)

    def _without_gone_devices(self, desired: NetworkState) -> NetworkState:
        if not self._devices.gone:
            return desired
        # A closed device is remembered only while the caller's desired states still name it.
        self._devices.closed &= devices_of(desired)
        return without_devices(desired, self._devices.gone)

    async def _release(self, opened: _Open, *, keep_journal: bool) -> None:
        self._open = None
        await opened.close()
        self._journal.close(keep=keep_journal)
