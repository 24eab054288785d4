"""Name servers of the tunnel's device, set by systemd-resolved's D-Bus interface org.freedesktop.resolve1(5).

root may set them. For other users resolved asks polkit, so CAP_NET_ADMIN is not enough: a service with its own user
needs polkit and a rule that allows four actions:

    org.freedesktop.resolve1.set-dns-servers
    org.freedesktop.resolve1.set-domains
    org.freedesktop.resolve1.set-default-route
    org.freedesktop.resolve1.revert
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from jeepney import (
    DBusAddress,
    HeaderFields,
    Message,
    MessageFlag,
    MessageType,
    new_method_call,
)
from jeepney.auth import BEGIN, Authenticator
from jeepney.bus import get_bus
from jeepney.io.asyncio import DBusConnection

from dtun.errors import UnavailableError
from dtun.network.state import Dns
from dtun.platform.linux.netlink.sockets import device_index

TIMEOUT: Final = 5.0
"""Seconds for all D-Bus calls of one `apply` or `revert`."""

FIRST_DELAY: Final = 1.0
LONGEST_DELAY: Final = 60.0
"""Seconds until a failed restore is retried: doubled from the first to the longest."""

_NAME: Final = "org.freedesktop.resolve1"
_RESOLVED: Final = DBusAddress("/org/freedesktop/resolve1", _NAME, "org.freedesktop.resolve1.Manager")
_BUS: Final = DBusAddress("/org/freedesktop/DBus", "org.freedesktop.DBus", "org.freedesktop.DBus")
# D-Bus Specification, "Message Bus Messages".
_OWNER_CHANGED: Final = (
    f"type='signal',sender='org.freedesktop.DBus',member='NameOwnerChanged',arg0='{_NAME}'"
)

_NO_BUS: Final = (
    "cannot reach the system's D-Bus ({}), through which dtun sets name servers in systemd-resolved; "
    "install dbus and systemd-resolved, or set the name servers in the `up` hook instead of by `dns`"
)
_NO_RESOLVED: Final = (
    "systemd-resolved is not running; start it (systemctl enable --now systemd-resolved), "
    "or set the name servers in the `up` hook instead of by `dns`"
)
_NOT_PERMITTED: Final = (
    "systemd-resolved does not allow this user to set name servers; run dtun as root, "
    "or install polkit and the rule for dtun's user"
)
_MANAGED: Final = (
    "systemd-networkd manages {}, and accepts name servers from its own files only; "
    "install dtun's drop-ins for networkd, or exempt the device with Unmanaged=yes"
)

_FORBIDDEN: Final = (
    "org.freedesktop.DBus.Error.AccessDenied",
    "org.freedesktop.DBus.Error.AuthFailed",
    "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired",
)
_NO_SUCH_LINK: Final = "org.freedesktop.resolve1.NoSuchLink"
_LINK_BUSY: Final = "org.freedesktop.resolve1.LinkBusy"
_NO_REPLY: Final = ("org.freedesktop.DBus.Error.NoReply", "org.freedesktop.DBus.Error.Timeout")

logger = logging.getLogger(__name__)


class ResolvedError(UnavailableError):
    """The name servers cannot be set or reverted: one line that says why and what to do."""


class _AbsentError(ResolvedError):
    """There is no such device, no resolved or no bus, so there is nothing to revert."""


class _ErrorReply(Exception):  # noqa: N818 - named after the message
    """An error message of D-Bus: its name, its sender and its text."""

    def __init__(self, message: Message) -> None:
        fields = message.header.fields
        self.name: str = fields[HeaderFields.error_name]
        self.sender: str | None = fields.get(HeaderFields.sender)
        super().__init__(message.body[0] if message.body else self.name)


class Resolved:
    """The name servers that this process has set.

    They are set again after a restart of resolved or of the bus.
    """

    def __init__(self, bus_address: str | None = None) -> None:
        """`bus_address` as in the D-Bus specification, "unix:path=..."; None: the system's bus."""
        self._address = bus_address or "SYSTEM"
        self._applied: dict[str, Dns] = {}
        self._bus: _Bus | None = None
        self._lock = asyncio.Lock()
        self._owner_changed = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None

    async def apply(self, dns: Dns) -> None:
        """Set name servers for the domains of `dns`; for every name if "~." is one of them or there are none.

        Replaces the device's previous settings. resolved uses them once the device is up and has an address.

        Raises:
            ResolvedError: the device does not exist, networkd manages it, resolved does not run, or it refuses or does
                not reply within `TIMEOUT`.
        """
        async with self._lock:
            await self._set(dns)
            self._applied[dns.device] = dns
        if self._watch is None:
            self._watch = asyncio.create_task(self._restore())

    async def revert(self, device: str) -> None:
        """Remove all settings of this device, unless the device or resolved is gone.

        Raises:
            ResolvedError: resolved refuses, or does not reply within `TIMEOUT`.
        """
        async with self._lock:
            self._applied.pop(device, None)
            with suppress(_AbsentError), _explained_errors(device):
                async with asyncio.timeout(TIMEOUT):
                    index = _index(device)
                    await (await self._connected()).call("RevertLink", "i", (index,), start=False)

    async def close(self) -> None:
        """Close the connection. The settings stay until the device is removed."""
        if self._watch is not None:
            self._watch.cancel()
            with suppress(asyncio.CancelledError):
                await self._watch
            self._watch = None
        if self._bus is not None:
            await self._bus.close()
            self._bus = None

    async def _set(self, dns: Dns) -> None:
        domains = [(domain.removeprefix("~"), domain.startswith("~")) for domain in dns.domains]
        servers = [
            (socket.AF_INET if server.version == 4 else socket.AF_INET6, server.packed)
            for server in dns.servers
        ]
        with _explained_errors(dns.device):
            async with asyncio.timeout(TIMEOUT):
                index = _index(dns.device)
                bus = await self._connected()
                # The servers come last: until then, resolved uses none of the settings.
                everything = "~." in dns.domains or not dns.domains
                await bus.call("SetLinkDefaultRoute", "ib", (index, everything))
                await bus.call("SetLinkDomains", "ia(sb)", (index, domains))
                await bus.call("SetLinkDNS", "ia(iay)", (index, servers))

    async def _connected(self) -> "_Bus":
        if self._bus is not None and self._bus.lost:
            await self._bus.close()
            self._bus = None
        if self._bus is None:
            self._bus = await _Bus.connect(self._address, self._owner_changed.set)
        return self._bus

    async def _restore(self) -> None:
        while True:
            await self._owner_changed.wait()
            self._owner_changed.clear()
            delay = 0.0
            while reason := await self._restore_all():
                level = logging.DEBUG if delay else logging.WARNING
                logger.log(level, "cannot restore name servers in systemd-resolved: %s; will retry", reason)
                delay = min(2 * delay, LONGEST_DELAY) or FIRST_DELAY
                await asyncio.sleep(delay)

    async def _restore_all(self) -> str | None:
        """Set again what was applied last; returns the reason if that fails."""
        async with self._lock:
            for dns in tuple(self._applied.values()):
                try:
                    await self._set(dns)
                except ResolvedError as error:
                    if device_index(dns.device) is None:
                        continue
                    return str(error)
        return None


class _Bus:
    """A connection to a message bus, which calls methods and watches who owns resolved's name.

    jeepney's own router is not used: its receiver ends when a reply arrives just after its caller was cancelled, and it
    does not report a lost connection.
    """

    def __init__(self, connection: DBusConnection, changed: Callable[[], None]) -> None:
        self.lost = False
        self._connection = connection
        self._changed = changed
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self._receiver = asyncio.create_task(self._receive())

    @classmethod
    async def connect(cls, address: str, changed: Callable[[], None]) -> "_Bus":
        """Connect; `changed` is called when resolved's name gets an owner, and when the connection is lost.

        Raises:
            _AbsentError: there is no bus, or it refuses this user.
        """
        # Not jeepney's open_dbus_connection(), which leaves the socket open when the login fails.
        try:
            reader, writer = await asyncio.open_unix_connection(get_bus(address))
        except (OSError, RuntimeError, ValueError) as error:
            raise _AbsentError(_NO_BUS.format(_reason(error))) from None
        try:
            # SASL, EXTERNAL: the bus takes the user from the kernel (D-Bus Specification, "Authentication Protocol").
            login = Authenticator()
            for line in login:
                writer.write(line)
                login.feed(await reader.readuntil(b"\r\n"))
            writer.write(BEGIN)
        except (OSError, EOFError, ValueError) as error:
            writer.close()
            raise _AbsentError(_NO_BUS.format(_reason(error))) from None
        except BaseException:
            writer.close()
            raise
        bus = cls(DBusConnection(reader, writer), changed)
        try:
            await bus.call("Hello", to=_BUS)
            await bus.call("AddMatch", "s", (_OWNER_CHANGED,), to=_BUS)
        except BaseException:
            await bus.close()
            raise
        return bus

    async def call(
        self,
        method: str,
        signature: str | None = None,
        body: tuple[Any, ...] = (),
        *,
        to: DBusAddress = _RESOLVED,
        start: bool = True,
    ) -> None:
        """Call a method and wait for its reply. `start`: let the bus start the service if it does not run.

        Raises:
            _ErrorReply: the reply is an error.
            ConnectionError: the connection is lost.
        """
        if self.lost:
            raise ConnectionResetError("the connection is closed")
        message = new_method_call(to, method, signature, body)
        if not start:
            message.header.flags |= MessageFlag.no_auto_start
        serial = next(self._connection.outgoing_serial)
        waiting = self._waiting[serial] = asyncio.get_running_loop().create_future()
        try:
            await self._connection.send(message, serial=serial)
            reply = await waiting
        finally:
            del self._waiting[serial]
        if reply.header.message_type is MessageType.error:
            raise _ErrorReply(reply)

    async def close(self) -> None:
        self._changed = lambda: None
        self._receiver.cancel()
        with suppress(asyncio.CancelledError):
            await self._receiver
        with suppress(OSError):
            await self._connection.close()

    async def _receive(self) -> None:
        try:
            with suppress(OSError, EOFError, ValueError):
                while True:
                    self._dispatch(await self._connection.receive())
        finally:
            self.lost = True
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(ConnectionResetError("the connection is closed"))
            self._changed()

    def _dispatch(self, message: Message) -> None:
        fields = message.header.fields
        waiting = self._waiting.get(fields.get(HeaderFields.reply_serial, 0))
        if waiting is not None:
            if not waiting.done():
                waiting.set_result(message)
        elif fields.get(HeaderFields.member) == "NameOwnerChanged":
            _name, _old, new = message.body
            if new:
                self._changed()


@contextmanager
def _explained_errors(device: str) -> Iterator[None]:
    """Turn every error into a ResolvedError."""
    try:
        yield
    except TimeoutError:
        raise ResolvedError(f"systemd-resolved did not reply within {TIMEOUT:g} s") from None
    except OSError as error:
        raise _AbsentError(_NO_BUS.format(_reason(error))) from None
    except _ErrorReply as error:
        raise _explained(error, device) from None


def _explained(error: _ErrorReply, device: str) -> ResolvedError:
    if error.name in _FORBIDDEN:
        return ResolvedError(_NOT_PERMITTED)
    if error.name in _NO_REPLY:
        return ResolvedError("systemd-resolved does not reply")
    if error.sender == _BUS.bus_name:
        # The bus itself replied: the name has no owner and no unit to start.
        return _AbsentError(_NO_RESOLVED)
    if error.name == _NO_SUCH_LINK:
        return _AbsentError(f"there is no device {device}")
    if error.name == _LINK_BUSY:
        return ResolvedError(_MANAGED.format(device))
    return ResolvedError(f"systemd-resolved refuses: {error}")


def _index(device: str) -> int:
    index = device_index(device)
    if index is None:
        raise _AbsentError(f"there is no device {device}")
    return index


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__
