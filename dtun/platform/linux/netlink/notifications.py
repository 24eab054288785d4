"""Netlink notifications, without those of this process's own changes.

Ten thousand routes of our own would overflow any queue, so the kernel drops their notifications before they are
queued. Classic BPF (Documentation/networking/filter.rst in the kernel's source), on a message as
dtun.platform.linux.netlink.wire draws it:

    type is RTM_NEWROUTE and the route's protocol is dtun's    drop
    port id is one of ours                                     drop
    anything else                                              keep

    struct sock_filter  | code u16 | jump if true u8 | jump if false u8 | constant u32 |
    struct sock_fprog   | length u16 | padding | pointer to that many sock_filter |

BPF reads fields as big-endian, and netlink writes them in host byte order.
"""

import asyncio
import contextlib
import ctypes
import socket
import struct
from collections.abc import Callable, Iterable, Sequence

from dtun.platform.linux.netlink.sockets import open_socket
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
KEEP, DROP = 0xFFFFFFFF, 0

_TYPE_OFFSET, _PORT_OFFSET = 4, 12
_PROTOCOL_OFFSET = NLMSGHDR.size + 5

RECEIVE_BUFFER_BYTES = 1 << 20
_DATAGRAM_BYTES = 1 << 16
# Datagrams in one turn of the event loop.
BURST = 64


class Notifications:
    """Subscribes to multicast groups, and calls `received` in the running event loop for each burst.

    `received` gets the datagrams of the burst, and whether notifications before them were lost to an overflow.
    `ports` are the port ids of the sockets through which this process makes its own changes. A kernel need not have the
    `optional_groups`.

    Raises:
        OSError: the kernel refuses the subscription.
    """

    def __init__(
        self,
        protocol: int,
        groups: Iterable[int],
        ports: Iterable[int],
        received: Callable[[Sequence[bytes], bool], None],
        *,
        optional_groups: Iterable[int] = (),
    ) -> None:
        self._received = received
        self._overflowed = False
        self._loop = asyncio.get_running_loop()
        self._socket = open_socket(protocol, RECEIVE_BUFFER_BYTES)
        try:
            _attach(self._socket, filter_program(ports))
            self._socket.bind((0, 0))
            for group in groups:
                self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
            for group in optional_groups:
                with contextlib.suppress(OSError):
                    self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        except OSError:
            self._socket.close()
            raise
        self._loop.add_reader(self._socket, self._read)

    def close(self) -> None:
        self._loop.remove_reader(self._socket)
        self._socket.close()

    def _read(self) -> None:
        datagrams: list[bytes] = []
        lost = False
        for _ in range(BURST):
            try:
                datagrams.append(self._socket.recv(_DATAGRAM_BYTES))
            except BlockingIOError:
                lost, self._overflowed = self._overflowed, False
                break
            except OSError:
                # ENOBUFS. The kernel goes on dropping, without another error, until the queue is empty: the loss is
                # reported then, when nothing more can be missing.
                self._overflowed = True
        if datagrams or lost:
            self._received(datagrams, lost)


def filter_program(ports: Iterable[int]) -> bytes:
    """The BPF instructions that drop what this process did, given its own port ids."""
    own = sorted(set(ports))
    # Jumps count from the next instruction; the last two instructions are keep and drop.
    tail = [SOCK_FILTER.pack(LOAD_WORD, 0, 0, _PORT_OFFSET)]
    tail += [
        SOCK_FILTER.pack(JUMP_IF_EQUAL, len(own) - number, 0, socket.htonl(port))
        for number, port in enumerate(own)
    ]
    tail += [SOCK_FILTER.pack(RETURN, 0, 0, KEEP), SOCK_FILTER.pack(RETURN, 0, 0, DROP)]
    head = [
        SOCK_FILTER.pack(LOAD_HALF, 0, 0, _TYPE_OFFSET),
        SOCK_FILTER.pack(JUMP_IF_EQUAL, 0, 2, socket.htons(RTM_NEWROUTE)),
        SOCK_FILTER.pack(LOAD_BYTE, 0, 0, _PROTOCOL_OFFSET),
        SOCK_FILTER.pack(JUMP_IF_EQUAL, len(tail) - 1, 0, ROUTE_PROTOCOL),
    ]
    return b"".join(head + tail)


def _attach(netlink: socket.socket, program: bytes) -> None:
    # The kernel copies the program: the buffer need not outlive the call.
    buffer = ctypes.create_string_buffer(program, len(program))
    count = len(program) // SOCK_FILTER.size
    netlink.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, SOCK_FPROG.pack(count, ctypes.addressof(buffer)))
