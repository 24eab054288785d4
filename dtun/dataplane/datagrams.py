"""A connected UDP socket, with many datagrams to the system call where the kernel can (udp(7), linux/udp.h).

- UDP_SEGMENT: one send of up to 64 datagrams of one size, the last may be shorter. The kernel, or the network card,
  cuts it late, so that the way through the stack is paid once.
- UDP_GRO: one receive of as many, with their size beside.
"""

import errno
import logging
import socket
import sys
from collections.abc import Callable, Sequence
from struct import Struct

log = logging.getLogger("dtun.dataplane")

MAX_SEGMENTS = 64
"""Datagrams in one send (UDP_MAX_SEGMENTS)."""

MAX_SEND = 65535 - 18 - 40 - 8
"""Bytes in one send. With the headers of Ethernet, IPv6 and UDP in front a device takes it in one piece; what is
longer (gso_max_size of most) the kernel would cut up early."""

RECEIVE_SIZE = 65535

_SOL_UDP = 17
_UDP_SEGMENT = 103
_UDP_GRO = 104
_SIZE = Struct("=H")
_GRO_SIZE = Struct("=i")
_ANCILLARY = socket.CMSG_SPACE(_GRO_SIZE.size)

_LATER = frozenset({errno.EAGAIN, errno.ENOBUFS})
# EIO: no checksum offload on the way out; EINVAL, EMSGSIZE: a datagram is larger than the path's MTU, and a
# batch is not fragmented; ENOPROTOOPT, EOPNOTSUPP: not in this kernel.
_NO_SEGMENTATION = frozenset({errno.EIO, errno.EINVAL, errno.EMSGSIZE, errno.ENOPROTOOPT, errno.EOPNOTSUPP})


class Datagrams:
    """Sends and receives batches on one connected, non-blocking socket. Falls back to single datagrams for good."""

    def __init__(self, sock: socket.socket, *, batches: bool = True) -> None:
        self.socket = sock
        self.segments = batches and sys.platform == "linux"
        self.coalesces = batches and _turn_on_gro(sock)

    def send(self, records: Sequence[bytes], refused: Callable[[OSError], None] | None = None) -> int:
        """Send these in order; returns how many are done with when the socket is full.

        What the network refuses, one datagram or one batch, is gone; `refused` is told, and the others are sent.

        Raises:
            OSError: the network refuses one, and there is no `refused`; those before it are gone, too.
        """
        done, count = 0, len(records)
        while done < count:
            end = batch_end(records, done) if self.segments else done + 1
            try:
                if end - done == 1:
                    self.socket.send(records[done])
                else:
                    size = _SIZE.pack(len(records[done]))
                    self.socket.sendmsg(records[done:end], ((_SOL_UDP, _UDP_SEGMENT, size),))
            except OSError as error:
                if error.errno in _LATER:
                    return done
                if end - done > 1 and error.errno in _NO_SEGMENTATION:
                    self.segments = False
                    log.info(
                        "batches of datagrams cannot be sent on this path (%s); sending one by one",
                        error.strerror,
                    )
                    continue
                if refused is None:
                    raise
                refused(error)
            done = end
        return done

    def receive_into(self, buffer: memoryview) -> tuple[int, int]:
        """Receive datagrams that follow each other in `buffer`; returns their bytes in all, and the size of each.

        The last may be shorter. Raises BlockingIOError if there are none, OSError for what ICMP has reported.
        """
        if not self.coalesces:
            length = self.socket.recv_into(buffer)
            return length, length
        length, ancillary, _, _ = self.socket.recvmsg_into((buffer,), _ANCILLARY)
        for level, kind, data in ancillary:
            if level == _SOL_UDP and kind == _UDP_GRO:
                return length, _GRO_SIZE.unpack_from(data)[0]
        return length, length


def batch_end(records: Sequence[bytes], start: int) -> int:
    """Where the batch ends that starts here: equal sizes, then at most one that is shorter, within the limits."""
    size = len(records[start])
    limit = min(start + max(1, min(MAX_SEGMENTS, MAX_SEND // max(size, 1))), len(records))
    end = start + 1
    while end < limit:
        length = len(records[end])
        if length > size:
            break
        end += 1
        if length < size:
            break
    return end


def _turn_on_gro(sock: socket.socket) -> bool:
    if sys.platform != "linux":
        return False
    try:
        sock.setsockopt(_SOL_UDP, _UDP_GRO, 1)
    except OSError:  # before Linux 5.0
        return False
    return True
