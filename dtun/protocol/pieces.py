"""Frames that are too large for the path, cut into pieces (`dtun.protocol.frames.Piece`) and joined again.

The kernel's fragments would do as well, had it got to know the path's MTU, and did everybody let fragments pass.
Where ICMP is filtered neither is so. Pieces are records like any others. A lost one costs the whole frame.
"""

from collections.abc import Sequence

from dtun.protocol.frames import PIECE_HEADER, Piece
from dtun.protocol.record import MAX_PLAINTEXT

MAX_UNFINISHED = 64
"""Frames of which pieces are kept while others are missing: more than are under way out of order."""


class Cutter:
    """Cuts what is too large. Numbers the frames that it cuts."""

    def __init__(self) -> None:
        self._number = 0

    def cut(self, plaintexts: Sequence[bytes], room: int) -> list[bytes]:
        """The same plaintexts, or their pieces, in order: none is larger than `room`.

        Pieces of one frame are of one size where that is possible, since such leave together.
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
    """Joins pieces, in whatever order they come. What never becomes whole is forgotten for newer ones."""

    def __init__(self) -> None:
        self._unfinished: dict[int, list[bytes]] = {}

    def join(self, piece: Piece) -> bytes | None:
        """The frame that this piece completes; None if some are still missing, or it gets larger than any frame."""
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
