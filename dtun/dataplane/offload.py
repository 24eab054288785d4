"""A TUN device with IFF_VNET_HDR, which gives and takes super-packets (linux/if_tun.h)."""

import os
from collections.abc import Callable, Sequence
from typing import Protocol

from dtun.dataplane.device import MAX_PACKET, Accepts, Counters, Device, PlainDevice, UtunDevice, reader
from dtun.protocol import virtio
from dtun.protocol.segments import HEADER_SIZE, PARTIAL, SEGMENT, Run, cut, partial, whole
from dtun.protocol.trains import Train
from dtun.protocol.virtio import NO_OFFLOAD

_SEGMENT, _PARTIAL = bytes([SEGMENT]), bytes([PARTIAL])
_JOINED = (_SEGMENT, _PARTIAL)
_HEADER_SIZE = virtio.SIZE
_MAX_READ = _HEADER_SIZE + MAX_PACKET


class TunDevice(Protocol):
    """The properties of a TUN device that matter here: see `dtun.platform.interface.Tun`."""

    vnet_header: bool
    family_header: bool
    offloads: frozenset[str]
    enabled_offloads: frozenset[str]

    def fileno(self) -> int: ...


def device_for(tun: TunDevice, counters: Counters) -> Device:
    """The data plane's device for this TUN device."""
    if tun.vnet_header:
        return OffloadDevice(tun, counters)
    if tun.family_header:
        return UtunDevice(tun.fileno(), counters)
    return PlainDevice(tun.fileno(), counters)


class OffloadDevice:
    """Reads super-packets as frames of one segment each, and joins such frames to super-packets again.

    If the kernel takes super-packets of UDP, consecutive datagrams of a flow are joined, too.
    """

    __slots__ = (
        "_counters",
        "_descriptor",
        "_joined",
        "_joins",
        "_odd",
        "_trains",
        "_tun",
        "deliver_one",
        "read_one",
    )

    def __init__(self, tun: TunDevice, counters: Counters) -> None:
        self._tun = tun
        self._trains = "udp-segments" in tun.offloads
        self._descriptor = tun.fileno()
        self._counters = counters
        self._odd = b""
        self._joined: Run | Train | None = None
        # The first byte of the frames that can continue it.
        self._joins = b""
        # Closures, to save attribute look-ups on the path of single packets: see pump.py.
        self.read_one = self._reader()
        self.deliver_one = self._writer()

    def fileno(self) -> int:
        return self._descriptor

    def _reader(self) -> Callable[[], bytes | None]:
        read, counters = reader(self._descriptor).read, self._counters
        most, header_size, needs_csum = _MAX_READ, _HEADER_SIZE, virtio.NEEDS_CSUM

        def read_one() -> bytes | None:
            came = read(most)
            if not came:
                return None
            if came[1] or came[0] & needs_csum:  # type or flags: segmentation or a checksum is still due
                self._odd = came
                return b""
            packet = came[header_size:]
            counters.tx_packets += 1
            counters.tx_bytes += len(packet)
            return packet

        return read_one

    def read(self) -> Sequence[bytes] | None:
        if not self._odd:
            packet = self.read_one()
            if not self._odd:
                return None if packet is None else (packet,)
        return self._split()

    def _split(self) -> Sequence[bytes]:
        """The frames of the packet that `read_one` left."""
        read, self._odd = self._odd, b""
        packet = read[_HEADER_SIZE:]
        flags, kind, _, size, start, offset = virtio.HEADER.unpack_from(read)
        counters = self._counters
        frames: Sequence[bytes]
        if (kind or flags & virtio.NEEDS_CSUM) and not self._tun.enabled_offloads:
            # It has waited in the kernel's queue since a previous peer, which takes super-packets.
            counters.drops["super-packet for a peer that takes none"] += 1
            return ()
        if kind != virtio.GSO_NONE:
            frames = cut(packet, start, offset, size)
        elif flags & virtio.NEEDS_CSUM:
            # A virtual machine may state any offset, but no protocol has its checksum further away.
            frames = (partial(packet, start, offset),) if offset <= 255 else ()
        else:
            frames = (packet,)
        if not frames:
            counters.drops["super-packet not understood"] += 1
        counters.tx_packets += len(frames)
        counters.tx_bytes += len(packet)
        return frames

    def _writer(self) -> Callable[[bytes, Accepts], bool]:
        write, descriptor, counters, no_offload = os.write, self._descriptor, self._counters, NO_OFFLOAD

        def deliver_one(plaintext: bytes, accepts: Accepts) -> bool:
            if plaintext and plaintext[0] & 0xD0 == 0x40:  # the IP version, in the upper half, is 4 or 6
                if accepts(plaintext, 0):
                    try:
                        write(descriptor, no_offload + plaintext)
                        counters.rx_packets += 1
                        counters.rx_bytes += len(plaintext)
                    except OSError as error:
                        counters.dropped("tun write", error)
                return True
            if plaintext[:1] in _JOINED:
                self.deliver((plaintext,), accepts)
                self.flush()
                return True
            return False

        return deliver_one

    def deliver(self, plaintexts: Sequence[bytes], accepts: Accepts) -> Sequence[bytes]:
        others: list[bytes] = []
        joined = self._joined
        joins = self._joins
        number, count = 0, len(plaintexts)
        while number < count:
            frame = plaintexts[number]
            number += 1
            kind = frame[:1]
            if joined is not None:
                if kind == joins and joined.extend(frame):
                    if isinstance(joined, Run):
                        number += joined.extend_many(plaintexts, number)
                    continue
                self._write(joined.finish(), joined.packets)
                joined = None
            if kind in _JOINED:
                joins = kind
                joined = self._begin(frame, accepts)
                if isinstance(joined, Run):
                    number += joined.extend_many(plaintexts, number)
            elif number < count and self._trains and (train := Train.begin_complete(frame)) is not None:
                joins = kind
                joined = train if accepts(frame, 0) else None
            elif not self.deliver_one(frame, accepts):
                others.append(frame)
        self._joined, self._joins = joined, joins
        return others

    def flush(self) -> None:
        joined = self._joined
        if joined is not None:
            self._joined = None
            self._write(joined.finish(), joined.packets)

    def _begin(self, frame: bytes, accepts: Accepts) -> Run | Train | None:
        """The super-packet that a frame starts, if it is valid and accepted; a packet that starts none is written."""
        start: Run | Train | None
        pieces = None
        if frame[0] == SEGMENT:
            start = Run.begin(frame)
        else:
            start = Train.begin(frame) if self._trains else None
            pieces = whole(frame) if start is None else None
        if start is None and pieces is None:
            self._counters.drops["malformed segment"] += 1
        elif not accepts(frame, HEADER_SIZE):
            return None
        elif pieces is not None:
            self._write(pieces, 1)
        return start

    def _write(self, pieces: Sequence[bytes], packets: int) -> None:
        counters = self._counters
        try:
            length = os.writev(self._descriptor, pieces)
        except OSError as error:
            counters.dropped("tun write", error)
        else:
            counters.rx_packets += packets
            counters.rx_bytes += length - virtio.SIZE
