"""Name servers for the tunnel's device, set through systemd-resolved's D-Bus interface: org.freedesktop.resolve1(5).

Who may: root. Since it is polkit that resolved asks about all others, CAP_NET_ADMIN alone is not enough, and a
service with a user of its own needs polkit and a rule that lets this user do four actions:

    org.freedesktop.resolve1.set-dns-servers
    org.freedesktop.resolve1.set-domains
    org.freedesktop.resolve1.set-default-route
    org.freedesktop.resolve1.revert
"""

import asyncio
import itertools
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
    Parser,
    new_method_call,
)
from jeepney.auth import BEGIN, Authenticator
from jeepney.bus import get_bus

from dtun.errors import UnavailableError
from dtun.network.state import Dns

TIMEOUT: Final = 5.0
"""Seconds for all that one call of `apply` or `revert` asks of the bus and of resolved."""

FIRST_DELAY: Final = 1.0
LONGEST_DELAY: Final = 60.0
"""Seconds until what could not be put back is tried again: doubled from the first to the longest."""

_NAME: Final = "org.freedesktop.resolve1"
_RESOLVED: Final = DBusAddress("/org/freedesktop/resolve1", _NAME, "org.freedesktop.resolve1.Manager")
_BUS: Final = DBusAddress("/org/freedesktop/DBus", "org.freedesktop.DBus", "org.freedesktop.DBus")
# D-Bus Specification, "Message Bus Messages".
_OWNER_CHANGED: Final = (
    f"type='signal',sender='org.freedesktop.DBus',member='NameOwnerChanged',arg0='{_NAME}'"
)

_NO_BUS: Final = (
    "cannot reach the system's D-Bus ({}), over which systemd-resolved is told of name servers; "
    "install dbus and systemd-resolved, or set the name servers in the `up` hook instead of by `dns`"
)
_NO_RESOLVED: Final = (
    "systemd-resolved does not run; start it (systemctl enable --now systemd-resolved), "
    "or set the name servers in the `up` hook instead of by `dns`"
)
_NOT_PERMITTED: Final = (
    "systemd-resolved does not let this user set name servers; run dtun as root, "
    "or install polkit and the rule for dtun's user"
)
_MANAGED: Final = (
    "systemd-networkd manages {}, and only takes name servers from its own files; "
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
    """The name servers cannot be set, or taken back: one line that says why and what to do."""


class _AbsentError(ResolvedError):
    """There is no such device, no resolved or no bus: nothing to take anything back from."""


class _ErrorAnswer(Exception):  # noqa: N818 - an answer first
    """An error message of D-Bus: its name, who sent it, and its text."""

    def __init__(self, message: Message) -> None:
        fields = message.header.fields
        self.name: str = fields[HeaderFields.error_name]
        self.sender: str | None = fields.get(HeaderFields.sender)
        super().__init__(message.body[0] if message.body else self.name)


class Resolved:
    """What systemd-resolved knows of the devices of this process.

    A resolved that starts anew, or another bus in the place of a lost one, is told again.
    """

    def __init__(self, bus_address: str | None = None) -> None:
        """`bus_address` as in the D-Bus specification, "unix:path=..."; None: the system's bus."""
        self._address = bus_address or "SYSTEM"
        self._applied: dict[str, Dns] = {}
        self._bus: _Bus | None = None
        self._turn = asyncio.Lock()
        self._news = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None

    async def apply(self, dns: Dns) -> None:
        """Have `dns` asked for its domains, and for every name if "~." is one of them or there are none.

        It takes the place of what was set for this device before. resolved asks as soon as the device is up and
        has an address.

        Raises:
            ResolvedError: the device is not there, networkd manages it, or there is no resolved, no right, no answer
                within `TIMEOUT`.
        """
        async with self._turn:
            await self._set(dns)
            self._applied[dns.device] = dns
        if self._watch is None:
            self._watch = asyncio.create_task(self._put_back())

    async def revert(self, device: str) -> None:
        """Take everything back that was set for this device. One that is gone is fine, and so is a resolved that is.

        Raises:
            ResolvedError: resolved does not let us, or does not answer within `TIMEOUT`.
        """
        async with self._turn:
            self._applied.pop(device, None)
            with suppress(_AbsentError), _in_words(device):
                async with asyncio.timeout(TIMEOUT):
                    index = _index(device)
                    await (await self._connected()).call("RevertLink", "i", (index,), start=False)

    async def close(self) -> None:
        """Let go of the bus. What was set stays, until the device goes."""
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
        with _in_words(dns.device):
            async with asyncio.timeout(TIMEOUT):
                index = _index(dns.device)
                bus = await self._connected()
                # The servers come last: until then, nobody is asked for anything.
                everything = "~." in dns.domains or not dns.domains
                await bus.call("SetLinkDefaultRoute", "ib", (index, everything))
                await bus.call("SetLinkDomains", "ia(sb)", (index, domains))
                await bus.call("SetLinkDNS", "ia(iay)", (index, servers))

    async def _connected(self) -> "_Bus":
        if self._bus is not None and self._bus.lost:
            await self._bus.close()
            self._bus = None
        if self._bus is None:
            self._bus = await _Bus.connect(self._address, self._news.set)
        return self._bus

    async def _put_back(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            delay = 0.0
            while reason := await self._set_all():
                level = logging.DEBUG if delay else logging.WARNING
                logger.log(
                    level, "cannot tell systemd-resolved of name servers again: %s; will retry", reason
                )
                delay = min(2 * delay, LONGEST_DELAY) or FIRST_DELAY
                await asyncio.sleep(delay)

    async def _set_all(self) -> str | None:
        """Set again what was applied last; returns why that failed."""
        async with self._turn:
            for dns in tuple(self._applied.values()):
                try:
                    await self._set(dns)
                except ResolvedError as error:
                    if not _exists(dns.device):
                        continue
                    return str(error)
        return None


class _Bus:
    """A connection to a message bus, which calls methods and watches who has resolved's name.

    Around jeepney's parser rather than its own asyncio connection, whose reader ends when an answer comes in the moment
    in which its caller gives up.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, news: Callable[[], None]
    ) -> None:
        self.lost = False
        self._reader = reader
        self._writer = writer
        self._news = news
        self._serials = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self._receiver = asyncio.create_task(self._receive())

    @classmethod
    async def connect(cls, address: str, news: Callable[[], None]) -> "_Bus":
        """`news` is called when resolved's name has an owner that it had not before, and when the connection is lost.

        Raises:
            _AbsentError: there is no bus, or none that takes us.
        """
        try:
            reader, writer = await asyncio.open_unix_connection(get_bus(address))
        except (OSError, RuntimeError, ValueError) as error:
            raise _AbsentError(_NO_BUS.format(_words(error))) from None
        try:
            # SASL, EXTERNAL: the kernel tells the bus who we are (D-Bus Specification, "Authentication Protocol").
            login = Authenticator()
            for line in login:
                writer.write(line)
                login.feed(await reader.readuntil(b"\r\n"))
            writer.write(BEGIN)
        except (OSError, EOFError, ValueError) as error:
            writer.close()
            raise _AbsentError(_NO_BUS.format(_words(error))) from None
        except BaseException:
            writer.close()
            raise
        bus = cls(reader, writer, news)
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
        """Call a method and wait for the end. `start`: let the bus start the service if it does not run.

        Raises:
            _ErrorAnswer: the answer is an error.
            ConnectionError: the bus is gone.
        """
        if self.lost:
            raise ConnectionResetError("the connection is closed")
        message = new_method_call(to, method, signature, body)
        if not start:
            message.header.flags |= MessageFlag.no_auto_start
        serial = next(self._serials)
        answer = self._waiting[serial] = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(message.serialise(serial))
            reply = await answer
        finally:
            del self._waiting[serial]
        if reply.header.message_type is MessageType.error:
            raise _ErrorAnswer(reply)

    async def close(self) -> None:
        self._news = _nothing
        self._receiver.cancel()
        with suppress(asyncio.CancelledError):
            await self._receiver
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    async def _receive(self) -> None:
        parser = Parser()
        try:
            with suppress(OSError, ValueError):
                while data := await self._reader.read(1 << 16):
                    for message in parser.feed(data):
                        self._take(message)
        finally:
            self.lost = True
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(ConnectionResetError("the connection is closed"))
            self._news()

    def _take(self, message: Message) -> None:
        fields = message.header.fields
        answer = self._waiting.get(fields.get(HeaderFields.reply_serial, 0))
        if answer is not None:
            if not answer.done():
                answer.set_result(message)
        elif fields.get(HeaderFields.member) == "NameOwnerChanged":
            _name, _old, new = message.body
            if new:
                self._news()


@contextmanager
def _in_words(device: str) -> Iterator[None]:
    """Everything that can go wrong as a ResolvedError."""
    try:
        yield
    except TimeoutError:
        raise ResolvedError(f"systemd-resolved has not answered for {TIMEOUT:g} s") from None
    except OSError as error:
        raise _AbsentError(_NO_BUS.format(_words(error))) from None
    except _ErrorAnswer as error:
        raise _explained(error, device) from None


def _explained(error: _ErrorAnswer, device: str) -> ResolvedError:
    if error.name in _FORBIDDEN:
        return ResolvedError(_NOT_PERMITTED)
    if error.name in _NO_REPLY:
        return ResolvedError("systemd-resolved does not answer")
    if error.sender == _BUS.bus_name:
        # Nobody has the name, and there is nothing that could be started for it.
        return _AbsentError(_NO_RESOLVED)
    if error.name == _NO_SUCH_LINK:
        return _AbsentError(f"there is no device {device}")
    if error.name == _LINK_BUSY:
        return ResolvedError(_MANAGED.format(device))
    return ResolvedError(f"systemd-resolved refuses: {error}")


def _index(device: str) -> int:
    try:
        return socket.if_nametoindex(device)
    except OSError:
        raise _AbsentError(f"there is no device {device}") from None


def _exists(device: str) -> bool:
    try:
        _index(device)
    except _AbsentError:
        return False
    return True


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__


def _nothing() -> None:
    pass
