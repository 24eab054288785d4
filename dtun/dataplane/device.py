"""TUN devices as the data plane sees them: they give frames to be sealed, and take plaintexts that were opened."""

import errno
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import FileIO
from typing import Final, Protocol

MAX_PACKET = 65535

Accepts = Callable[[bytes, int], bool]
"""Whether the packet that starts at an offset of a frame may come from this peer; if not, the drop has been counted."""

_UTUN_HEADER_SIZE: Final = 4
_UTUN_HEADERS: Final = {4: b"\0\0\0\x02", 6: b"\0\0\0\x1e"}


@dataclass(slots=True)
class Counters:
    """Packets and bytes inside the tunnel: `rx` from the peer, `tx` to the peer; drops by reason.

    `ignored` are packets that nobody misses: what every kernel says to the neighbours on each of its devices.

    A super-packet counts as the packets that it stands for; its headers count once.
    """

    rx_packets: int = 0
    rx_bytes: int = 0
    tx_packets: int = 0
    tx_bytes: int = 0
    drops: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)

    def dropped(self, operation: str, error: OSError) -> None:
        """Count a drop by the operation and the name of its error: "udp send: ENOBUFS"."""
        self.drops[f"{operation}: {errno.errorcode.get(error.errno or 0, 'error')}"] += 1


class Device(Protocol):
    """A layer 3 device with a non-blocking descriptor."""

    def fileno(self) -> int: ...

    def read_one(self) -> bytes | None:
        """Read a packet that is its own frame; None if there is none; b"" for any other, which `read` returns next.

        Raises:
            OSError: the device is gone or down.
        """
        ...

    def read(self) -> Sequence[bytes] | None:
        """The frames of one read; otherwise like `read_one`."""
        ...

    def deliver_one(self, plaintext: bytes, accepts: Accepts, /) -> bool:
        """Write the packet in one plaintext at once; False if it is not a packet, but a message for the session."""
        ...

    def deliver(self, plaintexts: Sequence[bytes], accepts: Accepts) -> Sequence[bytes]:
        """Write the packets among these plaintexts; returns the others, which are for the session.

        A super-packet that may continue in the next plaintexts is kept until then, or until `flush`.
        """
        ...

    def flush(self) -> None:
        """Write the super-packet that `deliver` kept."""
        ...


def reader(descriptor: int) -> FileIO:
    """Reads a non-blocking descriptor, which its owner closes; its `read` returns None when there is nothing.

    `os.read` would raise BlockingIOError at the end of each turn, which takes ten times as long as the rest of it.
    """
    return FileIO(descriptor, "rb", closefd=False)


class PlainDevice:
    """One complete packet for each read and write."""

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
        """There is never anything kept."""


class UtunDevice(PlainDevice):
    """macOS's utun: one packet for each read and write, behind its address family.

    | address family u32, big-endian: 2 for IPv4, 30 for IPv6 | packet |          (xnu, bsd/net/if_utun.c)
    """

    def read_one(self) -> bytes | None:
        framed = self._read(_UTUN_HEADER_SIZE + MAX_PACKET)
        if framed is None:
            return None
        packet = framed[_UTUN_HEADER_SIZE:]
        if not packet:
            return None
        counters = self._counters
        counters.tx_packets += 1
        counters.tx_bytes += len(packet)
        return packet

    def deliver_one(self, plaintext: bytes, accepts: Accepts) -> bool:
        header = _UTUN_HEADERS.get(plaintext[0] >> 4) if plaintext else None
        if header is None:
            return False
        if accepts(plaintext, 0):
            counters = self._counters
            try:
                counters.rx_bytes += os.writev(self._descriptor, (header, plaintext)) - _UTUN_HEADER_SIZE
                counters.rx_packets += 1
            except OSError as error:
                counters.dropped("tun write", error)
        return True
