"""dtun's own nf_tables table: what is masqueraded, clamped, guarded and kept in, through netlink."""

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
from dtun.platform.linux.nftables.monitor import FirewallMonitor
from dtun.platform.linux.nftables.rules import Layout, amendment, layout, replacement
from dtun.platform.linux.nftables.wire import (
    NFT_MSG_GETTABLE,
    Answer,
    Message,
    answers,
    batch,
    request,
    text,
)

NOT_PERMITTED: Final = (
    "may not filter packets: CAP_NET_ADMIN is missing; run dtun as root, "
    "or give it that capability (systemd: AmbientCapabilities=CAP_NET_ADMIN)"
)

_SO_SNDBUFFORCE: Final = 32  # asm-generic/socket.h

_ANSWER_BYTES: Final = 65536
"""More than the description of a table takes, or one answer."""

_SEND_OVERHEAD: Final = 4096
"""Bytes that the kernel wants in a send buffer beyond the datagram."""

# What a kernel without nf_tables says, and one without a part of it.
_NO_NFTABLES: Final = frozenset({errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT})
_NO_SUCH_PART: Final = _NO_NFTABLES | {errno.ENOENT}


class FirewallError(UnavailableError):
    """The kernel refuses to filter packets as wanted; nothing has changed. Says what is missing."""


class Firewall:
    """The table `inet NAME` of the network namespace that this runs in. Other tables are nobody's business here.

    The table has no owner in the kernel's sense (NFT_TABLE_F_OWNER): it outlives a killed process, so that its
    guards do, and the next process replaces or deletes it. `lost` is called, in the event loop, when others take
    something from it; to have it as it was is for the caller, by another `apply`.
    """

    def __init__(self, table: str, lost: Callable[[], None] | None = None) -> None:
        self._table = table
        self._lost = lost
        self._monitor: FirewallMonitor | None = None
        self._socket: socket.socket | None = None
        # What is in the table, as far as this process has put it there and nobody has changed it since.
        self._known: Layout | None = None
        # The kernel carries out a batch while it is being sent, and may load modules for it, or wait for somebody
        # else's batch. One thread, so that batches come in the order in which they were asked for.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="firewall")

    async def apply(self, filters: frozenset[Filter]) -> None:
        """Have exactly these filters, at once; none: no table. Connections that are masqueraded stay as they are.

        Raises:
            FirewallError: the kernel refuses, and everything is as before.
        """
        loop = asyncio.get_running_loop()
        if filters and self._lost is not None and self._monitor is None:
            # Before there is something to lose.
            with contextlib.suppress(OSError):
                port = await loop.run_in_executor(self._worker, self._port)
                self._monitor = FirewallMonitor(self._table, (port,), self._taken)
        await loop.run_in_executor(self._worker, self._apply, filters)

    async def present(self) -> bool:
        """Whether the table exists, from this process or one before it.

        Raises:
            FirewallError: the kernel does not say.
        """
        return await asyncio.get_running_loop().run_in_executor(self._worker, self._present)

    def close(self) -> None:
        """Wait for what is under way, some milliseconds. The table stays as it is."""
        if self._monitor is not None:
            self._monitor.close()
        self._worker.shutdown()
        if self._socket is not None:
            self._socket.close()

    def _taken(self) -> None:
        """The next `apply` makes all of it anew."""
        self._known = None
        if self._lost is not None:
            self._lost()

    def _apply(self, filters: frozenset[Filter]) -> None:
        wanted = layout(filters)
        known, self._known = self._known, None
        changes = None if known is None else amendment(self._table, known, wanted)
        if changes is None or not self._amend(changes):
            self._replace(wanted)
        self._known = wanted

    def _amend(self, changes: list[Message]) -> bool:
        """Whether the kernel takes these few changes. If not, the table is not what it was."""
        if not changes:
            return True
        found = self._ask(batch(changes))
        return bool(found) and not any(answer.error for answer in found)

    def _replace(self, wanted: Layout) -> None:
        messages = replacement(self._table, wanted)
        found = self._ask(batch(messages))
        refused = next((answer for answer in found if answer.error), None)
        if refused is not None and not (_no_nftables(refused) and not wanted.chains):
            raise FirewallError(explanation(self._table, messages, refused))
        if refused is None and not found:
            raise FirewallError("the kernel did not answer whether it filters packets as wanted; try again")

    def _present(self) -> bool:
        message = Message(NFT_MSG_GETTABLE, text(1, self._table), purpose="show its tables")
        for answer in self._ask(request(message)):
            if answer.error and answer.error not in _NO_SUCH_PART:
                raise FirewallError(explanation(self._table, [message], answer))
            return not answer.error
        return False

    def _ask(self, datagram: bytes) -> list[Answer]:
        """What the kernel answers, all of which is there when the datagram is sent."""
        try:
            kernel = self._opened()
            _make_room(kernel, len(datagram) + _SEND_OVERHEAD)
            kernel.sendto(datagram, (0, 0))
            return _received(kernel)
        except OSError as error:
            return [Answer(0, error.errno or errno.EIO)]

    def _port(self) -> int:
        """See `port_of`."""
        return port_of(self._opened())

    def _opened(self) -> socket.socket:
        if self._socket is None:
            self._socket = open_socket(NETLINK_NETFILTER)
            self._socket.bind((0, 0))
        return self._socket


def explanation(table: str, messages: Sequence[Message], refused: Answer) -> str:
    """In a person's words why the kernel does not carry out a batch of `messages`, or a single one."""
    if refused.sequence == 0 and refused.error == errno.EPERM:
        return NOT_PERMITTED
    if _no_nftables(refused):
        return (
            "this kernel has no nf_tables (CONFIG_NF_TABLES): load that module, or use a kernel that has it"
        )
    reason = os.strerror(refused.error)
    if not 1 <= refused.sequence <= len(messages):
        return f"the kernel refuses the packet filter inet {table}: {reason}"
    if refused.error == errno.EPERM:
        return f"the packet filter inet {table} belongs to another process; `nft list tables` tells"
    purpose = messages[refused.sequence - 1].purpose
    if refused.error in _NO_SUCH_PART:
        return f"this kernel cannot {purpose}: {reason}"
    return f"the kernel refuses to {purpose} in the packet filter inet {table}: {reason}"


def _no_nftables(answer: Answer) -> bool:
    """Whether the whole of nf_tables is missing: the answer is then to the frame around the batch."""
    return answer.sequence == 0 and answer.error in _NO_NFTABLES


def _make_room(kernel: socket.socket, size: int) -> None:
    """A send buffer for a datagram of `size` bytes: the default is enough for some three hundred rules."""
    if kernel.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) >= size:
        return
    try:
        kernel.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, size)
    except PermissionError:
        # Only the host's own administrator may go beyond net.core.wmem_max.
        kernel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)


def _received(kernel: socket.socket) -> list[Answer]:
    found: list[Answer] = []
    while True:
        try:
            data = kernel.recv(_ANSWER_BYTES)
        except BlockingIOError:
            return found
        except OSError as error:
            # So many were refused that not all answers had room: what did have is still there.
            if error.errno != errno.ENOBUFS:
                raise
        else:
            found.extend(answers(data))
