"""The packet filter: dtun's own nf_tables table, through nfnetlink."""

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from dtun.errors import UnavailableError
from dtun.network.state import Filter
from dtun.platform.linux.netlink.sockets import NETLINK_NETFILTER, open_socket, port_of
from dtun.platform.linux.nftables.layout import TableLayout, layout, replacement, update
from dtun.platform.linux.nftables.monitor import FirewallMonitor
from dtun.platform.linux.nftables.wire import (
    NFT_MSG_GETTABLE,
    Reply,
    Request,
    encode_batch,
    encode_single,
    replies,
    text,
)

NOT_PERMITTED: Final = (
    "may not filter packets: CAP_NET_ADMIN is missing; run dtun as root, "
    "or give it that capability (systemd: AmbientCapabilities=CAP_NET_ADMIN)"
)

_SO_SNDBUFFORCE: Final = 32  # asm-generic/socket.h

_REPLY_BYTES: Final = 65536
"""More than a reply has."""

_SEND_OVERHEAD: Final = 4096
"""Bytes of the send buffer that the kernel needs besides the datagram."""

# Errors of a kernel without nf_tables, and of one without a part of it.
_NO_NFTABLES: Final = frozenset({errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT})
_NO_SUCH_PART: Final = _NO_NFTABLES | {errno.ENOENT}


class FirewallError(UnavailableError):
    """The kernel refuses the filters, and nothing has changed. The message says what is missing."""


class Firewall:
    """The table `inet NAME` in the current network namespace. Other tables are never changed.

    The table has no owner in the kernel (NFT_TABLE_F_OWNER), so it outlives a killed process and keeps blocking, until
    the next process replaces or deletes it. `removed` is called in the event loop when another program deletes
    something of the table; the next `apply` then restores it.
    """

    def __init__(self, table: str, removed: Callable[[], None] | None = None) -> None:
        self._table = table
        self._removed = removed
        self._monitor: FirewallMonitor | None = None
        self._socket: socket.socket | None = None
        # What the table contains; None if unknown. Used by the worker only.
        self._current: TableLayout | None = None
        # A thread, because the kernel carries out a batch during the send, and may load modules or wait for another
        # program's batch. Only one, which keeps the batches in order.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="firewall")

    async def apply(self, filters: frozenset[Filter]) -> None:
        """Replace the contents by these filters, in one step; without filters, remove the table.

        Connections that are masqueraded already go on.

        Raises:
            FirewallError: the kernel refuses, and nothing has changed.
        """
        loop = asyncio.get_running_loop()
        if filters and self._removed is not None and self._monitor is None:
            # Before the first filter, so that no removal is missed.
            with contextlib.suppress(OSError):
                port = await loop.run_in_executor(self._worker, self._port)
                self._monitor = FirewallMonitor(self._table, (port,), self._on_removed)
        await loop.run_in_executor(self._worker, self._apply, filters)

    async def present(self) -> bool:
        """Whether the table exists, whichever process created it.

        Raises:
            FirewallError: the kernel cannot be read.
        """
        return await asyncio.get_running_loop().run_in_executor(self._worker, self._present)

    def close(self) -> None:
        """Close the sockets, after waiting some milliseconds for a batch in progress. The table stays."""
        if self._monitor is not None:
            self._monitor.close()
        self._worker.shutdown()
        if self._socket is not None:
            self._socket.close()

    def _on_removed(self) -> None:
        self._worker.submit(self._forget)
        if self._removed is not None:
            self._removed()

    def _forget(self) -> None:
        """Make the next `apply` replace the whole table."""
        self._current = None

    def _apply(self, filters: frozenset[Filter]) -> None:
        desired = layout(filters)
        current, self._current = self._current, None
        changes = None if current is None else update(self._table, current, desired)
        if changes is None or not self._update(changes):
            self._replace(desired)
        self._current = desired

    def _update(self, changes: list[Request]) -> bool:
        """Send a few changes; False if the kernel refuses, because the table is not as expected."""
        if not changes:
            return True
        found = self._send(encode_batch(changes))
        return bool(found) and not any(reply.error for reply in found)

    def _replace(self, desired: TableLayout) -> None:
        requests = replacement(self._table, desired)
        found = self._send(encode_batch(requests))
        refused = next((reply for reply in found if reply.error), None)
        if refused is not None and not (_no_nftables(refused) and not desired.chains):
            raise FirewallError(explain_refusal(self._table, requests, refused))
        if refused is None and not found:
            raise FirewallError("the kernel did not acknowledge the packet filter; try again")

    def _present(self) -> bool:
        request = Request(NFT_MSG_GETTABLE, text(1, self._table), purpose="show its tables")
        for reply in self._send(encode_single(request)):
            if reply.error and reply.error not in _NO_SUCH_PART:
                raise FirewallError(explain_refusal(self._table, [request], reply))
            return not reply.error
        return False

    def _send(self, datagram: bytes) -> list[Reply]:
        """Send a datagram; returns the replies, which the kernel has queued by the end of the send."""
        try:
            kernel = self._opened()
            _make_room(kernel, len(datagram) + _SEND_OVERHEAD)
            kernel.sendto(datagram, (0, 0))
            return _received(kernel)
        except OSError as error:
            return [Reply(0, error.errno or errno.EIO)]

    def _port(self) -> int:
        """See `port_of`."""
        return port_of(self._opened())

    def _opened(self) -> socket.socket:
        if self._socket is None:
            self._socket = open_socket(NETLINK_NETFILTER)
            self._socket.bind((0, 0))
        return self._socket


def explain_refusal(table: str, requests: Sequence[Request], refused: Reply) -> str:
    """Return the message for a person when the kernel refused a batch or a single request."""
    if refused.sequence == 0 and refused.error == errno.EPERM:
        return NOT_PERMITTED
    if _no_nftables(refused):
        return (
            "this kernel has no nf_tables (CONFIG_NF_TABLES): load that module, or use a kernel that has it"
        )
    reason = os.strerror(refused.error)
    if not 1 <= refused.sequence <= len(requests):
        return f"the kernel refuses the packet filter inet {table}: {reason}"
    if refused.error == errno.EPERM:
        return f"the packet filter inet {table} belongs to another process; see `nft list tables`"
    purpose = requests[refused.sequence - 1].purpose
    if refused.error in _NO_SUCH_PART:
        return f"this kernel cannot {purpose}: {reason}"
    return f"the kernel refuses to {purpose} in the packet filter inet {table}: {reason}"


def _no_nftables(reply: Reply) -> bool:
    """Whether nf_tables is missing as a whole: the error then has the number of the batch."""
    return reply.sequence == 0 and reply.error in _NO_NFTABLES


def _make_room(kernel: socket.socket, size: int) -> None:
    """Make room for a datagram of `size` bytes. The default is enough for some three hundred rules."""
    if kernel.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) >= size:
        return
    try:
        kernel.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, size)
    except PermissionError:
        # Without CAP_NET_ADMIN in the initial user namespace, up to net.core.wmem_max.
        kernel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)


def _received(kernel: socket.socket) -> list[Reply]:
    found: list[Reply] = []
    while True:
        try:
            data = kernel.recv(_REPLY_BYTES)
        except BlockingIOError:
            return found
        except OSError as error:
            # More errors than the queue has room for: those that were queued can still be read.
            if error.errno != errno.ENOBUFS:
                raise
        else:
            found.extend(replies(data))
