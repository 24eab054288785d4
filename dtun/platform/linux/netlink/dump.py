"""How the kernel is asked through rtnetlink without pyroute2, for all of a kind (a dump) or for one thing.

A dump comes in datagrams of up to 32 KiB, which the kernel makes as they are read: a reader that lets others in after
each of them keeps nobody waiting, however long the table is. Each call has a socket of its own, so that answers never
mix.
"""

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from pyroute2.netlink.exceptions import NetlinkError

from dtun.errors import UnavailableError
from dtun.platform.linux.netlink.wire import (
    NETLINK_CAP_ACK,
    NETLINK_GET_STRICT_CHK,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSGERR,
    SOL_NETLINK,
    message,
    messages,
)

T = TypeVar("T")

_DATAGRAM_BYTES = 1 << 16
_DUMP_ATTEMPTS = 5


async def dump(kind: int, body: bytes) -> AsyncIterator[memoryview]:
    """The bodies of all answers to a dump request. What changes meanwhile may be missing or come twice."""
    with _open() as netlink:
        _send(netlink, message(kind, NLM_F_REQUEST | NLM_F_DUMP, 1, body))
        buffer = bytearray(_DATAGRAM_BYTES)
        interrupted = False
        while True:
            size = await _receive(netlink, buffer)
            for answer, flags, _, _, part in messages(memoryview(buffer)[:size]):
                interrupted |= bool(flags & NLM_F_DUMP_INTR)
                if answer == NLMSG_DONE:
                    if interrupted:
                        raise _InterruptedError
                    return
                if answer == NLMSG_ERROR:
                    raise _error(NLMSGERR.unpack_from(part)[0])
                yield part
            await asyncio.sleep(0)


async def collect(kind: int, body: bytes, decode: Callable[[memoryview], T | None]) -> list[T]:
    """What `decode` makes of each answer, None left out.

    From the start again when the kernel says that things changed.
    On a host where they always do, what has come is as good as it gets: no caller relies on all of it.
    """
    found: list[T] = []
    for _ in range(_DUMP_ATTEMPTS):
        found = []
        try:
            async for part in dump(kind, body):
                item = decode(part)
                if item is not None:
                    found.append(item)
        except _InterruptedError:
            continue
        break
    return found


def ask(kind: int, body: bytes) -> bytes:
    """The body of the one answer to a request that is no dump.

    Raises:
        NetlinkError: the kernel says no.
    """
    with _open() as netlink:
        _send(netlink, message(kind, NLM_F_REQUEST, 1, body))
        data = netlink.recv(_DATAGRAM_BYTES)  # The kernel has answered by now.
    for answer, _, _, _, part in messages(data):
        if answer == NLMSG_ERROR:
            raise _error(NLMSGERR.unpack_from(part)[0])
        return bytes(part)
    raise NetlinkError(errno.EBADMSG, "the kernel's answer is not understood")


@contextmanager
def errors_in_words() -> Iterator[None]:
    """Turns NetlinkError into UnavailableError."""
    try:
        yield
    except NetlinkError as error:
        reason = os.strerror(abs(error.code)).lower()
        raise UnavailableError(f"cannot read the host's network through netlink: {reason}") from None


class _InterruptedError(Exception):
    """The kernel says that the table changed while it was read (NLM_F_DUMP_INTR)."""


def _open() -> socket.socket:
    netlink = socket.socket(
        socket.AF_NETLINK,  # type: ignore[attr-defined,unused-ignore]
        socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,  # type: ignore[attr-defined,unused-ignore]
        socket.NETLINK_ROUTE,  # type: ignore[attr-defined,unused-ignore]
    )
    netlink.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
    # The kernel then heeds what the header of a dump request asks for: a family, a protocol.
    netlink.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
    netlink.bind((0, 0))
    return netlink


def _send(netlink: socket.socket, request: bytes) -> None:
    try:
        netlink.sendto(request, (0, 0))
    except OSError as error:
        raise NetlinkError(error.errno or errno.EIO, str(error)) from None


async def _receive(netlink: socket.socket, buffer: bytearray) -> int:
    try:
        return await asyncio.get_running_loop().sock_recv_into(netlink, buffer)
    except OSError as error:
        raise NetlinkError(error.errno or errno.EIO, str(error)) from None


def _error(code: int) -> NetlinkError:
    return NetlinkError(abs(code), os.strerror(abs(code)))
