"""Frames that are too large for the path, cut into pieces (`dtun.protocol.frames.Piece`) and joined again.

IP fragmentation would need ICMP to learn the path MTU, and firewalls that let fragments pass; both are often missing.
Pieces are ordinary records. If one is lost, so is the whole frame.
"""

from collections.abc import Sequence

from dtun.protocol.frames import PIECE_HEADER, Piece
from dtun.protocol.record import MAX_PLAINTEXT

MAX_UNFINISHED = 64
"""Incomplete frames that are kept: more than arrive out of order."""


class Cutter:
    """Cuts frames that are too large, and numbers those."""

    def __init__(self) -> None:
        self._number = 0

    def cut(self, plaintexts: Sequence[bytes], room: int) -> list[bytes]:
        """The plaintexts, or their pieces, in order; none is larger than `room` bytes.

        Pieces of one frame have one size if possible, since UDP_SEGMENT then sends them together.
        """
        done: list[bytes] = []
        for plaintext in plaintexts:
            if len(plaintext) <= room:
                done.append(plaintext)
                continue
            count = -(-len(plaintext) // (room - PIECE_HEADER))
            size = -(-len(plaintext) // count)
            self._number = (self._number + 1) & 0xFFFF
            done += (
                Piece(self._number, index, count, plaintext[index * size : (index + 1) * size]).encode()
                for index in range(count)
            )
        return done


class Joiner:
    """Joins pieces in any order. The oldest incomplete frames are dropped for newer ones."""

    def __init__(self) -> None:
        self._unfinished: dict[int, list[bytes]] = {}

    def join(self, piece: Piece) -> bytes | None:
        """The frame that this piece completes; None if pieces are missing, or the frame is too large."""
        parts = self._unfinished.get(piece.number)
        if parts is None or len(parts) != piece.count:
            self._unfinished.pop(piece.number, None)
            if len(self._unfinished) >= MAX_UNFINISHED:
                del self._unfinished[next(iter(self._unfinished))]
            parts = self._unfinished[piece.number] = [b""] * piece.count
        parts[piece.index] = piece.payload
        too_large = sum(map(len, parts)) > MAX_PLAINTEXT
        if not too_large and not all(parts):
            return None
        del self._unfinished[piece.number]
        return None if too_large else b"".join(parts)
