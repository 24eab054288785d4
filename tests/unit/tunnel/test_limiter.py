"""A message that anybody can cause is said a few times, then counted."""

from hypothesis import given, strategies as st

from dtun.tunnel.limiter import Limiter


def test_a_burst_goes_through_and_the_rest_is_counted() -> None:
    limiter = Limiter(burst=2, per_seconds=10)
    assert [limiter.allow(now) for now in (0, 1, 2, 9.9)] == [0, 0, None, None]
    assert limiter.allow(10.0) == 2
    assert limiter.allow(10.5) is None
    assert limiter.allow(11.0) == 1


@given(st.lists(st.floats(0, 100), max_size=60).map(sorted), st.integers(1, 4))
def test_no_window_ever_has_more_than_the_burst(times: list[float], burst: int) -> None:
    limiter = Limiter(burst, per_seconds=10)
    answers = [(now, limiter.allow(now)) for now in times]
    said = [now for now, answer in answers if answer is not None]
    assert all(later - earlier >= 10 for earlier, later in zip(said, said[burst:], strict=False))
    last = limiter.allow(1000)
    assert last is not None
    assert sum(answer + 1 for _, answer in answers if answer is not None) + last == len(times)
