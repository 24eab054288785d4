"""Forgets connections that the kernel tracks, by ctnetlink, when their packets change their way out of the host.

A tracked connection keeps the address translation that it got on its first way. A flow from the tunnel would leave by
the uplink untranslated, one from the uplink would come through the tunnel with the uplink's address.

Attributes by number (linux/netfilter/nfnetlink_conntrack.h):

    entry   1 tuple as sent, 12 id, 18 zone
    tuple   1 addresses (1 source, 2 destination, 3 source of IPv6, 4 destination of IPv6)
"""

from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import Final

from dtun.network.state import Address
from dtun.platform.linux.netlink.sockets import NETLINK_NETFILTER, open_socket
from dtun.platform.linux.netlink.wire import (
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    attribute,
    attributes,
    message,
    messages,
)

_SUBSYSTEM: Final = 1  # NFNL_SUBSYS_CTNETLINK
_GET, _DELETE = 1, 2
_NFGEN_BYTES: Final = 4
_TUPLE, _ID, _ZONE = 1, 12, 18
_ADDRESSES: Final = 1
_DESTINATIONS: Final = (2, 4)
_NESTED: Final = 1 << 15
_DATAGRAM_BYTES: Final = 1 << 16


def forget(concerns: Callable[[Address], bool]) -> int:
    """Delete the tracked connections to addresses that this concerns. Returns their number.

    Nothing if connections are not tracked, or may not be read.
    """
    try:
        with open_socket(NETLINK_NETFILTER) as netlink:
            netlink.bind((0, 0))
            request = message(_SUBSYSTEM << 8 | _GET, NLM_F_REQUEST | NLM_F_DUMP, 1, bytes(_NFGEN_BYTES))
            netlink.sendto(request, (0, 0))
            entries: list[bytes] = []
            done = False
            while not done:
                for kind, _, _, _, body in messages(netlink.recv(_DATAGRAM_BYTES)):
                    if kind in (NLMSG_DONE, NLMSG_ERROR):
                        done = True
                    else:
                        entries.append(bytes(body))
            deleted = 0
            for number, deletion in enumerate(deletions(entries, concerns), 2):
                netlink.sendto(message(_SUBSYSTEM << 8 | _DELETE, NLM_F_REQUEST, number, deletion), (0, 0))
                deleted += 1
    except OSError:
        return 0
    return deleted


def deletions(entries: list[bytes], concerns: Callable[[Address], bool]) -> Iterator[bytes]:
    """Yield the body of a request for each entry to delete; `entries` are the bodies of a dump. Pure."""
    for entry in entries:
        found = attributes(memoryview(entry), _NFGEN_BYTES)
        sent = found.get(_TUPLE)
        addresses = attributes(attributes(sent).get(_ADDRESSES, memoryview(b""))) if sent is not None else {}
        destination = next((addresses[kind] for kind in _DESTINATIONS if kind in addresses), None)
        if sent is None or destination is None or not concerns(ip_address(bytes(destination))):
            continue
        # Its id, so that a connection with the same addresses that has begun since is not meant.
        rest = b"".join(attribute(kind, bytes(found[kind])) for kind in (_ID, _ZONE) if kind in found)
        yield entry[:_NFGEN_BYTES] + attribute(_TUPLE | _NESTED, bytes(sent)) + rest
