"""Frames in pieces: what comes in is what went out, over a network that loses, doubles and reorders."""

import random

from hypothesis import given, strategies as st

from dtun.protocol.frames import Piece, decode
from dtun.protocol.pieces import MAX_UNFINISHED, Cutter, Joiner
from dtun.protocol.record import MAX_PLAINTEXT

frames = st.lists(st.integers(1, 3000), max_size=30).map(
    lambda sizes: [bytes([0x45, number]) + bytes(size) for number, size in enumerate(sizes)]
)
rooms = st.integers(519, 1500)


def piece_of(plaintext: bytes) -> Piece:
    piece = decode(plaintext)
    assert isinstance(piece, Piece)
    return piece


def joined(joiner: Joiner, plaintexts: list[bytes]) -> list[bytes]:
    """As the receiving session does it."""
    done = []
    for plaintext in plaintexts:
        whole = joiner.join(piece_of(plaintext)) if plaintext[0] == 8 else plaintext
        if whole is not None:
            done.append(whole)
    return done


@given(frames, rooms)
def test_nothing_is_larger_than_the_room_and_all_comes_out_in_order(sent: list[bytes], room: int) -> None:
    cut = Cutter().cut(sent, room)
    assert all(len(plaintext) <= room for plaintext in cut)
    assert joined(Joiner(), cut) == sent


@given(frames, rooms)
def test_what_fits_is_not_touched(sent: list[bytes], room: int) -> None:
    small = [plaintext for plaintext in sent if len(plaintext) <= room]
    assert Cutter().cut(small, room) == small


@given(frames, rooms, st.integers())
def test_doubled_and_reordered_pieces_make_the_same_frames(sent: list[bytes], room: int, seed: int) -> None:
    cut = Cutter().cut(sent, room)
    shuffled = cut + [one for one in cut if one[0] == 8]
    random.Random(seed).shuffle(shuffled)
    assert set(joined(Joiner(), shuffled)) == set(sent)


@given(frames, rooms, st.integers())
def test_a_lost_piece_costs_its_frame_and_no_other(sent: list[bytes], room: int, seed: int) -> None:
    cut = Cutter().cut(sent, room)
    if cut:
        lost = cut.pop(random.Random(seed).randrange(len(cut)))
        came = joined(Joiner(), cut)
        assert len(came) == len(sent) - 1
        assert set(came) <= set(sent), lost


def test_pieces_of_one_frame_are_of_one_size_so_that_they_leave_together() -> None:
    sizes = {len(plaintext) for plaintext in Cutter().cut([bytes(1284)] * 10, 1203)}
    assert sizes == {642 + 5}


def test_a_peer_that_never_finishes_anything_cannot_make_us_hoard() -> None:
    joiner = Joiner()
    for number in range(10 * MAX_UNFINISHED):
        for index in range(254):
            assert joiner.join(Piece(number, index, 255, bytes(1000))) is None
    kept = [len(part) for parts in joiner._unfinished.values() for part in parts]
    assert sum(kept) <= MAX_UNFINISHED * MAX_PLAINTEXT
    assert joiner.join(Piece(65535, 0, 1, b"whole")) == b"whole"


def test_an_old_frame_of_the_same_number_is_forgotten() -> None:
    joiner = Joiner()
    assert joiner.join(Piece(7, 0, 3, b"old")) is None
    assert joiner.join(Piece(7, 0, 2, b"n")) is None
    assert joiner.join(Piece(7, 1, 2, b"ew")) == b"new"


@given(st.lists(st.builds(Piece, st.integers(0, 3), st.integers(0, 2), st.just(3), st.binary(min_size=1))))
def test_no_pieces_whatever_raise(pieces: list[Piece]) -> None:
    joiner = Joiner()
    for piece in pieces:
        joiner.join(piece)
