"""Netlink sockets, and the indexes by which netlink knows network devices."""

import socket

from dtun.platform.linux.netlink.wire import NETLINK_CAP_ACK, SOL_NETLINK

ANSWER_TIME = 10.0
"""Seconds for an answer of the kernel. It takes milliseconds, but an answer is lost if there is no memory for it."""

NETLINK_ROUTE, NETLINK_NETFILTER = 0, 12  # linux/netlink.h
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h


def open_socket(protocol: int, receive_buffer: int = 0) -> socket.socket:
    """Open a non-blocking socket, not yet bound, whose acknowledgements do not repeat the request.

    `receive_buffer` in bytes; 0 is the system's default.
    """
    opened = socket.socket(
        socket.AF_NETLINK,  # type: ignore[attr-defined,unused-ignore]
        socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,  # type: ignore[attr-defined,unused-ignore]
        protocol,
    )
    opened.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
    if receive_buffer:
        force_receive_buffer(opened, receive_buffer)
    return opened


def port_of(netlink: socket.socket) -> int:
    """The port id of a bound socket, by which a notification tells whose request it reports."""
    return int(netlink.getsockname()[0])


def force_receive_buffer(netlink: socket.socket, size: int) -> None:
    """Set a receive buffer of `size` bytes beyond net.core.rmem_max with CAP_NET_ADMIN, else up to that limit."""
    try:
        netlink.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, size)
    except PermissionError:
        netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


def device_index(name: str) -> int | None:
    """The index of a network device; None if there is no such device."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return None
