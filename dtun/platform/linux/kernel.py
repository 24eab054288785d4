"""The network configuration of a Linux host: TUN devices by ioctl, everything else by netlink."""

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pyroute2.netlink.exceptions import NetlinkError

from dtun.errors import PermissionDeniedError, UnavailableError
from dtun.network.difference import Change, Thing, difference
from dtun.network.state import Address, NetworkState, Route
from dtun.platform.interface import ChangesRefusedError, LocalNetwork, NextHop
from dtun.platform.journal import Journal, runtime_directory as usual_directory
from dtun.platform.linux import inherited, lookup, sysctl
from dtun.platform.linux.applied import Applied, Devices, devices_of, without_devices
from dtun.platform.linux.applier import Applier, Outcome
from dtun.platform.linux.netlink.monitor import HostView, Monitor
from dtun.platform.linux.netlink.removals import RemovalWatch
from dtun.platform.linux.netlink.requests import Requests
from dtun.platform.linux.netlink.route_batches import RouteBatches
from dtun.platform.linux.operations import NOT_PERMITTED
from dtun.platform.linux.services import Services
from dtun.platform.linux.sysctl import SysctlError
from dtun.platform.linux.tun import LinuxTun, adopt_tun, open_tun
from dtun.platform.repair import Repairer, RepairResult

# From this many routes on, their difference is worked out beside the event loop.
_MANY = 1000


class _Open:
    """What exists between `open` and `close`."""

    def __init__(self, journal: Journal, devices: Devices) -> None:
        self.netlink = Requests()
        self.bulk = RouteBatches()
        self.services = Services(f"dtun-{journal.instance}", self._filters_taken)
        self.carrier = Applier(self.netlink, self.bulk, self.services, journal, devices)
        self.monitor: Monitor | None = None
        self.repairer: Repairer | None = None

    def _filters_taken(self) -> None:
        self.carrier.filters_taken = True
        if self.repairer is not None:
            self.repairer.removed()

    async def close(self) -> None:
        if self.repairer is not None:
            await self.repairer.close()
        if self.monitor is not None:
            self.monitor.close()
        self.bulk.close()
        self.netlink.close()
        await self.services.close()


class LinuxKernel:
    """Implements `dtun.platform.interface.Kernel`.

    What this process has applied is kept in memory, and each desired state compared with it: a kernel with a
    full routing table is not read for each client. It is read again after the host's network changed, because
    the kernel drops routes with the link or the address under them, and when others removed what may be ours.
    """

    def __init__(self, instance: str, runtime_directory: Path | None = None) -> None:
        self._journal = Journal(instance, runtime_directory or usual_directory())
        self._view = HostView()
        self._removals = RemovalWatch()
        self._watchers: list[Callable[[], None]] = []
        self._devices = Devices()
        self._inherited: set[str] = set()
        self._desired: NetworkState | None = None
        self._stale = False
        # What is missing still after a repair.
        self._owed: set[Thing] = set()
        self._lock = asyncio.Lock()
        self._open: _Open | None = None

    async def open(self) -> None:
        """See `Kernel.open`."""
        self._desired, self._stale = None, False
        self._owed.clear()
        opened = _Open(self._journal, self._devices)
        try:
            await _check_permission(opened.netlink)
            leftovers = self._journal.open()
            async with self._lock:
                self._open = opened
                opened.repairer = Repairer(self._mend)
                # Before the first look, so that nothing is missed between the two.
                opened.monitor = Monitor(
                    self._view,
                    self._removals,
                    changed=self._host_changed,
                    removed=opened.repairer.removed,
                    ports=(opened.netlink.port, opened.bulk.port),
                )
                await lookup.look_around(self._view)
                await opened.carrier.adopt(leftovers)
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
            tun = adopt_tun(name, descriptor, self._device_closed)
            self._inherited.add(name)
        # So that an address that takes the place of another, with the same peer, does not go with it.
        with contextlib.suppress(SysctlError):
            sysctl.write(f"net.ipv4.conf.{name}.promote_secondaries", "1")
        index = socket.if_nametoindex(name)
        self._view.add_own(index)
        self._removals.device_created(index)
        self._devices.made(name, index)
        return tun

    async def apply(self, desired: NetworkState) -> list[Change]:
        """See `Kernel.apply`."""
        async with self._lock:
            self._desired = desired
            applied, refused = await self._change_to(desired)
            if refused:
                raise ChangesRefusedError(refused, applied)
            return applied

    async def next_hop(self, address: Address) -> NextHop | None:
        """See `Kernel.next_hop`."""
        return await lookup.next_hop(address, self._devices.own)

    async def default_hop(self, version: Literal[4, 6]) -> NextHop | None:
        """See `Kernel.default_hop`."""
        return await lookup.default_hop(version, self._devices.own)

    async def local_networks(self) -> list[LocalNetwork]:
        """See `Kernel.local_networks`."""
        return await lookup.local_networks(self._devices.own)

    def watch(self, changed: Callable[[], None], woke: Callable[[float], None] | None = None) -> None:
        """See `Kernel.watch`. A sleep is not noticed here: addresses and links tell of it as they come back."""
        del woke
        self._watchers.append(changed)

    @property
    def applied(self) -> Applied:
        """What this process has in the kernel now."""
        return self._carrier.applied

    @property
    def _carrier(self) -> Applier:
        if self._open is None:
            raise RuntimeError("the kernel is not open")
        return self._open.carrier

    async def _change_to(self, desired: NetworkState) -> Outcome:
        carrier = self._carrier
        if self._inherited:
            for thing in await inherited.of_devices(self._inherited & self._devices.own.keys()):
                carrier.applied.add(thing)
            self._inherited.clear()
        wanted = self._without_closed_devices(desired)
        changes = await self._difference(wanted)
        doubtful: set[Thing] = {change.previous for change in changes if isinstance(change.previous, Route)}
        if self._stale or doubtful:
            # A replacement would overwrite whatever took the place of a route of ours that is gone.
            doubtful.update(carrier.pins() if self._stale else ())
            self._stale = False
            if await carrier.forget_lost(doubtful):
                changes = await self._difference(wanted)
        return await carrier.carry_out(changes, wanted.filters)

    async def _difference(self, wanted: NetworkState) -> tuple[Change, ...]:
        actual = self._carrier.applied.state()
        if len(wanted.routes) + len(actual.routes) < _MANY:
            return difference(wanted, actual)
        return await asyncio.to_thread(difference, wanted, actual)

    async def _mend(self) -> RepairResult:
        """Put back what is missing of the state that was asked for last."""
        async with self._lock:
            if self._open is None:
                return RepairResult()
            carrier = self._carrier
            lost = self._owed | await carrier.forget_lost(carrier.applied.things())
            if not lost:
                return RepairResult()
            self._stale = False
            self._owed.clear()
            if self._desired is None:
                carrier.settle()
                return RepairResult()
            applied, refused = await self._change_to(self._desired)
            carrier.settle()
            mended = RepairResult(
                [change for change in applied if change.what in lost],
                [(change, reason) for change, reason in refused if change.what in lost],
            )
            self._owed.update(change.what for change, _ in mended.refused)
            return mended

    def _host_changed(self) -> None:
        self._stale = True
        if self._open is not None and self._open.repairer is not None:
            self._open.repairer.host_changed()
        for changed in self._watchers:
            changed()

    def _device_closed(self, tun: LinuxTun) -> None:
        """Addresses and routes went with it."""
        index = self._devices.gone(tun.name)
        if index is not None:
            self._removals.device_closed(index)
        if self._open is not None:
            self._open.carrier.applied.drop_device(tun.name)

    def _without_closed_devices(self, desired: NetworkState) -> NetworkState:
        if not self._devices.closed:
            return desired
        # A name is only of interest for as long as the caller goes on to name it.
        self._devices.closed &= devices_of(desired)
        return without_devices(desired, self._devices.closed)

    async def _release(self, opened: _Open, *, keep_journal: bool) -> None:
        self._open = None
        await opened.close()
        self._journal.close(keep=keep_journal)


async def _check_permission(netlink: Requests) -> None:
    try:
        await netlink.check_permission()
    except NetlinkError as error:
        if error.code == errno.EPERM:
            raise PermissionDeniedError(NOT_PERMITTED) from None
        raise UnavailableError(f"cannot use netlink: {os.strerror(error.code).lower()}") from None
