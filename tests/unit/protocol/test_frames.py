"""Frames: what is encoded is decoded again, and no bytes whatever do any harm."""

import pytest
from hypothesis import given, strategies as st

from dtun.protocol import frames
from dtun.protocol.frames import (
    FRAGMENT_SIZE,
    MAX_FRAGMENTS,
    Ack,
    Control,
    Echo,
    Frame,
    Kind,
    Notice,
    Piece,
    Probe,
    is_packet,
)
from dtun.protocol.segments import PARTIAL, SEGMENT

numbers = st.integers(0, 0xFFFF)
tokens = st.integers(0, 2**64 - 1)


@st.composite
def controls(draw: st.DrawFn) -> Control:
    count = draw(st.integers(1, MAX_FRAGMENTS))
    return Control(
        draw(numbers), draw(st.integers(0, count - 1)), count, draw(st.binary(max_size=FRAGMENT_SIZE))
    )


@st.composite
def pieces(draw: st.DrawFn) -> Piece:
    count = draw(st.integers(1, 255))
    return Piece(draw(numbers), draw(st.integers(0, count - 1)), count, draw(st.binary(min_size=1)))


any_frame: st.SearchStrategy[Frame] = st.one_of(
    controls(),
    st.builds(Ack, numbers, st.integers(0, 255)),
    st.builds(Probe, tokens, st.integers(0, 1500)),
    st.builds(Echo, tokens),
    st.builds(Notice, st.binary(max_size=FRAGMENT_SIZE)),
    pieces(),
)


@given(any_frame)
def test_a_frame_comes_out_as_it_went_in(frame: Frame) -> None:
    encoded = frame.encode()
    assert frames.decode(encoded) == frame
    assert not is_packet(encoded)


@given(
    st.one_of(
        st.binary(max_size=64), st.builds(bytes.__add__, st.binary(min_size=1, max_size=1), st.binary())
    )
)
def test_any_bytes_are_a_frame_or_nothing(plaintext: bytes) -> None:
    frame = frames.decode(plaintext)
    if frame is not None and not isinstance(frame, Probe):  # the padding of a probe may be anything
        assert frame.encode() == plaintext


@given(st.sampled_from(Kind), st.binary(max_size=40))
def test_whatever_follows_a_known_first_byte_keeps_its_bounds(kind: Kind, rest: bytes) -> None:
    frame = frames.decode(bytes([kind]) + rest)
    if isinstance(frame, Control):
        assert frame.index < frame.count <= MAX_FRAGMENTS
    if isinstance(frame, Probe):
        assert frame.padding == len(rest) - 8


@pytest.mark.parametrize(
    ("what", "plaintext"),
    [
        ("nothing", b""),
        ("an unknown number", b"\x09abc"),
        ("a fragment beyond its count", b"\x01\x00\x00\x02\x02x"),
        ("a count of none", b"\x01\x00\x00\x00\x00x"),
        ("too many fragments", b"\x01\x00\x00\x00" + bytes([MAX_FRAGMENTS + 1]) + b"x"),
        ("a fragment that is too long", b"\x01\x00\x00\x00\x01" + bytes(FRAGMENT_SIZE + 1)),
        ("a control header cut short", b"\x01\x00\x00\x00"),
        ("an ack that is too long", b"\x02\x00\x00\x00\x00"),
        ("a probe cut short", b"\x05" + bytes(7)),
        ("an echo with padding", b"\x06" + bytes(9)),
        ("a notice that is too long", b"\x07" + bytes(FRAGMENT_SIZE + 1)),
        ("a piece of nothing", b"\x08\x00\x00\x00\x01"),
        ("a piece beyond its count", b"\x08\x00\x00\x01\x01x"),
        ("a piece cut short", b"\x08\x00\x00"),
        ("an IP packet", b"\x45" + bytes(19)),
    ],
)
def test_what_breaks_the_layout_is_no_frame(what: str, plaintext: bytes) -> None:
    assert frames.decode(plaintext) is None, what


def test_the_first_byte_tells_what_is_for_the_data_plane() -> None:
    for first in range(256):
        assert is_packet(bytes([first])) == (first >> 4 in (4, 6) or first in (SEGMENT, PARTIAL))
    assert not is_packet(b"")
