"""Reads of rtnetlink(7): dumps of all objects of a kind, and queries for one.

The kernel produces a dump in datagrams of up to 32 KiB as they are read. The reader yields to the event loop after
each, so a long table delays nothing. Each call opens its own socket, so replies never mix.

Why pyroute2 does not decode these: docs/decisions/0004-netlink.md.
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
from dtun.platform.linux.netlink.sockets import ANSWER_TIME, NETLINK_ROUTE, open_socket
from dtun.platform.linux.netlink.wire import (
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
    """Yield the body of each reply to a dump request. Objects that change meanwhile may be missing or come twice.

    Raises:
        NetlinkError: the kernel refuses the request.
    """
    with _open() as netlink:
        _send(netlink, message(kind, NLM_F_REQUEST | NLM_F_DUMP, 1, body))
        buffer = bytearray(_DATAGRAM_BYTES)
        interrupted = False
        while True:
            size = await _receive(netlink, buffer)
            for reply, flags, _, _, part in messages(memoryview(buffer)[:size]):
                interrupted |= bool(flags & NLM_F_DUMP_INTR)
                if reply == NLMSG_DONE:
                    if interrupted:
                        raise _InterruptedError
                    return
                if reply == NLMSG_ERROR:
                    raise _error(NLMSGERR.unpack_from(part)[0])
                yield part
            await asyncio.sleep(0)


async def collect(kind: int, body: bytes, decode: Callable[[memoryview], T | None]) -> list[T]:
    """Dump and decode; replies for which `decode` returns None are left out.

    An interrupted dump is repeated. On a host whose tables change all the time, the last attempt is returned as it
    is: no caller relies on a complete list.

    Raises:
        NetlinkError: the kernel refuses the request.
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


def query(kind: int, body: bytes) -> bytes:
    """Return the body of the single reply to a request that is not a dump.

    Raises:
        NetlinkError: the kernel refuses the request.
    """
    with _open() as netlink:
        _send(netlink, message(kind, NLM_F_REQUEST, 1, body))
        try:
            data = netlink.recv(_DATAGRAM_BYTES)  # The kernel replied during the send.
        except OSError as error:
            raise NetlinkError(error.errno or errno.EIO, str(error)) from None
    for reply, _, _, _, part in messages(data):
        if reply == NLMSG_ERROR:
            raise _error(NLMSGERR.unpack_from(part)[0])
        return bytes(part)
    raise NetlinkError(errno.EBADMSG, "malformed reply from the kernel")


@contextmanager
def unavailable_if_refused() -> Iterator[None]:
    """Turn NetlinkError into UnavailableError."""
    try:
        yield
    except NetlinkError as error:
        reason = os.strerror(abs(error.code)).lower()
        raise UnavailableError(f"cannot read the host's network through netlink: {reason}") from None


class _InterruptedError(Exception):
    """The table changed during the dump (NLM_F_DUMP_INTR)."""


def _open() -> socket.socket:
    netlink = open_socket(NETLINK_ROUTE)
    # Makes the kernel apply the filters in a dump request's header: family, protocol.
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
        async with asyncio.timeout(ANSWER_TIME):
            return await asyncio.get_running_loop().sock_recv_into(netlink, buffer)
    except TimeoutError:
        raise _error(errno.ETIMEDOUT) from None
    except OSError as error:
        raise NetlinkError(error.errno or errno.EIO, str(error)) from None


def _error(code: int) -> NetlinkError:
    return NetlinkError(abs(code), os.strerror(abs(code)))
