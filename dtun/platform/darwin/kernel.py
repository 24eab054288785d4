"""The network configuration of a Mac: utun, ioctl, routing sockets, sysctl."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from dtun.errors import PermissionDeniedError, UnavailableError
from dtun.network.difference import Change
from dtun.network.state import Address, NetworkState, PointToPoint, Route
from dtun.platform.darwin import errors, lookup, unsupported
from dtun.platform.darwin.applied import Applied
from dtun.platform.darwin.flat import flatten
from dtun.platform.darwin.monitor import Monitor
from dtun.platform.darwin.operations import Operations
from dtun.platform.darwin.resolver import Resolver, ResolverError
from dtun.platform.darwin.settings import Settings
from dtun.platform.darwin.sleep import SleepWatch
from dtun.platform.darwin.utun import DarwinTun, open_utun
from dtun.platform.interface import ChangesRefusedError, LocalNetwork, NextHop
from dtun.platform.journal import Journal
from dtun.platform.repair import Repairer, RepairResult

log = logging.getLogger("dtun.platform")

RUNTIME_DIRECTORY = Path("/var/run/dtun")
"""Emptied at each boot, like /run of Linux."""

SLEEP_INTERVAL = 2.0
"""Seconds awake between two looks at the clocks, for whether the computer has slept."""

TURN = 256
"""Changes in a row, before the data plane has a turn."""


class DarwinKernel:
    """Implements `dtun.platform.interface.Kernel`.

    What this process has applied is kept in memory, and each desired state compared with it. Before something is
    replaced or removed, and after the host's network has changed, memory is compared with the kernel.
    """

    def __init__(
        self, instance: str, runtime_directory: Path | None = None, resolver_directory: Path | None = None
    ) -> None:
        self._journal = Journal(instance, runtime_directory or RUNTIME_DIRECTORY)
        self._settings = Settings(self._journal)
        self._resolver = Resolver(instance, resolver_directory)
        self._own = Applied(self._journal)
        self._desired: NetworkState | None = None
        self._watchers: list[Callable[[], None]] = []
        self._wakers: list[Callable[[float], None]] = []
        self._view: frozenset[Hashable] = frozenset()
        self._lock = asyncio.Lock()
        self._open_changer: Operations | None = None
        self._repairer: Repairer | None = None
        self._monitor: Monitor | None = None
        self._sleep: SleepWatch | None = None

    async def open(self) -> None:
        """See `Kernel.open`."""
        try:
            self._open_changer = Operations(self._settings, self._resolver)
            self._open_changer.check_permission()
            self._own.adopt(self._journal.open())
            self._resolver.clear()
            # Before the first look, so that nothing is missed between the two.
            self._repairer = Repairer(self._mend)
            self._monitor = Monitor(self._look)
            self._sleep = SleepWatch(self._woke, SLEEP_INTERVAL)
            self._view = lookup.view(self._own.devices)
        except OSError as error:
            await self._release(keep_journal=True)
            if error.errno == errors.EPERM:
                raise PermissionDeniedError(errors.NOT_PERMITTED) from None
            raise UnavailableError(
                f"cannot use the kernel's routing sockets: {errors.words(error)}"
            ) from None
        except ResolverError as error:
            await self._release(keep_journal=True)
            raise UnavailableError(str(error)) from None
        except BaseException:
            await self._release(keep_journal=True)
            raise

    async def close(self) -> None:
        """See `Kernel.close`."""
        if self._open_changer is None:
            return
        if self._repairer is not None:
            await self._repairer.close()
        try:
            await self.apply(NetworkState())
        finally:
            # Also of a device that was closed before.
            with contextlib.suppress(ResolverError):
                self._resolver.clear()
            await self._release(keep_journal=bool(self._journal.entries))

    async def detach(self) -> None:
        """See `Kernel.detach`."""
        if self._open_changer is not None:
            async with self._lock:
                await self._release(keep_journal=True)

    def create_tun(self, name: str, descriptor: int | None = None) -> DarwinTun:
        """See `Kernel.create_tun`. Only utun with a number is taken by its word; the device tells its real name.

        Nobody keeps a descriptor for us: launchd has no such thing.
        """
        if descriptor is not None:
            raise UnavailableError(
                f"cannot take over the device {name}: macOS keeps none from one start to the next"
            )
        tun = open_utun(name, lambda closed: self._own.closed(closed.name))
        self._own.opened(tun.name)
        return tun

    async def apply(self, desired: NetworkState) -> list[Change]:
        """See `Kernel.apply`. What macOS cannot do is refused: dtun.platform.darwin.unsupported."""
        async with self._lock:
            self._desired = desired
            applied, refused = await self._apply(desired)
        if refused:
            raise ChangesRefusedError(refused, applied)
        return applied

    async def next_hop(self, address: Address) -> NextHop | None:
        """See `Kernel.next_hop`."""
        with errors.in_words():
            return lookup.next_hop(address, self._own.devices)

    async def default_hop(self, version: Literal[4, 6]) -> NextHop | None:
        """See `Kernel.default_hop`."""
        with errors.in_words():
            return lookup.default_hop(version, self._own.devices)

    async def local_networks(self) -> list[LocalNetwork]:
        """See `Kernel.local_networks`."""
        with errors.in_words():
            return lookup.local_networks(self._own.devices)

    def watch(self, changed: Callable[[], None], woke: Callable[[float], None] | None = None) -> None:
        """See `Kernel.watch`. `woke` is called, with the seconds slept, when the computer has slept; else `changed`."""
        self._watchers.append(changed)
        self._wakers.append(woke or (lambda _: changed()))

    @property
    def _changer(self) -> Operations:
        if self._open_changer is None:
            raise RuntimeError("the kernel is not open")
        return self._open_changer

    async def _apply(self, desired: NetworkState) -> tuple[list[Change], list[tuple[Change, str]]]:
        own = self._own
        possible, impossible = unsupported.split(own.without_closed(desired))
        origins = flatten(possible.routes)
        wanted = replace(possible, routes=frozenset(origins))
        own.announce(wanted)
        applied, refused = await self._make(own.changes(wanted))
        devices = {
            change.what.device
            for change in applied
            if isinstance(change.what, PointToPoint) and change.action != "add"
        }
        if devices & own.devices:
            # The kernel may have dropped routes with an address that went; the others still have it as their source.
            own.forget_lost()
            for route in own.routes_through(devices):
                with contextlib.suppress(OSError):
                    self._changer.refresh(route)
            again, refused = await self._make(own.changes(wanted))
            applied += again
        own.settle()
        # A piece of a route that is refused speaks for the whole.
        whole = {
            origins.get(change.what, change.what) if isinstance(change.what, Route) else change.what: (
                change,
                reason,
            )
            for change, reason in reversed(refused)
        }
        refusals = [(Change("add", thing), reason) for thing, reason in impossible]
        refusals += [(Change(change.action, thing), reason) for thing, (change, reason) in whole.items()]
        return applied, refusals

    async def _make(self, changes: Sequence[Change]) -> tuple[list[Change], list[tuple[Change, str]]]:
        applied: list[Change] = []
        refused: list[tuple[Change, str]] = []
        for count, change in enumerate(changes, 1):
            if count % TURN == 0:
                await asyncio.sleep(0)
            reason = self._changer.refusal(change)
            if reason is None:
                self._own.note(change)
                applied.append(change)
            else:
                refused.append((change, reason))
        return applied, refused

    def _look(self) -> None:
        """Something may have happened: tell the watchers if it has, and the repairer if it was to us."""
        try:
            view = lookup.view(self._own.devices)
            # While changes are made, what is missing is on its way.
            lost = not self._lock.locked() and self._own.lost()
        except OSError as error:
            log.warning("cannot check the host's network: %s", errors.words(error))
            return
        if lost and self._repairer is not None:
            self._own.stale = True
            self._repairer.removed()
        if view != self._view:
            self._view = view
            self._own.stale = True
            for changed in self._watchers:
                changed()

    async def _mend(self) -> RepairResult:
        """Put back what others have taken."""
        async with self._lock:
            with errors.in_words():
                lost = self._own.lost()
            if self._desired is None or not lost:
                return RepairResult()
            self._own.stale = True
            applied, refused = await self._apply(self._desired)
            # What was refused before is refused still, and that is known.
            return RepairResult(
                applied, [(change, reason) for change, reason in refused if change.what in lost]
            )

    def _woke(self, seconds: float) -> None:
        log.info("the computer has slept for %.0f s", seconds)
        self._own.stale = True
        self._view = lookup.view(self._own.devices)
        for woke in self._wakers:
            woke(seconds)

    async def _release(self, *, keep_journal: bool) -> None:
        if self._repairer is not None:
            await self._repairer.close()
        for watch in (self._monitor, self._sleep, self._open_changer):
            if watch is not None:
                watch.close()
        self._repairer = self._monitor = self._sleep = self._open_changer = None
        self._journal.close(keep=keep_journal)
