import random

from hypothesis import given, strategies as st

from dtun.dtls.window import SIZE, ReplayWindow

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
            window.add(position)
            seen.add(position)
            highest = max(highest, position)
        assert window.highest == highest


def test_the_last_number_of_the_window_is_taken_and_the_next_is_not() -> None:
    window = ReplayWindow()
    window.add(SIZE)  # so that 0 is SIZE behind
    assert not window.is_fresh(0)
    assert window.is_fresh(1)
    window.add(1)
    assert not window.is_fresh(1)


def test_2047_behind_is_not_too_late_and_a_whole_second_behind_is() -> None:
    """In numbers: 100,000 records a second that overtake each other by 20 ms, as on two paths of a fast provider."""
    window = ReplayWindow()
    window.add(100_000)
    for sequence in (100_000 - 2047, 100_000 - 1):
        assert window.is_fresh(sequence)
        window.add(sequence)
        assert not window.is_fresh(sequence)
    assert not window.is_fresh(0)
    assert not window.is_fresh(100_000 - 65_536)


def test_memory_is_bounded_under_loss_and_leaps() -> None:
    window, numbers, sequence = ReplayWindow(), random.Random(1), 0
    for _ in range(2000):
        sequence += numbers.choice((1, 2, 50, 3 * SIZE))
        window.add(sequence)
        assert len(window._missing) <= 3 * SIZE


def test_in_order_nothing_is_remembered() -> None:
    window = ReplayWindow()
    for sequence in range(10_000):
        window.add(sequence)
    assert not window._missing
    assert not any(window.is_fresh(sequence) for sequence in range(10_000))
