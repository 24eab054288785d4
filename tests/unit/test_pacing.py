"""How often something may happen, and how long to wait."""

import random

from hypothesis import given, strategies as st

from dtun.pacing import FIRST_WAIT, LONGEST_WAIT, Backoff, RateLimiter


@given(st.integers())
def test_waits_grow_to_the_longest_with_jitter_in_their_upper_half(seed: int) -> None:
    backoff = Backoff(random.Random(seed))
    ceiling = FIRST_WAIT
    for _ in range(12):
        assert ceiling / 2 <= backoff.next() <= ceiling
        ceiling = min(2 * ceiling, LONGEST_WAIT)
    assert ceiling == LONGEST_WAIT
    backoff.reset()
    assert backoff.next() <= FIRST_WAIT


def test_many_clients_do_not_come_back_as_one() -> None:
    assert len({Backoff().next() for _ in range(50)}) == 50


def test_a_burst_goes_through_and_what_was_held_back_is_counted_once() -> None:
    limiter = RateLimiter(burst=2, per_seconds=60)
    assert [limiter.allow(now) for now in (0, 1, 2, 29)] == [0, 0, None, None]
    assert [limiter.allow(now) for now in (31, 32, 62)] == [2, None, 1]
    assert [limiter.allow(now) for now in (1000, 1000, 1000)] == [0, 0, None]


@given(st.lists(st.floats(0, 100), max_size=60).map(sorted), st.integers(1, 4))
def test_no_span_of_time_ever_has_more_than_the_burst_and_the_refill(times: list[float], burst: int) -> None:
    limiter = RateLimiter(burst=burst, per_seconds=10)
    answers = [(now, limiter.allow(now)) for now in times]
    allowed = [now for now, answer in answers if answer is not None]
    for first in range(len(allowed)):
        for last in range(first, len(allowed)):
            assert last - first + 1 <= burst + (allowed[last] - allowed[first]) * burst / 10 + 1e-6
    final = limiter.allow(1000)
    assert final is not None
    assert sum(answer + 1 for _, answer in answers if answer is not None) + final == len(times)
