"""UDP datagrams of one flow that were carried one by one, joined for one write to the TUN device."""

from struct import Struct
from typing import Final

from dtun.protocol import virtio
from dtun.protocol.segments import HEADER_SIZE, MAX_PACKET, UDP, UDP_CSUM, UDP_HEADER, patched, whole

_U16: Final = Struct("!H")
_UDP4: Final = 28
_UDP6: Final = 48
_UDP4_CSUM: Final = bytes((0, 20, UDP_CSUM))
_UDP6_CSUM: Final = bytes((0, 40, UDP_CSUM))
_PLAIN_IPV4: Final = 0x45
_DONT_FRAGMENT: Final = b"\x40\x00"
_NO_CHECKSUM: Final = b"\x00\x00"
_MAX_TRAIN: Final = 64

MAX_COMPLETE: Final = 600
"""Bytes of a complete packet that is joined with others, at most."""


class Train:
    """Consecutive UDP datagrams of one flow that arrived one by one, to be written as one super-packet.

    Either PARTIAL frames, whose checksums are still due, or complete packets, which a router forwards. Complete packets
    are joined only if all checksums are right: the kernel will compute them again, and would hide an error. For packets
    of 200 bytes this saves up to a fourth of the processor time, for 600 bytes nothing, and for longer ones it would
    cost time. The headers must be equal except for lengths and identification, which has no meaning if fragments are
    forbidden (RFC 6864, section 4.1). All have one size; a shorter one is the last.
    """

    __slots__ = ("_alike", "_frames", "_front", "_headers", "_length", "_right", "_whole")

    def __init__(self, frame: bytes, front: int, headers: int) -> None:
        self._front = front
        self._headers = front + headers
        self._length = len(frame)
        self._alike = _alike(frame, front)
        self._frames = [frame]
        self._right = front > 0
        self._whole = False

    @classmethod
    def begin(cls, frame: bytes) -> "Train | None":
        """The train that starts with this PARTIAL frame; None if it cannot start one."""
        headers = _UDP4 if frame[1:4] == _UDP4_CSUM else _UDP6 if frame[1:4] == _UDP6_CSUM else 0
        return (
            cls(frame, HEADER_SIZE, headers) if headers and _is_plain(frame, HEADER_SIZE, headers) else None
        )

    @classmethod
    def begin_complete(cls, packet: bytes) -> "Train | None":
        """The train that starts with this packet; None if it cannot start one."""
        if len(packet) > MAX_COMPLETE:
            return None
        headers = _UDP4 if packet[:1] == _PLAIN_IPV4.to_bytes() else _UDP6
        return cls(packet, 0, headers) if _is_plain(packet, 0, headers) else None

    @property
    def packets(self) -> int:
        return len(self._frames)

    def extend(self, frame: bytes) -> bool:
        """Add the next datagram, of the same kind; False if it cannot be joined with the others."""
        length, front, frames = len(frame), self._front, self._frames
        if (
            length > self._length
            or length <= self._headers
            or self._whole
            or _alike(frame, front) != self._alike
            or len(frames) * (self._length - self._headers) + length > MAX_PACKET
            or len(frames) == _MAX_TRAIN
        ):
            return False
        if not front:
            # The first one is checked only now, since most datagrams are not joined with any other.
            self._right = self._right or _is_right(frames[0], self._headers)
            if not self._right or not _is_right(frame, self._headers):
                return False
        self._whole = length < self._length
        frames.append(frame)
        return True

    def finish(self) -> list[bytes]:
        """The buffers to write to a TUN device with IFF_VNET_HDR."""
        frames, front, headers = self._frames, self._front, self._headers
        if len(frames) == 1:
            return (whole(frames[0]) or []) if front else [virtio.NO_OFFLOAD, frames[0]]
        size = self._length - headers
        payloads = [frame[headers:] for frame in frames]
        start = headers - front - UDP_HEADER
        total = size * (len(frames) - 1) + len(payloads[-1])
        first = frames[0][front:headers]
        if not front:
            first = first[: start + UDP_CSUM] + _pseudo_header_sum(first, start).to_bytes(2)
        header = patched(first, start, 0, size, total, last=True)
        offload = virtio.HEADER.pack(virtio.NEEDS_CSUM, virtio.GSO_UDP_L4, len(header), size, start, UDP_CSUM)
        return [offload, header, *payloads]


def _is_plain(frame: bytes, front: int, headers: int) -> bool:
    """Whether this is UDP directly after an IP header without options, not fragmented, and of its stated length."""
    if len(frame) <= front + headers:
        return False
    if headers == _UDP4:
        fits = (
            frame[front] == _PLAIN_IPV4
            and frame[front + 6 : front + 8] == _DONT_FRAGMENT
            and frame[front + 9] == UDP
        )
    else:
        fits = frame[front] >> 4 == 6 and frame[front + 6] == UDP
    start = front + headers - UDP_HEADER
    return fits and _U16.unpack_from(frame, start + 4)[0] == len(frame) - start


def _is_right(packet: bytes, headers: int) -> bool:
    """Whether the checksums of a complete packet of this kind are present and right, and its lengths correct."""
    start = headers - UDP_HEADER
    length = len(packet) - start
    stated = _U16.unpack_from(packet, start + 4)[0]
    if headers == _UDP4:
        # A number modulo 65,535 is the sum of its 16-bit words (RFC 1071); with the checksum included it must be zero.
        if _U16.unpack_from(packet, 2)[0] != len(packet) or int.from_bytes(packet[:start]) % 0xFFFF:
            return False
        covered = packet[12:]
    elif _U16.unpack_from(packet, 4)[0] != length:
        return False
    else:
        covered = packet[8:]
    if stated != length or packet[start + UDP_CSUM : headers] == _NO_CHECKSUM:
        return False
    number = int.from_bytes(covered) << 8 * (length & 1)  # an odd byte is followed by a zero
    return (number + UDP + length) % 0xFFFF == 0


def _pseudo_header_sum(header: bytes, start: int) -> int:
    """The sum of the pseudo-header, which stands for a checksum that the kernel will complete."""
    addresses = header[12:start] if header[0] == _PLAIN_IPV4 else header[8:start]
    return (int.from_bytes(addresses) + UDP + int.from_bytes(header[start + 4 : start + 6])) % 0xFFFF


def _alike(frame: bytes, front: int) -> bytes:
    """What the datagrams of a train have in common: version, flags, hop limit, addresses, ports, csum position."""
    if frame[front] == _PLAIN_IPV4:
        return frame[: front + 2] + frame[front + 6 : front + 10] + frame[front + 12 : front + 24]
    return frame[: front + 4] + frame[front + 6 : front + 44]
