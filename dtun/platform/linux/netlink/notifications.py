"""Sockets for the kernel's notifications, which leave out what this process did itself before it takes room in a queue.

Ten thousand routes of our own would overflow any queue. Classic BPF (Documentation/networking/filter.rst in the
kernel's source), on a notification as dtun.platform.linux.netlink.wire draws it:

    type is RTM_NEWROUTE, and the route's protocol is dtun's    left out
    the port is one of ours                                     left out
    anything else                                               kept

    struct sock_filter  | code u16 | jump if true u8 | jump if false u8 | constant u32 |
    struct sock_fprog   | length u16 | padding | pointer to that many of them |

BPF reads fields as big-endian, and netlink writes them in host byte order.
"""

import ctypes
import socket
import struct
from collections.abc import Iterable

from dtun.platform.linux.netlink.bulk import force_receive_buffer
from dtun.platform.linux.netlink.wire import (
    NETLINK_ADD_MEMBERSHIP,
    NLMSGHDR,
    ROUTE_PROTOCOL,
    RTM_NEWROUTE,
    SOL_NETLINK,
)

SOCK_FILTER = struct.Struct("=HBBI")
SOCK_FPROG = struct.Struct("@HP")
SO_ATTACH_FILTER = 26

# BPF_LD | BPF_W, BPF_H or BPF_B | BPF_ABS; BPF_JMP | BPF_JEQ | BPF_K; BPF_RET | BPF_K. From linux/filter.h.
LOAD_WORD, LOAD_HALF, LOAD_BYTE = 0x20, 0x28, 0x30
JUMP_IF_EQUAL = 0x15
RETURN = 0x06
KEEP, LEAVE_OUT = 0xFFFFFFFF, 0

_TYPE_OFFSET, _PORT_OFFSET = 4, 12
_PROTOCOL_OFFSET = NLMSGHDR.size + 5


def program(ports: Iterable[int]) -> bytes:
    """The filter's instructions, for our own `ports`."""
    own = sorted(set(ports))
    # Jumps are counted from the next instruction; the last two are "keep" and "leave out".
    tail = [SOCK_FILTER.pack(LOAD_WORD, 0, 0, _PORT_OFFSET)]
    tail += [
        SOCK_FILTER.pack(JUMP_IF_EQUAL, len(own) - number, 0, socket.htonl(port))
        for number, port in enumerate(own)
    ]
    tail += [SOCK_FILTER.pack(RETURN, 0, 0, KEEP), SOCK_FILTER.pack(RETURN, 0, 0, LEAVE_OUT)]
    head = [
        SOCK_FILTER.pack(LOAD_HALF, 0, 0, _TYPE_OFFSET),
        SOCK_FILTER.pack(JUMP_IF_EQUAL, 0, 2, socket.htons(RTM_NEWROUTE)),
        SOCK_FILTER.pack(LOAD_BYTE, 0, 0, _PROTOCOL_OFFSET),
        SOCK_FILTER.pack(JUMP_IF_EQUAL, len(tail) - 1, 0, ROUTE_PROTOCOL),
    ]
    return b"".join(head + tail)


def leave_out(netlink: socket.socket, ports: Iterable[int]) -> None:
    """Attach the filter to a socket for notifications."""
    code = program(ports)
    # The pointer is good for as long as the buffer is; the kernel copies.
    buffer = ctypes.create_string_buffer(code, len(code))
    count = len(code) // SOCK_FILTER.size
    netlink.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, SOCK_FPROG.pack(count, ctypes.addressof(buffer)))


def notifications(protocol: int, groups: Iterable[int], size: int, ports: Iterable[int]) -> socket.socket:
    """A netlink socket that does not block and hears these multicast groups, with room for `size` bytes.

    `ports` are those of the sockets by which this process makes its own changes.

    Raises:
        OSError: the kernel does not tell.
    """
    made = socket.socket(
        socket.AF_NETLINK,  # type: ignore[attr-defined,unused-ignore]
        socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,  # type: ignore[attr-defined,unused-ignore]
        protocol,
    )
    try:
        force_receive_buffer(made, size)
        leave_out(made, ports)
        made.bind((0, 0))
        for group in groups:
            made.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
    except OSError:
        made.close()
        raise
    return made
