"""The network configuration of a Linux host: TUN devices by ioctl, everything else by netlink."""

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from dtun.errors import PermissionDeniedError, UnavailableError
from dtun.network.difference import Change, Thing, difference, slot
from dtun.network.state import Address, Link, NetworkState, PointToPoint, Route
from dtun.platform.interface import ChangesRefusedError, LocalNetwork, NextHop
from dtun.platform.linux import lookup
from dtun.platform.linux.changer import GONE, NOT_PERMITTED, Changer
from dtun.platform.linux.journal import Journal, runtime_directory as usual_directory
from dtun.platform.linux.monitor import HostView, Monitor
from dtun.platform.linux.netlink import ROUTE_PROTOCOL, Netlink, NetlinkError
from dtun.platform.linux.tun import LinuxTun, open_tun


class LinuxKernel:
    """Implements `dtun.platform.interface.Kernel`.

    What this process has applied is kept in memory, and each desired state compared with it: a kernel with a
    full routing table is not read for each client. It is read again after the host's network changed, because
    the kernel drops routes with the link or the address under them.
    """

    def __init__(self, instance: str, runtime_directory: Path | None = None) -> None:
        self._journal = Journal(instance, runtime_directory or usual_directory())
        self._view = HostView()
        self._watchers: list[Callable[[], None]] = []
        self._applied: set[Thing] = set()
        self._devices: set[str] = set()
        self._closed_devices: set[str] = set()
        self._stale = False
        self._lock = asyncio.Lock()
        self._open_netlink: Netlink | None = None
        self._monitor: Monitor | None = None

    async def open(self) -> None:
        """See `Kernel.open`."""
        self._open_netlink = Netlink()
        try:
            await self._check_permission()
            await self._remove_leftovers(self._journal.open())
            # Before the first look, so that nothing is missed between the two.
            self._monitor = Monitor(self._view, self._host_changed)
            await lookup.look_around(self._netlink, self._view)
        except BaseException:
            self._release(keep_journal=True)
            raise

    async def close(self) -> None:
        """See `Kernel.close`."""
        if self._open_netlink is None:
            return
        try:
            await self.apply(NetworkState())
        finally:
            self._release(keep_journal=bool(self._pins(self._applied)))

    def create_tun(self, name: str) -> LinuxTun:
        """See `Kernel.create_tun`."""
        tun = open_tun(name, self._device_closed)
        self._view.own.add(socket.if_nametoindex(name))
        self._devices.add(name)
        self._closed_devices.discard(name)
        return tun

    async def apply(self, desired: NetworkState) -> list[Change]:
        """See `Kernel.apply`."""
        async with self._lock:
            wanted = self._without_closed_devices(desired)
            changes = difference(wanted, _state(self._applied))
            if self._stale or any(isinstance(change.previous, Route) for change in changes):
                # A replacement would overwrite whatever took the place of a route of ours that is gone.
                await self._forget_lost_routes(changes)
                changes = difference(wanted, _state(self._applied))
            pins_change = any(self._pins((change.what,)) for change in changes)
            if pins_change:
                self._journal.write(self._pins(self._applied | wanted.routes))
            applied: list[Change] = []
            refused: list[tuple[Change, str]] = []
            changer = Changer(self._netlink)
            for change in changes:
                if reason := await self._carry_out(changer, change):
                    refused.append((change, reason))
                else:
                    applied.append(change)
            if pins_change:
                self._journal.write(self._pins(self._applied))
            if refused:
                raise ChangesRefusedError(refused, applied)
            return applied

    async def next_hop(self, address: Address) -> NextHop | None:
        """See `Kernel.next_hop`."""
        return await lookup.next_hop(self._netlink, address, self._devices)

    async def local_networks(self) -> list[LocalNetwork]:
        """See `Kernel.local_networks`."""
        return await lookup.local_networks(self._netlink, self._devices)

    def watch(self, changed: Callable[[], None]) -> None:
        """See `Kernel.watch`."""
        self._watchers.append(changed)

    @property
    def _netlink(self) -> Netlink:
        if self._open_netlink is None:
            raise RuntimeError("the kernel is not open")
        return self._open_netlink

    def _host_changed(self) -> None:
        self._stale = True
        for changed in self._watchers:
            changed()

    def _device_closed(self, tun: LinuxTun) -> None:
        """Addresses and routes went with it."""
        self._devices.discard(tun.name)
        self._closed_devices.add(tun.name)
        self._applied = {thing for thing in self._applied if _device(thing) != tun.name}

    def _without_closed_devices(self, desired: NetworkState) -> NetworkState:
        if not self._closed_devices:
            return desired
        closed = self._closed_devices
        # A name is only of interest for as long as the caller goes on to name it.
        self._closed_devices = closed & {_device(thing) for thing in _things(desired)}
        return _state(thing for thing in _things(desired) if _device(thing) not in closed)

    def _pins(self, things: Iterable[Thing]) -> frozenset[Route]:
        """The routes that outlive this process: those through devices that are not its own."""
        return frozenset(
            thing for thing in things if isinstance(thing, Route) and thing.device not in self._devices
        )

    async def _check_permission(self) -> None:
        try:
            await self._netlink.check_permission()
        except NetlinkError as error:
            if error.code == errno.EPERM:
                raise PermissionDeniedError(NOT_PERMITTED) from None
            raise UnavailableError(f"cannot use netlink: {os.strerror(error.code).lower()}") from None

    async def _remove_leftovers(self, leftovers: frozenset[Route]) -> None:
        for leftover in leftovers - await self._lost(leftovers):
            await self._netlink.remove_route(leftover)
        self._journal.write(())

    async def _forget_lost_routes(self, changes: Iterable[Change]) -> None:
        """Compare memory with the kernel: the pins, and the routes that are about to be replaced."""
        self._stale = False
        replaced = {change.previous for change in changes if isinstance(change.previous, Route)}
        self._applied -= await self._lost(self._pins(self._applied) | replaced)

    async def _lost(self, routes: Iterable[Route]) -> frozenset[Route]:
        """Those of `routes` that the kernel does not have, or not as ours."""
        by_device: dict[tuple[int, str], set[Route]] = {}
        for route in routes:
            by_device.setdefault((route.destination.version, route.device), set()).add(route)
        lost: set[Route] = set()
        for (version, device), wanted in by_device.items():
            try:
                existing = await self._netlink.routes(version, ROUTE_PROTOCOL, device)
            except NetlinkError as error:
                if error.code not in GONE:
                    raise
                existing = []
            slots = {slot(found.route): found for found in existing}
            lost |= {
                route for route in wanted if not ((found := slots.get(slot(route))) and found.is_ours(route))
            }
        return frozenset(lost)

    async def _carry_out(self, changer: Changer, change: Change) -> str | None:
        """Returns why not, if the kernel refuses; else remembers it."""
        reason = await changer.refusal(change)
        if _device(change.what) in self._closed_devices:
            return None  # Closed in the meantime: whether it was done or refused, it is gone.
        if reason:
            return reason
        if change.previous is not None:
            self._applied.discard(change.previous)
        if change.action == "remove":
            self._applied.discard(change.what)
        else:
            self._applied.add(change.what)
        return None

    def _release(self, *, keep_journal: bool) -> None:
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None
        netlink, self._open_netlink = self._open_netlink, None
        if netlink is not None:
            netlink.close()
        self._journal.close(keep=keep_journal)


def _device(thing: Thing) -> str:
    return thing.name if isinstance(thing, Link) else thing.device


def _things(state: NetworkState) -> Iterator[Thing]:
    yield from state.links
    yield from state.addresses
    yield from state.routes


def _state(things: Iterable[Thing]) -> NetworkState:
    links, addresses, routes = set[Link](), set[PointToPoint](), set[Route]()
    for thing in things:
        match thing:
            case Link():
                links.add(thing)
            case PointToPoint():
                addresses.add(thing)
            case Route():
                routes.add(thing)
    return NetworkState(frozenset(links), frozenset(addresses), frozenset(routes))
