"""systemd as this service needs it: notifications, the descriptor store and socket units, and the kind of a stop.

Without systemd, nothing is sent, nothing was passed, and a stop is not a restart.
"""

import asyncio
import logging
import os
import select
import socket
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from dtun.handover.fdstore import PREFIXES

log = logging.getLogger("dtun.service")

FIRST_DESCRIPTOR = 3
"""The first descriptor that systemd passes (SD_LISTEN_FDS_START)."""

SEND_TIMEOUT = 1.0
"""Seconds for systemd to accept a descriptor."""

DBUS_TIMEOUT = 10.0
"""Seconds for systemd to answer over D-Bus. It waits for the end of this process meanwhile."""

_NAME = "org.freedesktop.systemd1"
_MANAGER = "/org/freedesktop/systemd1"


def _notify_address(environment: Mapping[str, str]) -> str | None:
    address = environment.get("NOTIFY_SOCKET", "")
    if address.startswith("@"):
        return "\0" + address[1:]  # Linux's abstract namespace
    return address if address.startswith("/") else None


# Notifications: see sd_notify(3).


def notify(*assignments: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Send for example "READY=1", "STATUS=2 clients". Returns whether it was sent; never raises."""
    address = _notify_address(environment)
    if address is None:
        return False
    message = "\n".join(assignment.replace("\n", " ") for assignment in assignments)
    with suppress(OSError, ValueError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        # A service manager that does not read must not block the tunnel.
        sender.setblocking(False)
        sender.sendto(message.encode(errors="replace"), address)
        return True
    return False


def notify_ready(status: str) -> bool:
    return notify("READY=1", f"STATUS={status}")


def notify_reloading() -> bool:
    """A reload has begun (Type=notify-reload); `notify_ready` ends it."""
    return notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def notify_status(text: str) -> bool:
    return notify(f"STATUS={text}")


def notify_stopping() -> bool:
    return notify("STOPPING=1")


def notify_watchdog() -> bool:
    return notify("WATCHDOG=1")


def watchdog_interval(environment: Mapping[str, str] = os.environ) -> float | None:
    """Seconds between two calls of `notify_watchdog`: half of systemd's timeout. None without a watchdog."""
    try:
        microseconds = int(environment.get("WATCHDOG_USEC", ""))
        watched = int(environment.get("WATCHDOG_PID", os.getpid()))
    except ValueError:
        return None
    return microseconds / 2_000_000 if microseconds > 0 and watched == os.getpid() else None


# Descriptors: see sd_listen_fds(3).


class SystemdFdStore:
    """Implements `dtun.handover.fdstore.FdStore`, and has the sockets of socket units.

    systemd keeps the descriptors over restarts, crashes and watchdog kills, until the service is stopped. The
    environment is read once; hooks do not inherit the descriptors.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = _notify_address(environment)
        self.keeps = self._address is not None
        self._inherited: dict[str, list[int]] = {}
        for name, descriptor in _passed_descriptors(environment):
            os.set_inheritable(descriptor, False)
            self._inherited.setdefault(name, []).append(descriptor)
        self.ports = frozenset(self._kept_ports())
        self._forgotten = False

    def keep(self, name: str, descriptor: int) -> None:
        """See `FdStore.keep`. Not polled (FDPOLL=0): systemd would drop a device at its first error."""
        self._send(f"FDSTOREREMOVE=1\nFDNAME={name}")
        self._send(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", descriptor)

    def forget(self, name: str) -> None:
        """See `FdStore.forget`."""
        self._forgotten = True
        self._send(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def take(self, name: str) -> int | None:
        """See `FdStore.take`. systemd keeps its copy."""
        descriptors = self._inherited.get(name)
        if descriptors:
            return descriptors.pop()
        if self._forgotten:
            self._wait_until_closed()
        return None

    def names(self) -> list[str]:
        """See `FdStore.names`."""
        return [name for name, descriptors in self._inherited.items() if descriptors]

    def listeners(self) -> list[socket.socket]:
        """See `FdStore.listeners`: the UDP sockets of a socket unit; empty without one."""
        found = []
        for name, descriptors in list(self._inherited.items()):
            if name.startswith(PREFIXES):
                continue
            del self._inherited[name]
            for descriptor in descriptors:
                listener = _udp_socket(descriptor)
                if listener is not None:
                    found.append(listener)
                else:
                    log.warning(
                        "%s passes something else than a UDP socket; it is not used (set ListenDatagram=)",
                        name,
                    )
        return found

    def close_rest(self) -> None:
        """See `FdStore.close_rest`."""
        for name, descriptors in self._inherited.items():
            for descriptor in descriptors:
                os.close(descriptor)
                self.forget(name)
        self._inherited.clear()

    def _kept_ports(self) -> Iterator[int]:
        for descriptors in self._inherited.values():
            for descriptor in descriptors:
                if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                    continue
                with socket.socket(fileno=os.dup(descriptor)) as kept:
                    if kept.family in (socket.AF_INET, socket.AF_INET6):
                        yield kept.getsockname()[1]

    def _wait_until_closed(self) -> None:
        """Wait until systemd has closed what was forgotten: it has no hold on a device's name or a port any more.

        systemd reads the messages in order, and closes the pipe when it comes to this one (sd_notify(3): BARRIER).
        """
        self._forgotten = False
        reading, writing = os.pipe()
        try:
            self._send("BARRIER=1", writing)
        finally:
            os.close(writing)
        try:
            select.select([reading], [], [], SEND_TIMEOUT)
        finally:
            os.close(reading)

    def _send(self, message: str, *descriptors: int) -> None:
        if self._address is None:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            # Blocking, but not for long: a descriptor that systemd does not accept now is lost with this process.
            sender.settimeout(SEND_TIMEOUT)
            sender.connect(self._address)
            socket.send_fds(sender, [message.encode()], descriptors)


def _udp_socket(descriptor: int) -> socket.socket | None:
    """The descriptor as a UDP socket; closed if it is something else."""
    try:
        found = socket.socket(fileno=descriptor)
    except OSError:  # a FIFO, a file
        os.close(descriptor)
        return None
    if found.type == socket.SOCK_DGRAM and found.family in (socket.AF_INET, socket.AF_INET6):
        found.setblocking(False)
        return found
    found.close()
    return None


def _passed_descriptors(environment: Mapping[str, str]) -> list[tuple[str, int]]:
    try:
        count = int(environment.get("LISTEN_FDS", "0"))
        is_ours = int(environment.get("LISTEN_PID", "0")) == os.getpid()
    except ValueError:
        return []
    if not is_ours:
        return []
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    names += ["unknown"] * (count - len(names))
    return list(zip(names, range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + count), strict=False))


# The kind of a stop: see org.freedesktop.systemd1(5).


async def is_restart() -> bool:
    """Whether this stop is the first half of a restart, which only systemd knows. False if it cannot be asked."""
    if "INVOCATION_ID" not in os.environ or "NOTIFY_SOCKET" not in os.environ:
        return False
    try:
        async with asyncio.timeout(DBUS_TIMEOUT):
            return await _job_type(os.getpid()) == "restart"
    except (OSError, TimeoutError, LookupError, ValueError) as error:
        log.info("cannot ask systemd whether this is a restart (%s); everything is removed", error)
        return False


async def _job_type(pid: int) -> str:
    """The type of systemd's job for the unit of this process; "" without a job."""
    # Imported here, for it is needed once, at the end.
    from jeepney import DBusAddress, new_method_call  # noqa: PLC0415
    from jeepney.io.asyncio import open_dbus_router  # noqa: PLC0415

    async with open_dbus_router(bus="SYSTEM") as router:

        async def call(path: str, interface: str, method: str, signature: str, *arguments: object) -> Any:
            address = DBusAddress(path, bus_name=_NAME, interface=interface)
            reply = await router.send_and_get_reply(new_method_call(address, method, signature, arguments))
            if reply.header.message_type.name != "method_return":
                raise LookupError(f"{method}: {reply.body}")
            return reply.body[0]

        async def get(path: str, interface: str, name: str) -> Any:
            _, value = await call(path, "org.freedesktop.DBus.Properties", "Get", "ss", interface, name)
            return value

        unit = await call(_MANAGER, f"{_NAME}.Manager", "GetUnitByPID", "u", pid)
        number, job = await get(unit, f"{_NAME}.Unit", "Job")
        return str(await get(job, f"{_NAME}.Job", "JobType")) if number else ""
