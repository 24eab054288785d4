"""Routes into the kernel and out of it, many in one system call.

A datagram to the kernel may hold many requests. The kernel has carried out all of them when the call that sent it
returns, and their acknowledgements are in the socket's queue. So there is nothing to wait for: a batch is short enough
to do at once in the event loop, and the caller lets others in between two batches.

    | nlmsghdr | rtmsg | RTA_TABLE u32 | RTA_DST address | RTA_OIF u32 |
    | RTA_GATEWAY address, or RTA_VIA | RTA_PREFSRC address | RTA_PRIORITY u32 |

RTA_VIA (a gateway of the other IP version, RFC 8950) is | family u16 | address |. dtun.platform.linux.netlink.wire
draws the parts.
"""

import errno
import socket
import struct
import sys
from collections.abc import Sequence

from pyroute2.netlink.exceptions import NetlinkError

from dtun.network.difference import DEFAULT_METRIC, Action
from dtun.network.state import Route
from dtun.platform.linux.netlink.wire import (
    FAMILIES,
    NETLINK_CAP_ACK,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    NLMSGHDR,
    ROUTE_PROTOCOL,
    RTA_DST,
    RTA_GATEWAY,
    RTA_OIF,
    RTA_PREFSRC,
    RTA_PRIORITY,
    RTA_TABLE,
    RTA_VIA,
    RTATTR,
    RTM_DELROUTE,
    RTM_NEWROUTE,
    RTMSG,
    RTN_THROW,
    RTN_UNICAST,
    RTN_UNREACHABLE,
    RTNH_F_ONLINK,
    SOL_NETLINK,
    U32,
    attribute,
)

BATCH = 64
"""Routes in one system call: less than a millisecond."""

# An acknowledgement takes 36 bytes, for which the kernel charges what it has allocated: with its bookkeeping 768, up
# to 2304 where small buffers are not to be had. Room for four times as much as a batch can bring.
RECEIVE_BUFFER_BYTES = 4 * BATCH * 2304
_ACK_BYTES = 4096

# struct nlmsghdr, and the error of the struct nlmsgerr behind it.
ACK = struct.Struct("=IHHIIi")

ROUTE_TYPES = {"unicast": RTN_UNICAST, "unreachable": RTN_UNREACHABLE, "throw": RTN_THROW}
_REQUESTS: dict[Action, tuple[int, int]] = {
    "add": (RTM_NEWROUTE, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL),
    "replace": (RTM_NEWROUTE, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE),
    "remove": (RTM_DELROUTE, NLM_F_REQUEST | NLM_F_ACK),
}
_TABLE = RTATTR.pack(8, RTA_TABLE)
_OIF = RTATTR.pack(8, RTA_OIF)
_PRIORITY = RTATTR.pack(8, RTA_PRIORITY)
_DST = {4: RTATTR.pack(8, RTA_DST), 6: RTATTR.pack(20, RTA_DST)}


class Bulk:
    """One rtnetlink socket for routes."""

    def __init__(self) -> None:
        self._sequence = 0
        self._acks = bytearray(_ACK_BYTES)
        self._socket = socket.socket(
            socket.AF_NETLINK,  # type: ignore[attr-defined,unused-ignore]
            socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,  # type: ignore[attr-defined,unused-ignore]
            socket.NETLINK_ROUTE,  # type: ignore[attr-defined,unused-ignore]
        )
        force_receive_buffer(self._socket, RECEIVE_BUFFER_BYTES)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        self._socket.bind((0, 0))

    @property
    def port(self) -> int:
        """By this number the kernel says in a notification whose request it was."""
        return int(self._socket.getsockname()[0])

    def close(self) -> None:
        self._socket.close()

    def send(self, action: Action, routes: Sequence[Route]) -> list[int]:
        """Carry out the same action on up to `BATCH` routes; an errno for each, 0 where it is done.

        Only ever removes routes of dtun's: the kernel compares the protocol, too.

        Raises:
            NetlinkError: the kernel gave no answer to some of them.
        """
        indexes: dict[str, int] = {}
        answers: list[int | None] = [None] * len(routes)
        requests = bytearray()
        first = self._sequence + 1
        for number, route in enumerate(routes):
            index = indexes.get(route.device)
            if index is None:
                index = indexes[route.device] = _index(route.device)
            if index < 0:
                answers[number] = errno.ENODEV
            else:
                requests += request(action, route, index, first + number)
        self._sequence = (self._sequence + len(routes)) & 0x7FFFFFFF
        if requests:
            self._exchange(requests, first, answers)
        if None in answers:
            raise NetlinkError(errno.ENOBUFS, "the kernel left requests without an answer")
        return [answer for answer in answers if answer is not None]

    def _exchange(self, requests: bytearray, first: int, answers: list[int | None]) -> None:
        try:
            self._socket.sendto(requests, (0, 0))
            missing = answers.count(None)
            while missing > 0:
                # Each acknowledgement is a datagram of its own.
                if self._socket.recv_into(self._acks) < ACK.size:
                    continue
                _, kind, _, sequence, _, code = ACK.unpack_from(self._acks)
                number = sequence - first
                # A late answer to a batch that was given up belongs to nobody.
                if kind == NLMSG_ERROR and 0 <= number < len(answers) and answers[number] is None:
                    answers[number] = -code
                    missing -= 1
        except BlockingIOError:
            raise NetlinkError(errno.ENOBUFS, "the kernel left requests without an answer") from None
        except OSError as error:
            raise NetlinkError(error.errno or errno.EIO, str(error)) from None


def request(action: Action, route: Route, index: int, sequence: int) -> bytes:
    """The message for one route; `index` is its device's, 0 where it has none."""
    destination = route.destination
    version = destination.version
    kind, flags = _REQUESTS[action]
    gateway, source, table = route.gateway, route.source, route.table
    parts = [_TABLE, U32.pack(table), _DST[version], destination.network_address.packed]
    if index:
        parts += [_OIF, U32.pack(index)]
    if gateway is not None:
        if gateway.version == version:
            parts.append(attribute(RTA_GATEWAY, gateway.packed))
        else:
            family = int(FAMILIES[gateway.version]).to_bytes(2, sys.byteorder)
            parts.append(attribute(RTA_VIA, family + gateway.packed))
    if source is not None:
        parts.append(attribute(RTA_PREFSRC, source.packed))
    # Always said: a removal without it would take whatever metric comes first.
    if metric := route.metric or DEFAULT_METRIC[version]:
        parts += [_PRIORITY, U32.pack(metric)]
    attributes = b"".join(parts)
    # The gateway comes from the host's own routes, which may reach it without a network of its own (onlink).
    onlink = RTNH_F_ONLINK if gateway is not None else 0
    length = NLMSGHDR.size + RTMSG.size + len(attributes)
    return (
        NLMSGHDR.pack(length, kind, flags, sequence, 0)
        + RTMSG.pack(
            FAMILIES[version],
            destination.prefixlen,
            0,
            0,
            table if table < 256 else 0,
            ROUTE_PROTOCOL,
            0,
            ROUTE_TYPES[route.kind],
            onlink,
        )
        + attributes
    )


def force_receive_buffer(netlink: socket.socket, size: int) -> None:
    """More than the system's limit for everybody, which CAP_NET_ADMIN may ask for; else as much as there is."""
    try:
        netlink.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, size)
    except PermissionError:
        netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


_SO_RCVBUFFORCE = 33


def _index(device: str) -> int:
    """0 for none, -1 for one that does not exist."""
    if not device:
        return 0
    try:
        return socket.if_nametoindex(device)
    except OSError:
        return -1
