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
from functools import cache
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
# Larger than the path's MTU, and not to be fragmented, which batches never are (EINVAL before Linux 6.14). Or ICMP
# says so of a datagram that is long gone (udp(7)): a socket hands out such an error once, whatever is sent then.
_TOO_LARGE = frozenset({errno.EMSGSIZE, errno.EINVAL})
# EIO: no checksum offload on the way out; ENOPROTOOPT, EOPNOTSUPP: not in this kernel.
_NO_BATCHES = _TOO_LARGE | {errno.EIO, errno.ENOPROTOOPT, errno.EOPNOTSUPP}


class Datagrams:
    """Sends and receives batches on one connected, non-blocking socket.

    Falls back to single datagrams where the kernel cannot do batches, or fragments datagrams of this size.
    """

    def __init__(self, sock: socket.socket, *, batches: bool = True) -> None:
        self.socket = sock
        self.segments = batches and sys.platform == "linux"
        self._wanted = self.segments
        self.coalesces = batches and _turn_on_gro(sock)

    def renew(self) -> None:
        """Try batches again: sizes, or what the kernel does with large datagrams, have changed."""
        self.segments = self._wanted

    def send(self, records: Sequence[bytes], refused: Callable[[OSError], None] | None = None) -> int:
        """Send these in order; returns how many are done with when the socket is full.

        What the network refuses, one datagram or one batch, is gone; `refused` is told, and the others are sent.
        It is also told of what ICMP says of an earlier datagram.

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
                more = self.insist(records[done:end], error, refused)
                if not more:
                    return done
                done += more
            else:
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

    def insist(
        self, batch: Sequence[bytes], error: OSError, refused: Callable[[OSError], None] | None
    ) -> int:
        """Find out what can be done after `error` of a send of this batch, or of this one datagram; see `send`.

        Returns how many are done with: none when the socket is full.
        """
        if error.errno in _LATER:
            return 0
        if error.errno in _TOO_LARGE:
            again = self._refusal(batch)
            if again is None:  # it was an earlier one that was meant
                if refused is not None:
                    refused(error)
                return len(batch)
            error = again
        if len(batch) > 1 and error.errno in _NO_BATCHES:
            alone = self._refusal(batch[:1])
            if alone is None:
                self._give_up_batches(error)
                return 1
            batch, error = batch[:1], alone
        if error.errno in _LATER:
            return 0
        if refused is None:
            raise error
        refused(error)
        return len(batch)

    def _refusal(self, batch: Sequence[bytes]) -> OSError | None:
        """Send them; returns why not."""
        size = ((_SOL_UDP, _UDP_SEGMENT, _SIZE.pack(len(batch[0]))),) if len(batch) > 1 else ()
        try:
            self.socket.sendmsg(batch, size)
        except OSError as error:
            return error
        return None

    def _give_up_batches(self, error: OSError) -> None:
        self.segments = False
        _say_once(f"batches of datagrams cannot be sent on this path ({error.strerror}); sending one by one")


def batch_end(records: Sequence[bytes], start: int) -> int:
    """Where the batch ends that starts here: equal sizes, then at most one that is shorter, within the limits."""
    size = len(records[start])
    limit = min(start + max(1, min(MAX_SEGMENTS, MAX_SEND // max(size, 1))), len(records))
    lengths = list(map(len, records[start:limit]))
    if lengths.count(size) == len(lengths):  # nearly always, and half as long to find out as one by one
        return limit
    equal = next(number for number, length in enumerate(lengths) if length != size)
    return start + equal + (lengths[equal] < size)


def _turn_on_gro(sock: socket.socket) -> bool:
    if sys.platform == "linux":
        try:
            sock.setsockopt(_SOL_UDP, _UDP_GRO, 1)
        except OSError:
            _say_once("this kernel hands out datagrams one by one (Linux 5.0 has UDP_GRO), which costs speed")
        else:
            return True
    return False


@cache
def _say_once(text: str) -> None:
    """A server with many clients, whose sessions are renewed again and again, would say it each time."""
    log.info("%s", text)
