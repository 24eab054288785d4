"""Notices when somebody takes what is in dtun's nf_tables table: nfnetlink's multicast group for that.

What this process does itself the kernel leaves out (dtun.platform.linux.netlink.notifications): a commit is
told of in messages that all have the port of the socket that it came by.
dtun.platform.linux.nftables.wire draws the messages.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from dtun.platform.linux.netlink.notifications import notifications
from dtun.platform.linux.netlink.wire import attributes, messages, text
from dtun.platform.linux.nftables.wire import (
    NETLINK_NETFILTER,
    NFNL_SUBSYS_NFTABLES,
    NFPROTO_INET,
    NFT_MSG_DELCHAIN,
    NFT_MSG_DELRULE,
    NFT_MSG_DELSET,
    NFT_MSG_DELSETELEM,
    NFT_MSG_DELTABLE,
)

_NFNLGRP_NFTABLES: Final = 7  # linux/netfilter/nfnetlink.h
_RECEIVE_BUFFER_BYTES: Final = 1 << 20
_DATAGRAM_BYTES: Final = 1 << 16
# Datagrams in one turn of the event loop.
_BURST: Final = 64

# All of them name the table in their first attribute.
_TABLE: Final = 1
_DELETIONS: Final = frozenset(
    NFNL_SUBSYS_NFTABLES << 8 | kind
    for kind in (NFT_MSG_DELTABLE, NFT_MSG_DELCHAIN, NFT_MSG_DELRULE, NFT_MSG_DELSET, NFT_MSG_DELSETELEM)
)
_NFGEN_BYTES: Final = 4


def takes_from(table: str, data: bytes) -> bool:
    """Whether a datagram of notifications says that something of the table `inet TABLE` was deleted. Pure."""
    return any(
        kind in _DELETIONS
        and len(body) > _NFGEN_BYTES
        and body[0] == NFPROTO_INET
        and text(attributes(body, _NFGEN_BYTES).get(_TABLE)) == table
        for kind, _, _, _, body in messages(data)
    )


class FirewallMonitor:
    """Calls `lost` in the running event loop, from the moment it is made, for what others take from the table.

    `ports` are those of the sockets by which this process makes its own changes. When notifications were lost, that
    counts as a loss: to make the table anew is cheap.

    Raises:
        OSError: the kernel does not tell.
    """

    def __init__(self, table: str, ports: Iterable[int], lost: Callable[[], None]) -> None:
        self._table = table
        self._lost = lost
        self._overflowed = False
        self._loop = asyncio.get_running_loop()
        self._socket = notifications(NETLINK_NETFILTER, [_NFNLGRP_NFTABLES], _RECEIVE_BUFFER_BYTES, ports)
        self._loop.add_reader(self._socket, self._read)

    def close(self) -> None:
        self._loop.remove_reader(self._socket)
        self._socket.close()

    def _read(self) -> None:
        loss = False
        for _ in range(_BURST):
            try:
                data = self._socket.recv(_DATAGRAM_BYTES)
            except BlockingIOError:
                loss |= self._overflowed
                self._overflowed = False
                break
            except OSError:
                # ENOBUFS. The kernel goes on to lose, and says no more of it, until the queue is empty.
                self._overflowed = True
            else:
                loss |= takes_from(self._table, data)
        if loss:
            self._lost()
