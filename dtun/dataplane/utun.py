"""macOS's utun as the data plane sees it: one packet for each read and write, behind its address family.

| address family u32, big-endian: 2 for IPv4, 30 for IPv6 | packet |          (xnu, bsd/net/if_utun.c)
"""

import os
from collections.abc import Sequence
from typing import Final

from dtun.dataplane.counters import Counters
from dtun.dataplane.device import MAX_PACKET, Accepts, reader

HEADER_SIZE: Final = 4
_HEADERS: Final = {4: b"\0\0\0\x02", 6: b"\0\0\0\x1e"}


class UtunDevice:
    """Packets without their headers on the one side, and with them on the other."""

    def __init__(self, descriptor: int, counters: Counters) -> None:
        self._descriptor = descriptor
        self._read = reader(descriptor).read
        self._counters = counters

    def fileno(self) -> int:
        return self._descriptor

    def read_one(self) -> bytes | None:
        framed = self._read(HEADER_SIZE + MAX_PACKET)
        if framed is None:
            return None
        packet = framed[HEADER_SIZE:]
        if not packet:
            return None
        counters = self._counters
        counters.tx_packets += 1
        counters.tx_bytes += len(packet)
        return packet

    def read(self) -> Sequence[bytes] | None:
        packet = self.read_one()
        return None if packet is None else (packet,)

    def deliver_one(self, plaintext: bytes, accepts: Accepts) -> bool:
        header = _HEADERS.get(plaintext[0] >> 4) if plaintext else None
        if header is None:
            return False
        if accepts(plaintext, 0):
            counters = self._counters
            try:
                counters.rx_bytes += os.writev(self._descriptor, (header, plaintext)) - HEADER_SIZE
                counters.rx_packets += 1
            except OSError as error:
                counters.dropped("tun write", error)
        return True

    def deliver(self, plaintexts: Sequence[bytes], accepts: Accepts) -> Sequence[bytes]:
        return [plaintext for plaintext in plaintexts if not self.deliver_one(plaintext, accepts)]

    def flush(self) -> None:
        """Nothing waits here."""
