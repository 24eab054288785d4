"""A connected UDP socket, with many datagrams for each system call where the kernel can (udp(7), linux/udp.h).

- UDP_SEGMENT: one send of up to 64 datagrams of one size; the last may be shorter. The kernel or the network card
  splits it late, so the network stack is passed only once.
- UDP_GRO: one receive of as many, with their size as ancillary data.
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
"""Bytes in one send. With the headers of Ethernet, IPv6 and UDP this is the gso_max_size of most devices; longer sends
would be split early by the kernel."""

RECEIVE_SIZE = 65535

_SOL_UDP = 17
_UDP_SEGMENT = 103
_UDP_GRO = 104
_SIZE = Struct("=H")
_GRO_SIZE = Struct("=i")
_ANCILLARY = socket.CMSG_SPACE(_GRO_SIZE.size)

_LATER = frozenset({errno.EAGAIN, errno.ENOBUFS})
# The datagram is larger than the path MTU and may not be fragmented, as batches never may (EINVAL before Linux 6.14).
# Or ICMP reports it of an earlier datagram (udp(7)): a socket returns such an error once, from whatever call is next.
_TOO_LARGE = frozenset({errno.EMSGSIZE, errno.EINVAL})
# EIO: the outgoing device has no checksum offload; ENOPROTOOPT, EOPNOTSUPP: the kernel lacks it.
_NO_BATCHES = _TOO_LARGE | {errno.EIO, errno.ENOPROTOOPT, errno.EOPNOTSUPP}


class Datagrams:
    """Sends and receives batches on one connected, non-blocking socket.

    Falls back to single datagrams if the kernel cannot send batches, or would have to fragment datagrams of this size.
    """

    def __init__(self, sock: socket.socket, *, batches: bool = True) -> None:
        self.socket = sock
        self.segments = batches and sys.platform == "linux"
        self._wanted = self.segments
        self.coalesces = batches and _turn_on_gro(sock)

    def renew(self) -> None:
        """Try batches again: sizes, or how the kernel treats large datagrams, have changed."""
        self.segments = self._wanted

    def send(self, records: Sequence[bytes], refused: Callable[[OSError], None] | None = None) -> int:
        """Send these in order; returns how many were sent or refused before the socket was full.

        A datagram or batch that the network refuses is lost: `refused` is called with the error, and the others are
        sent. `refused` is also called with an error that ICMP reported of an earlier datagram.

        Raises:
            OSError: the network refuses one, and there is no `refused`; those before it have been sent.
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
                more = self.retry(records[done:end], error, refused)
                if not more:
                    return done
                done += more
            else:
                done = end
        return done

    def receive_into(self, buffer: memoryview) -> tuple[int, int]:
        """Receive consecutive datagrams into `buffer`; returns their bytes in all, and the size of each.

        The last may be shorter.

        Raises:
            BlockingIOError: there are none.
            OSError: ICMP has reported an error.
        """
        if not self.coalesces:
            length = self.socket.recv_into(buffer)
            return length, length
        length, ancillary, _, _ = self.socket.recvmsg_into((buffer,), _ANCILLARY)
        for level, kind, data in ancillary:
            if level == _SOL_UDP and kind == _UDP_GRO:
                return length, _GRO_SIZE.unpack_from(data)[0]
        return length, length

    def retry(self, batch: Sequence[bytes], error: OSError, refused: Callable[[OSError], None] | None) -> int:
        """Try this batch, or this one datagram, again after a send failed with `error`; see `send`.

        Returns how many were sent or refused: none if the socket is full.
        """
        if error.errno in _LATER:
            return 0
        if error.errno in _TOO_LARGE:
            again = self._refusal(batch)
            if again is None:  # the error was of an earlier datagram
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
        """Send them; returns the error, if there is one."""
        size = ((_SOL_UDP, _UDP_SEGMENT, _SIZE.pack(len(batch[0]))),) if len(batch) > 1 else ()
        try:
            self.socket.sendmsg(batch, size)
        except OSError as error:
            return error
        return None

    def _give_up_batches(self, error: OSError) -> None:
        self.segments = False
        log_once(f"batches of datagrams cannot be sent on this path ({error.strerror}); sending one by one")


def batch_end(records: Sequence[bytes], start: int) -> int:
    """The end of the batch that starts here: datagrams of one size, then at most one that is shorter."""
    size = len(records[start])
    limit = min(start + max(1, min(MAX_SEGMENTS, MAX_SEND // max(size, 1))), len(records))
    lengths = list(map(len, records[start:limit]))
    if lengths.count(size) == len(lengths):  # the usual case, found out in half the time
        return limit
    equal = next(number for number, length in enumerate(lengths) if length != size)
    return start + equal + (lengths[equal] < size)


def _turn_on_gro(sock: socket.socket) -> bool:
    if sys.platform == "linux":
        try:
            sock.setsockopt(_SOL_UDP, _UDP_GRO, 1)
        except OSError:
            log_once("this kernel receives datagrams one by one, which costs speed (UDP_GRO needs Linux 5.0)")
        else:
            return True
    return False


@cache
def log_once(text: str) -> None:
    """Log a text once: it would otherwise be repeated for each session."""
    log.info("%s", text)
