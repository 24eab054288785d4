import random
import time

import pytest
from hypothesis import given, strategies as st

from dtun.dtls.sequence import WINDOW_SIZE as SIZE, ReplayWindow, SendSequence
from dtun.protocol.record import MAX_SEQUENCE

# Mostly small steps, some that leave the window, in both directions.
steps = st.lists(
    st.one_of(st.integers(-5, 5), st.integers(-SIZE - 3, -SIZE + 3), st.integers(SIZE - 3, 3 * SIZE)),
    max_size=60,
)


@given(steps)
def test_the_window_agrees_with_a_naive_one(moves: list[int]) -> None:
    window, seen, highest, position = ReplayWindow(), set[int](), -1, 0
    for move in moves:
        position = max(0, position + move)
        fresh = position not in seen and position > highest - SIZE
        assert window.is_fresh(position) == fresh
        if fresh:
            if position == highest + 1 and move == 1:
                window.accept_next()
            else:
                window.accept(position)
            seen.add(position)
            highest = max(highest, position)
        assert window.highest == highest


def test_the_last_number_of_the_window_is_taken_and_the_next_is_not() -> None:
    window = ReplayWindow()
    window.accept(SIZE)  # so that 0 is SIZE behind
    assert not window.is_fresh(0)
    assert window.is_fresh(1)
    window.accept(1)
    assert not window.is_fresh(1)


def test_2047_behind_is_not_too_late_and_a_whole_second_behind_is() -> None:
    """In numbers: 100,000 records a second that overtake each other by 20 ms, as on two paths of a fast provider."""
    window = ReplayWindow()
    window.accept(100_000)
    for sequence in (100_000 - 2047, 100_000 - 1):
        assert window.is_fresh(sequence)
        window.accept(sequence)
        assert not window.is_fresh(sequence)
    assert not window.is_fresh(0)
    assert not window.is_fresh(100_000 - 65_536)


def test_memory_is_bounded_under_loss_and_leaps() -> None:
    window, numbers, sequence = ReplayWindow(), random.Random(1), 0
    for _ in range(2000):
        sequence += numbers.choice((1, 2, 50, 3 * SIZE))
        window.accept(sequence)
        assert window.missing <= 3 * SIZE


def test_a_peer_whose_numbers_leap_costs_hardly_more_than_another() -> None:
    window, leaps = ReplayWindow(), 1000
    started = time.process_time()
    for leap in range(1, leaps + 1):
        window.accept(leap * 3 * SIZE)
        window.accept(leap * 3 * SIZE + SIZE - 1)
    assert (time.process_time() - started) / (2 * leaps) < 10e-6


@pytest.mark.parametrize("far", [SIZE - 1, SIZE, MAX_SEQUENCE])
def test_a_leap_leaves_no_more_than_the_window_open(far: int) -> None:
    window = ReplayWindow(missing=[-1])
    window.accept(far)
    assert window.missing == SIZE - 1
    assert window.is_fresh(far - 1)
    assert window.is_fresh(far - SIZE + 1)
    assert not window.is_fresh(far - SIZE)


def test_what_another_window_missed_is_missing_here() -> None:
    window = ReplayWindow(10_000, missing=[9_999, 10_000 - SIZE + 1, 10_000 - SIZE, 3])
    assert [n for n in range(10_001) if window.is_fresh(n)] == [10_000 - SIZE + 1, 9_999]
    window.accept(10_001, 3)
    assert [n for n in range(10_004) if window.is_fresh(n)] == [9_999]


def test_in_order_nothing_is_remembered() -> None:
    window = ReplayWindow()
    for sequence in range(10_000):
        window.accept(sequence)
    assert window.missing == 0
    assert not any(window.is_fresh(sequence) for sequence in range(10_000))


class Watched(list[int]):
    """A ledger that notes what `sequence` would give out while it is written."""

    def __init__(self, sequence: SendSequence) -> None:
        super().__init__([0, 0])
        self.sequence = sequence
        self.written: list[tuple[int, int]] = []

    def __setitem__(self, index: object, value: object) -> None:
        super().__setitem__(index, value)  # type: ignore[call-overload]
        self.written.append((self.sequence.next, self[0]))


def test_a_number_is_given_out_once_and_is_in_the_ledger_first() -> None:
    sequence = SendSequence(5)
    sequence.attach_ledger(ledger := Watched(sequence))
    given: list[int] = []
    for count in (1, 1, 44, 3):
        first = sequence.reserve(count)
        given += range(first, first + count)
    assert given == list(range(5, 54))
    assert ledger.written == [(5, 5), (5, 6), (6, 7), (7, 51), (51, 54)], "written before it is given out"


@pytest.mark.parametrize("count", [2, 44])
def test_no_number_is_given_out_when_too_few_are_left(count: int) -> None:
    sequence = SendSequence(MAX_SEQUENCE)
    sequence.attach_ledger(ledger := [0, 0])
    with pytest.raises(OverflowError):
        sequence.reserve(count)
    assert ledger == [MAX_SEQUENCE, 0]
    assert sequence.reserve(1) == MAX_SEQUENCE
    with pytest.raises(OverflowError):
        sequence.reserve(1)


def test_the_next_expected_number_is_in_the_ledger_with_each_record() -> None:
    window = ReplayWindow(7)
    window.attach_ledger(ledger := [0, 0])
    for first, count, expected in ((8, 1, 9), (10, 1, 11), (9, 1, 11), (20, 44, 64)):
        window.accept(first, count)
        assert ledger == [0, expected]


def test_a_run_is_received_once_and_what_it_skipped_may_still_come() -> None:
    window = ReplayWindow(7)
    window.accept(20, 44)
    assert [number for number in range(70) if window.is_fresh(number)] == [*range(8, 20), *range(64, 70)]
