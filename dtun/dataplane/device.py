"""TUN devices as the data plane sees them: they hand out frames to be sealed, and take what was opened."""

import os
from collections.abc import Callable, Sequence
from io import FileIO
from typing import Protocol

from dtun.dataplane.counters import Counters

MAX_PACKET = 65535

Accepts = Callable[[bytes, int], bool]
"""Whether the packet that starts at an offset of a frame may come from this peer; if not, that has been counted."""


class Device(Protocol):
    """A layer 3 device whose descriptor does not block."""

    def fileno(self) -> int: ...

    def read_one(self) -> bytes | None:
        """A packet that is its own frame, or None when there is nothing; b"" for any other, which `read` has next.

        Raises OSError when the device is gone or down.
        """
        ...

    def read(self) -> Sequence[bytes] | None:
        """The frames of one read; otherwise like `read_one`."""
        ...

    def deliver_one(self, plaintext: bytes, accepts: Accepts, /) -> bool:
        """Write what is in one plaintext that nothing else waits for; False if it is no packet, but for the session."""
        ...

    def deliver(self, plaintexts: Sequence[bytes], accepts: Accepts) -> Sequence[bytes]:
        """Write the packets among these plaintexts of records; returns the others, which are for the session.

        What may go on with the next plaintexts waits for them, or for `flush`.
        """
        ...

    def flush(self) -> None:
        """Write what waits."""
        ...


def reader(descriptor: int) -> FileIO:
    """Reads a descriptor that does not block, and that somebody else closes: None when there is nothing.

    `os.read` would raise BlockingIOError, which is ten times as much work as the rest of it, and the last thing in each
    turn.
    """
    return FileIO(descriptor, "rb", closefd=False)


class PlainDevice:
    """One packet, complete, for each read and write: what every system has."""

    def __init__(self, descriptor: int, counters: Counters) -> None:
        self._descriptor = descriptor
        self._read = reader(descriptor).read
        self._counters = counters

    def fileno(self) -> int:
        return self._descriptor

    def read_one(self) -> bytes | None:
        packet = self._read(MAX_PACKET) or None
        if packet is not None:
            counters = self._counters
            counters.tx_packets += 1
            counters.tx_bytes += len(packet)
        return packet

    def read(self) -> Sequence[bytes] | None:
        packet = self.read_one()
        return None if packet is None else (packet,)

    def deliver_one(self, plaintext: bytes, accepts: Accepts) -> bool:
        if not plaintext or plaintext[0] >> 4 not in (4, 6):
            return False
        if accepts(plaintext, 0):
            counters = self._counters
            try:
                counters.rx_bytes += os.write(self._descriptor, plaintext)
                counters.rx_packets += 1
            except OSError as error:
                counters.dropped("tun write", error)
        return True

    def deliver(self, plaintexts: Sequence[bytes], accepts: Accepts) -> Sequence[bytes]:
        return [plaintext for plaintext in plaintexts if not self.deliver_one(plaintext, accepts)]

    def flush(self) -> None:
        """Nothing waits here."""
