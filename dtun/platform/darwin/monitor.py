"""Watches a routing socket for changes of routes, addresses and interfaces (route(4)).

Most messages do not matter: missing routes, queries of other programs, neighbours on each link. The others lead to one
check for each burst. The kernel does not report that the socket's buffer has overflowed, so there is also a periodic
check.
"""

import asyncio
import contextlib
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

from dtun.platform.darwin import rtmsg, syscalls
from dtun.platform.darwin.constants import (
    AF_ROUTE,
    RTA_DST,
    RTA_IFA,
    RTF_WASCLONED,
    RTM_ADD,
    RTM_CHANGE,
    RTM_DELADDR,
    RTM_DELETE,
    RTM_IFINFO,
    RTM_NEWADDR,
    SO_RCVBUF,
    SOCK_RAW,
    SOL_SOCKET,
)

RECEIVE_BUFFER_BYTES = 256 << 10
DATAGRAM_BYTES = 1 << 16
BURST = 64
"""Messages that are read in one turn of the event loop."""

DEBOUNCE = 0.1
"""Seconds from the first message that matters to the check."""

PERIOD = 30.0
"""Seconds between two checks without a message."""


def matters(data: bytes, own_process: int) -> bool:
    """Whether these messages may mean a change of the host's network. Pure."""
    return any(_matters(message, own_process) for message in rtmsg.messages(data))


def _matters(message: rtmsg.RoutingMessage, own_process: int) -> bool:
    if message.kind in (RTM_ADD, RTM_DELETE, RTM_CHANGE):
        if message.process == own_process or message.errno or message.flags & RTF_WASCLONED:
            return False
        return not _is_link_only(message, RTA_DST)
    if message.kind in (RTM_NEWADDR, RTM_DELADDR):
        return not _is_link_only(message, RTA_IFA)
    return message.kind == RTM_IFINFO


def _is_link_only(message: rtmsg.RoutingMessage, which: int) -> bool:
    address = message.address(which)
    return isinstance(address, IPv4Address | IPv6Address) and (address.is_link_local or address.is_multicast)


class Monitor:
    """Calls `check` in the running event loop after changes and periodically, until closed."""

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check
        self._loop = asyncio.get_running_loop()
        self._process = syscalls.process_id()
        self._socket = syscalls.open_socket(AF_ROUTE, SOCK_RAW)
        with contextlib.suppress(OSError):
            self._socket.setsockopt(SOL_SOCKET, SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        self._timer = self._loop.call_later(PERIOD, self._run_check)
        self._pending = False
        self._loop.add_reader(self._socket, self._read)

    def close(self) -> None:
        self._timer.cancel()
        self._loop.remove_reader(self._socket)
        self._socket.close()

    def _read(self) -> None:
        for _ in range(BURST):
            try:
                data = self._socket.recv(DATAGRAM_BYTES)
            except OSError:  # no more messages, or the buffer has overflowed
                return
            if not self._pending and matters(data, self._process):
                self._pending = True
                self._timer.cancel()
                self._timer = self._loop.call_later(DEBOUNCE, self._run_check)

    def _run_check(self) -> None:
        self._pending = False
        self._timer = self._loop.call_later(PERIOD, self._run_check)
        self._check()
