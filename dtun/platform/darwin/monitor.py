"""Notices when routes or addresses change: a routing socket is told of everything that happens (route(4)).

Most of it is no news: looking for a route that is not there, what other programs ask, the neighbours of each link. What
is left is a reason to look, soon, and once for a burst. When the socket's buffer overflows, the kernel says nothing of
it; so there is a look now and then in any case.
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
"""Messages in one turn of the event loop."""

SETTLE_TIME = 0.1
"""Seconds from the first news to the look."""

SAFETY_NET = 30.0
"""Seconds between two looks that nobody has asked for."""


def is_news(data: bytes, own_process: int) -> bool:
    """Whether these messages may mean that the host's network is different now. Pure."""
    return any(_is_news(message, own_process) for message in rtmsg.messages(data))


def _is_news(message: rtmsg.Message, own_process: int) -> bool:
    match message.kind:
        case k if k in (RTM_ADD, RTM_DELETE, RTM_CHANGE):
            if message.process == own_process or message.errno or message.flags & RTF_WASCLONED:
                return False
            return not _is_nearby(message, RTA_DST)
        case k if k in (RTM_NEWADDR, RTM_DELADDR):
            return not _is_nearby(message, RTA_IFA)
        case k if k == RTM_IFINFO:
            return True
    return False


def _is_nearby(message: rtmsg.Message, which: int) -> bool:
    address = message.address(which)
    return isinstance(address, IPv4Address | IPv6Address) and (address.is_link_local or address.is_multicast)


class Monitor:
    """Calls `look` in the running event loop when there is a reason to, from the moment it is made."""

    def __init__(self, look: Callable[[], None]) -> None:
        self._look = look
        self._loop = asyncio.get_running_loop()
        self._process = syscalls.process_id()
        self._socket = syscalls.open_socket(AF_ROUTE, SOCK_RAW)
        with contextlib.suppress(OSError):
            self._socket.setsockopt(SOL_SOCKET, SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        self._timer = self._loop.call_later(SAFETY_NET, self._look_now)
        self._settling = False
        self._loop.add_reader(self._socket, self._read)

    def close(self) -> None:
        self._timer.cancel()
        self._loop.remove_reader(self._socket)
        self._socket.close()

    def _read(self) -> None:
        for _ in range(BURST):
            try:
                data = self._socket.recv(DATAGRAM_BYTES)
            except OSError:  # there is no more, or something was lost
                return
            if not self._settling and is_news(data, self._process):
                self._settling = True
                self._timer.cancel()
                self._timer = self._loop.call_later(SETTLE_TIME, self._look_now)

    def _look_now(self) -> None:
        self._settling = False
        self._timer = self._loop.call_later(SAFETY_NET, self._look_now)
        self._look()
