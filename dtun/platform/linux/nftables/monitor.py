"""Monitors removals from dtun's nf_tables table, by nfnetlink's multicast group for nf_tables.

The kernel leaves out what this process does itself (dtun.platform.linux.netlink.notifications): all messages of a
commit carry the port id of the socket that sent it. dtun.platform.linux.nftables.wire draws the messages.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from dtun.platform.linux.netlink.notifications import Notifications
from dtun.platform.linux.netlink.sockets import NETLINK_NETFILTER
from dtun.platform.linux.netlink.wire import attributes, messages, text
from dtun.platform.linux.nftables.wire import (
    NFNL_SUBSYS_NFTABLES,
    NFPROTO_INET,
    NFT_MSG_DELCHAIN,
    NFT_MSG_DELRULE,
    NFT_MSG_DELSET,
    NFT_MSG_DELSETELEM,
    NFT_MSG_DELTABLE,
)

_NFNLGRP_NFTABLES: Final = 7  # linux/netfilter/nfnetlink.h

# All of these name the table in their first attribute.
_TABLE: Final = 1
_DELETIONS: Final = frozenset(
    NFNL_SUBSYS_NFTABLES << 8 | kind
    for kind in (NFT_MSG_DELTABLE, NFT_MSG_DELCHAIN, NFT_MSG_DELRULE, NFT_MSG_DELSET, NFT_MSG_DELSETELEM)
)
_NFGEN_BYTES: Final = 4


class FirewallMonitor:
    """Calls `removed` in the running event loop, from construction on, when others delete something of the table.

    `ports` are the port ids of the sockets through which this process makes its changes. An overflow counts as a
    removal: the table is cheap to replace.

    Raises:
        OSError: the kernel refuses the subscription.
    """

    def __init__(self, table: str, ports: Iterable[int], removed: Callable[[], None]) -> None:
        self._table = table
        self._removed = removed
        self._notifications = Notifications(NETLINK_NETFILTER, [_NFNLGRP_NFTABLES], ports, self._received)

    def close(self) -> None:
        self._notifications.close()

    def _received(self, datagrams: Sequence[bytes], lost: bool) -> None:
        if lost or any(deletes_from(self._table, data) for data in datagrams):
            self._removed()


def deletes_from(table: str, data: bytes) -> bool:
    """Whether a datagram of notifications reports a deletion in the table `inet TABLE`. Pure."""
    return any(
        kind in _DELETIONS
        and len(body) > _NFGEN_BYTES
        and body[0] == NFPROTO_INET
        and text(attributes(body, _NFGEN_BYTES).get(_TABLE)) == table
        for kind, _, _, _, body in messages(data)
    )
