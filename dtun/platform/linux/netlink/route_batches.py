"""Adds, replaces and removes routes, many in one system call.

A datagram may hold many requests. The kernel carries them out during the send and queues their acknowledgements, so
there is nothing to wait for: a batch is short enough to run in the event loop, and the caller yields between batches.

    | nlmsghdr | rtmsg | RTA_TABLE u32 | RTA_DST address | RTA_OIF u32 |
    | RTA_GATEWAY address, or RTA_VIA | RTA_PREFSRC address | RTA_PRIORITY u32 |

RTA_VIA, a gateway of the other IP version (RFC 8950), is | family u16 | address |. dtun.platform.linux.netlink.wire
draws the rest. Why not with pyroute2: docs/decisions/0004-netlink.md.
"""

import errno
import struct
import sys
from collections.abc import Sequence

from pyroute2.netlink.exceptions import NetlinkError

from dtun.network.difference import DEFAULT_METRIC, Action
from dtun.network.state import Route
from dtun.platform.linux.netlink.sockets import NETLINK_ROUTE, device_index, open_socket, port_of
from dtun.platform.linux.netlink.wire import (
    FAMILIES,
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
    U32,
    attribute,
)

BATCH = 64
"""Routes per system call: less than a millisecond."""

# An acknowledgement has 36 bytes, but the kernel charges the memory allocated for it: 768 bytes, or 2304 without small
# buffers. Room for four batches.
_RECEIVE_BUFFER_BYTES = 4 * BATCH * 2304
_ACK_BYTES = 4096
_UNACKNOWLEDGED = "the kernel did not acknowledge all requests"

# struct nlmsghdr with the error of the struct nlmsgerr after it.
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


class RouteBatches:
    """One rtnetlink socket for routes."""

    def __init__(self) -> None:
        self._sequence = 0
        self._acks = bytearray(_ACK_BYTES)
        self._socket = open_socket(NETLINK_ROUTE, _RECEIVE_BUFFER_BYTES)
        self._socket.bind((0, 0))

    @property
    def port(self) -> int:
        """See `port_of`."""
        return port_of(self._socket)

    def close(self) -> None:
        self._socket.close()

    def send(self, action: Action, routes: Sequence[Route]) -> list[int]:
        """Do the same action for up to `BATCH` routes; returns an errno for each, 0 for success.

        Removes dtun's routes only: the kernel compares the protocol, too.

        Raises:
            NetlinkError: the kernel did not acknowledge all of them.
        """
        indexes: dict[str, int | None] = {"": 0}
        errors: list[int | None] = [None] * len(routes)
        requests = bytearray()
        first = self._sequence + 1
        for number, route in enumerate(routes):
            if route.device not in indexes:
                indexes[route.device] = device_index(route.device)
            index = indexes[route.device]
            if index is None:
                errors[number] = errno.ENODEV
            else:
                requests += request(action, route, index, first + number)
        self._sequence = (self._sequence + len(routes)) & 0x7FFFFFFF
        if requests:
            self._exchange(requests, first, errors)
        if None in errors:
            raise NetlinkError(errno.ENOBUFS, _UNACKNOWLEDGED)
        return [error for error in errors if error is not None]

    def _exchange(self, requests: bytearray, first: int, errors: list[int | None]) -> None:
        try:
            self._socket.sendto(requests, (0, 0))
            missing = errors.count(None)
            while missing > 0:
                # Each acknowledgement comes in its own datagram.
                if self._socket.recv_into(self._acks) < ACK.size:
                    continue
                _, kind, _, sequence, _, code = ACK.unpack_from(self._acks)
                number = sequence - first
                # Skip late acknowledgements of a batch that failed.
                if kind == NLMSG_ERROR and 0 <= number < len(errors) and errors[number] is None:
                    errors[number] = -code
                    missing -= 1
        except BlockingIOError:
            raise NetlinkError(errno.ENOBUFS, _UNACKNOWLEDGED) from None
        except OSError as error:
            raise NetlinkError(error.errno or errno.EIO, str(error)) from None


def request(action: Action, route: Route, index: int, sequence: int) -> bytes:
    """Encode the message for one route; `index` is the device's, 0 for a route without one."""
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
    # Always given: a removal without a metric would match any.
    if metric := route.metric or DEFAULT_METRIC[version]:
        parts += [_PRIORITY, U32.pack(metric)]
    attributes = b"".join(parts)
    # The host's own routes may reach the gateway without being in its network (onlink).
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
