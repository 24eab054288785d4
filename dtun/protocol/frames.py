"""What a record carries between native peers: one frame, whose first byte tells its kind.

An IP packet is its own frame, since its first byte begins with the version (4 or 6). Every other frame starts with one
of the numbers below. An unknown number is counted and dropped, so that later versions may add some.

    IP packet   4_ or 6_ ...                                  as it is
    SEGMENT     03 ...                                        dtun.protocol.segments
    PARTIAL     04 ...                                        dtun.protocol.segments
    CONTROL     01 | message 2 | index 1 | count 1 | payload  a fragment of a control message
    ACK         02 | message 2 | index 1                      that fragment has arrived
    PROBE       05 | token 8 | padding                        answer this
    ECHO        06 | token 8                                  the answer
    NOTICE      07 | payload                                  a control message that is not acknowledged
    PIECE       08 | frame 2 | index 1 | count 1 | payload    of a frame that is too large for the path
"""

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct

from dtun.protocol.segments import PARTIAL, SEGMENT


class Kind(IntEnum):
    """The first byte of a frame for the session, not for the data plane."""

    CONTROL = 1
    ACK = 2
    PROBE = 5
    ECHO = 6
    NOTICE = 7
    PIECE = 8


FRAGMENT_SIZE = 1024
"""Payload bytes of one control fragment: its record fits any path that carries IPv6 (RFC 8200, section 5)."""

MAX_FRAGMENTS = 64
"""Fragments of one control message at most: 64 KiB of text, some 3,000 networks."""

_PARTS = (bytes([SEGMENT]), bytes([PARTIAL]))
_CONTROL = Struct("!BHBB")
_ACK = Struct("!BHB")
_PROBE = Struct("!BQ")


PIECE_HEADER = _CONTROL.size
"""Bytes in front of a piece's payload."""


@dataclass(frozen=True, slots=True)
class Control:
    """Fragment `index` (from 0) of `count` of control message number `message` (modulo 65,536)."""

    message: int
    index: int
    count: int
    payload: bytes

    def encode(self) -> bytes:
        return _CONTROL.pack(Kind.CONTROL, self.message, self.index, self.count) + self.payload


@dataclass(frozen=True, slots=True)
class Ack:
    """Fragment `index` of control message number `message` has arrived."""

    message: int
    index: int

    def encode(self) -> bytes:
        return _ACK.pack(Kind.ACK, self.message, self.index)


@dataclass(frozen=True, slots=True)
class Probe:
    """Requests an `Echo` with the same token. `padding` bytes make it as long as the path MTU to be tested."""

    token: int
    padding: int = 0

    def encode(self) -> bytes:
        return _PROBE.pack(Kind.PROBE, self.token) + bytes(self.padding)


@dataclass(frozen=True, slots=True)
class Echo:
    """Answers the `Probe` with this token."""

    token: int

    def encode(self) -> bytes:
        return _PROBE.pack(Kind.ECHO, self.token)


@dataclass(frozen=True, slots=True)
class Notice:
    """A control message of one fragment that is not acknowledged: the last one of a session."""

    payload: bytes

    def encode(self) -> bytes:
        return bytes([Kind.NOTICE]) + self.payload


@dataclass(frozen=True, slots=True)
class Piece:
    """Piece `index` (from 0) of `count` of frame number `number` (modulo 65,536)."""

    number: int
    index: int
    count: int
    payload: bytes

    def encode(self) -> bytes:
        return _CONTROL.pack(Kind.PIECE, self.number, self.index, self.count) + self.payload


Frame = Control | Ack | Probe | Echo | Notice | Piece


def is_packet(plaintext: bytes) -> bool:
    """Whether a plaintext is for the data plane: an IP packet, or a part of a super-packet."""
    return plaintext[:1] in _PARTS or (bool(plaintext) and plaintext[0] >> 4 in (4, 6))


def decode(plaintext: bytes) -> Frame | None:
    """The frame in a plaintext, which may be any bytes; None if it is not one."""
    kind = plaintext[0] if plaintext else None
    if kind in (Kind.CONTROL, Kind.PIECE):
        return _decode_part(plaintext)
    if kind == Kind.ACK and len(plaintext) == _ACK.size:
        _, message, index = _ACK.unpack(plaintext)
        return Ack(message, index)
    if kind == Kind.PROBE and len(plaintext) >= _PROBE.size:
        _, token = _PROBE.unpack_from(plaintext)
        return Probe(token, len(plaintext) - _PROBE.size)
    if kind == Kind.ECHO and len(plaintext) == _PROBE.size:
        _, token = _PROBE.unpack(plaintext)
        return Echo(token)
    if kind == Kind.NOTICE and len(plaintext) <= 1 + FRAGMENT_SIZE:
        return Notice(plaintext[1:])
    return None


def _decode_part(plaintext: bytes) -> Control | Piece | None:
    """CONTROL and PIECE, which have the same layout."""
    if len(plaintext) < _CONTROL.size:
        return None
    kind, number, index, count = _CONTROL.unpack_from(plaintext)
    payload = plaintext[_CONTROL.size :]
    if index >= count:
        return None
    if kind == Kind.PIECE:
        return Piece(number, index, count, payload) if payload else None
    if count > MAX_FRAGMENTS or len(payload) > FRAGMENT_SIZE:
        return None
    return Control(number, index, count, payload)
