"""The network configuration of a Mac: utun, ioctl, routing sockets, sysctl."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Hashable
from pathlib import Path
from typing import Literal

from dtun.errors import PermissionDeniedError, UnavailableError
from dtun.network.difference import Change
from dtun.network.state import Address, Network, NetworkState, Sysctl
from dtun.platform import resolv_conf
from dtun.platform.darwin import errors, lookup, sysctl
from dtun.platform.darwin.applied import Applied
from dtun.platform.darwin.applier import Applier
from dtun.platform.darwin.monitor import Monitor
from dtun.platform.darwin.operations import Operations
from dtun.platform.darwin.resolver import Resolver, ResolverError
from dtun.platform.darwin.sleep import SleepWatch
from dtun.platform.darwin.sysctl import Settings
from dtun.platform.darwin.tun import DarwinTun, open_tun
from dtun.platform.interface import ChangesRefusedError, ForeignRule, HostRoute, LocalNetwork, NextHop
from dtun.platform.journal import Journal
from dtun.platform.repair import Repairer, RepairResult

log = logging.getLogger("dtun.platform")

RUNTIME_DIRECTORY = Path("/var/run/dtun")
"""Emptied at each boot, like Linux's /run."""

SLEEP_INTERVAL = 2.0
"""Seconds between two checks for whether the computer has slept."""


class DarwinKernel:
    """Implements `dtun.platform.interface.Kernel`.

    What this process has applied is kept in memory, and each desired state is compared with that. Memory is compared
    with the kernel before something is replaced or removed, and after the host's network has changed.
    """

    def __init__(
        self, instance: str, runtime_directory: Path | None = None, resolver_directory: Path | None = None
    ) -> None:
        self._journal = Journal(instance, runtime_directory or RUNTIME_DIRECTORY)
        self._settings = Settings(self._journal)
        self._resolver = Resolver(instance, resolver_directory)
        self._applied = Applied(self._journal)
        self._desired: NetworkState | None = None
        self._watchers: list[Callable[[], None]] = []
        self._wakers: list[Callable[[float], None]] = []
        self._host_routes: frozenset[Hashable] = frozenset()
        self._lock = asyncio.Lock()
        self._operations: Operations | None = None
        self._repairer: Repairer | None = None
        self._monitor: Monitor | None = None
        self._sleep: SleepWatch | None = None

    async def open(self) -> None:
        """See `Kernel.open`."""
        try:
            self._operations = Operations(self._settings, self._resolver)
            self._operations.check_permission()
            self._applied.adopt(self._journal.open())
            self._resolver.clear()
            # Before the routes are read, so that no change is missed in between.
            self._repairer = Repairer(self._repair)
            self._monitor = Monitor(self._check)
            self._sleep = SleepWatch(self._woke, SLEEP_INTERVAL)
            self._host_routes = lookup.host_routes(self._applied.devices)
        except OSError as error:
            await self._release(keep_journal=True)
            if error.errno == errors.EPERM:
                raise PermissionDeniedError(errors.NOT_PERMITTED) from None
            raise UnavailableError(
                f"cannot use the kernel's routing sockets: {errors.reason(error)}"
            ) from None
        except ResolverError as error:
            await self._release(keep_journal=True)
            raise UnavailableError(str(error)) from None
        except BaseException:
            await self._release(keep_journal=True)
            raise

    async def close(self) -> None:
        """See `Kernel.close`."""
        if self._operations is None:
            return
        if self._repairer is not None:
            await self._repairer.close()
        try:
            await self.apply(NetworkState())
        finally:
            # Those of a device that was closed before, too.
            with contextlib.suppress(ResolverError):
                self._resolver.clear()
            await self._release(keep_journal=bool(self._journal.entries))

    async def detach(self) -> None:
        """See `Kernel.detach`."""
        if self._operations is not None:
            async with self._lock:
                await self._release(keep_journal=True)

    def create_tun(self, name: str, descriptor: int | None = None) -> DarwinTun:
        """See `Kernel.create_tun`. Only "utun" with a number is used as a name; else the device has the next free one.

        `descriptor` must be None: launchd has no descriptor store.
        """
        if descriptor is not None:
            raise UnavailableError(
                f"cannot take over the device {name}: macOS does not keep devices over a restart"
            )
        tun = open_tun(name, lambda closed: self._applied.device_closed(closed.name))
        self._applied.device_opened(tun.name)
        return tun

    async def apply(self, desired: NetworkState) -> list[Change]:
        """See `Kernel.apply`. Refuses what macOS does not support (dtun.platform.darwin.unsupported)."""
        async with self._lock:
            self._desired = desired
            with errors.unavailable_if_refused():
                made, refused = await self._applier.apply(desired)
        if refused:
            raise ChangesRefusedError(refused, made)
        return made

    async def next_hop(self, address: Address, mark: int | None = None) -> NextHop | None:
        """See `Kernel.next_hop`; there are no marks."""
        del mark
        with errors.unavailable_if_refused():
            return lookup.next_hop(address, self._applied.devices)

    async def default_hop(self, version: Literal[4, 6]) -> NextHop | None:
        """See `Kernel.default_hop`."""
        with errors.unavailable_if_refused():
            return lookup.default_hop(version, self._applied.devices)

    async def local_networks(self) -> list[LocalNetwork]:
        """See `Kernel.local_networks`."""
        with errors.unavailable_if_refused():
            return lookup.local_networks(self._applied.devices)

    async def host_routes(self, *, connected: bool) -> list[HostRoute]:
        """See `Kernel.host_routes`."""
        with errors.unavailable_if_refused():
            return lookup.routed_networks(self._applied.devices, connected=connected)

    def has(self, setting: Sysctl) -> bool:
        """See `Kernel.has`."""
        try:
            return sysctl.is_known(setting) and sysctl.is_set(setting)
        except OSError:
            return False

    async def foreign_rules(self) -> list[ForeignRule]:
        """MacOS has no policy rules."""
        return []

    async def forwarding_obstacles(
        self, devices: Collection[str], networks: Collection[Network]
    ) -> list[str]:
        """On macOS, `pfctl -sr` shows them."""
        del devices, networks
        return []

    async def forget_connections(self, networks: Collection[Network], but: Collection[Network]) -> None:
        """A packet filter of macOS keeps its states: dtun has no part in them."""

    async def advertised_devices(self) -> list[str]:
        """See `Kernel.advertised_devices`. A Mac decides for each interface whether it takes them."""
        return []

    def name_servers(self) -> list[Address]:
        """See `Kernel.name_servers`."""
        return resolv_conf.name_servers()

    def watch(self, changed: Callable[[], None], woke: Callable[[float], None] | None = None) -> None:
        """See `Kernel.watch`. Without `woke`, `changed` is called after a sleep."""
        self._watchers.append(changed)
        self._wakers.append(woke or (lambda _: changed()))

    @property
    def _applier(self) -> Applier:
        if self._operations is None:
            raise RuntimeError("the kernel is not open")
        return Applier(self._applied, self._operations)

    def _check(self) -> None:
        """After a possible change: call the watchers if the host's routes changed; repair what of ours is missing."""
        try:
            host_routes = lookup.host_routes(self._applied.devices)
            # Not while changes are made: they may add what is missing.
            missing = not self._lock.locked() and self._applied.missing()
        except OSError as error:
            _warn_unreadable(error)
            return
        if missing and self._repairer is not None:
            self._applied.mark_stale()
            self._repairer.removed()
        if host_routes != self._host_routes:
            self._host_routes = host_routes
            self._applied.mark_stale()
            for changed in self._watchers:
                changed()

    async def _repair(self) -> RepairResult:
        """Restore what other programs removed."""
        async with self._lock:
            with errors.unavailable_if_refused():
                missing = self._applied.missing()
                if self._desired is None or not missing:
                    return RepairResult()
                self._applied.mark_stale()
                made, refused = await self._applier.apply(self._desired)
            # Other refusals have been reported by `apply`.
            return RepairResult(
                made, [(change, reason) for change, reason in refused if change.what in missing]
            )

    def _woke(self, seconds: float) -> None:
        log.info("the computer has slept for %.0f s", seconds)
        self._applied.mark_stale()
        try:
            self._host_routes = lookup.host_routes(self._applied.devices)
        except OSError as error:
            _warn_unreadable(error)
        for woke in self._wakers:
            woke(seconds)

    async def _release(self, *, keep_journal: bool) -> None:
        if self._repairer is not None:
            await self._repairer.close()
        for watch in (self._monitor, self._sleep, self._operations):
            if watch is not None:
                watch.close()
        self._repairer = self._monitor = self._sleep = self._operations = None
        self._journal.close(keep=keep_journal)


def _warn_unreadable(error: OSError) -> None:
    log.warning("cannot check the host's network: %s", errors.reason(error))
