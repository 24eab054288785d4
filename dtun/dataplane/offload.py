"""A TUN device with IFF_VNET_HDR: the kernel hands out and takes super-packets (linux/if_tun.h)."""

import os
from collections.abc import Sequence
from typing import Protocol

from dtun.dataplane.counters import Counters
from dtun.dataplane.device import MAX_PACKET, Accepts, Device, PlainDevice
from dtun.protocol import virtio
from dtun.protocol.segments import HEADER_SIZE, PARTIAL, SEGMENT, Run, cut, partial, whole

_SEGMENT = bytes([SEGMENT])


class TunDevice(Protocol):
    """What is to be known of a TUN device. `offloads` names what it can take: "segments", "udp-segments"."""

    offloads: frozenset[str]

    def fileno(self) -> int: ...


def device_for(tun: TunDevice, counters: Counters) -> Device:
    """The data plane's view of a TUN device, by what it can do."""
    if tun.offloads:
        return OffloadDevice(tun.fileno(), counters)
    return PlainDevice(tun.fileno(), counters)


class OffloadDevice:
    """Reads super-packets as frames of one segment each, and joins such frames into super-packets again."""

    def __init__(self, descriptor: int, counters: Counters) -> None:
        self._descriptor = descriptor
        self._counters = counters
        self._buffer = bytearray(virtio.SIZE + MAX_PACKET)
        self._view = memoryview(self._buffer)

    def fileno(self) -> int:
        return self._descriptor

    def read(self) -> Sequence[bytes]:
        length = os.readv(self._descriptor, (self._buffer,))
        flags, kind, _, size, start, offset = virtio.HEADER.unpack_from(self._buffer)
        packet = bytes(self._view[virtio.SIZE : length])
        counters = self._counters
        if kind == virtio.GSO_NONE:
            counters.tx_packets += 1
            counters.tx_bytes += len(packet)
            return (partial(packet, start, offset),) if flags & virtio.NEEDS_CSUM else (packet,)
        frames = cut(packet, start, offset, size)
        if not frames:
            counters.drops["super-packet not understood"] += 1
        counters.tx_packets += len(frames)
        counters.tx_bytes += len(packet)
        return frames

    def deliver(self, plaintexts: Sequence[bytes], accepts: Accepts) -> Sequence[bytes]:
        others: list[bytes] = []
        run: Run | None = None
        for frame in plaintexts:
            is_segment = frame[:1] == _SEGMENT
            if run is not None:
                if is_segment and run.extend(frame):
                    continue
                self._write(run.finish(), run.packets)
                run = None
            if is_segment:
                run = self._begin(frame, accepts)
            elif not self._take(frame, accepts):
                others.append(frame)
        if run is not None:
            self._write(run.finish(), run.packets)
        return others

    def _begin(self, frame: bytes, accepts: Accepts) -> Run | None:
        """The run that starts with this segment, if it is one and may come in."""
        run = Run.begin(frame)
        if run is None:
            self._counters.drops["malformed segment"] += 1
        elif accepts(frame, HEADER_SIZE):
            return run
        return None

    def _take(self, frame: bytes, accepts: Accepts) -> bool:
        """Write the one packet that a frame is; False if it is none."""
        kind = frame[0] if frame else 0
        if kind >> 4 in (4, 6):
            if accepts(frame, 0):
                self._write((virtio.NO_OFFLOAD, frame), 1)
        elif kind == PARTIAL:
            pieces = whole(frame)
            if pieces is None:
                self._counters.drops["malformed packet"] += 1
            elif accepts(frame, HEADER_SIZE):
                self._write(pieces, 1)
        else:
            return False
        return True

    def _write(self, pieces: Sequence[bytes], packets: int) -> None:
        counters = self._counters
        try:
            length = os.writev(self._descriptor, pieces)
        except OSError as error:
            counters.dropped("tun write", error)
        else:
            counters.rx_packets += packets
            counters.rx_bytes += length - virtio.SIZE
