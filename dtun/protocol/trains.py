"""UDP datagrams of one flow that travelled one by one, put together again for one write to the TUN device."""

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
_MAX_TRAIN: Final = 64


class Train:
    """Consecutive UDP datagrams of one flow that came one by one, to be written as one super-packet.

    Only PARTIAL frames qualify: their checksums are due anyway, so nothing is vouched for that nobody has checked. The
    headers have to be alike but for lengths and identification, which means nothing where fragments are forbidden (RFC
    6864, section 4.1). All are of one size; a shorter one is the last.
    """

    __slots__ = ("_alike", "_frames", "_headers", "_length", "_whole")

    def __init__(self, frame: bytes, headers: int) -> None:
        self._headers = HEADER_SIZE + headers
        self._length = len(frame)
        self._alike = _alike(frame)
        self._frames = [frame]
        self._whole = False

    @classmethod
    def begin(cls, frame: bytes) -> "Train | None":
        """The train that starts with this PARTIAL frame, if it may start one."""
        headers = _UDP4 if frame[1:4] == _UDP4_CSUM else _UDP6 if frame[1:4] == _UDP6_CSUM else 0
        if not headers or len(frame) <= HEADER_SIZE + headers:
            return None
        start = headers - UDP_HEADER
        if headers == _UDP4:
            fits = frame[4] == _PLAIN_IPV4 and frame[10:12] == _DONT_FRAGMENT and frame[4 + 9] == UDP
        else:
            fits = frame[4] >> 4 == 6 and frame[4 + 6] == UDP
        length = _U16.unpack_from(frame, HEADER_SIZE + start + 4)[0]
        return cls(frame, headers) if fits and length == len(frame) - HEADER_SIZE - start else None

    @property
    def packets(self) -> int:
        return len(self._frames)

    def extend(self, frame: bytes) -> bool:
        """Take the next datagram; False if this PARTIAL frame does not go with the others."""
        length = len(frame)
        if (
            length > self._length
            or length <= self._headers
            or self._whole
            or _alike(frame) != self._alike
            or len(self._frames) * (self._length - self._headers) + length > MAX_PACKET
            or len(self._frames) == _MAX_TRAIN
        ):
            return False
        self._whole = length < self._length
        self._frames.append(frame)
        return True

    def finish(self) -> list[bytes]:
        """What to write to a TUN device with IFF_VNET_HDR, in pieces."""
        frames, headers = self._frames, self._headers
        if len(frames) == 1:
            return whole(frames[0]) or []
        size = self._length - headers
        payloads = [frame[headers:] for frame in frames]
        start = headers - HEADER_SIZE - UDP_HEADER
        total = size * (len(frames) - 1) + len(payloads[-1])
        header = patched(frames[0][HEADER_SIZE:headers], start, 0, size, total, last=True)
        offload = virtio.HEADER.pack(virtio.NEEDS_CSUM, virtio.GSO_UDP_L4, len(header), size, start, UDP_CSUM)
        return [offload, header, *payloads]


def _alike(frame: bytes) -> bytes:
    """What all datagrams of a train have in common: version, flags, hop limit, addresses, ports, csum position."""
    if frame[4] == _PLAIN_IPV4:
        return frame[:6] + frame[10:14] + frame[16:28]
    return frame[:8] + frame[10:48]
