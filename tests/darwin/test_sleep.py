"""Two clocks, one of which stands still while the computer sleeps."""

from hypothesis import given, strategies as st

from dtun.platform.darwin.sleep import SleepCount


def test_a_night_is_counted_once() -> None:
    count = SleepCount(1000.0, 400.0)
    assert count.slept(1002.0, 402.0) == 0.0
    assert count.slept(29804.0, 404.0) == 28800.0
    assert count.slept(29806.0, 406.0) == 0.0


def test_many_moments_add_up() -> None:
    # Each is too short to be told from the time between the two readings.
    count = SleepCount(0.0, 0.0)
    assert count.slept(10.6, 10.0) == 0.0
    assert count.slept(21.2, 20.0) > 1.0


@given(st.lists(st.tuples(st.floats(0.1, 100.0), st.floats(1.5, 1e6)), max_size=20))
def test_all_sleep_is_told(story: list[tuple[float, float]]) -> None:
    raw = uptime = 0.0
    count = SleepCount(raw, uptime)
    told = 0.0
    for awake, asleep in story:
        raw, uptime = raw + awake, uptime + awake
        told += count.slept(raw, uptime)
        raw += asleep
        told += count.slept(raw, uptime)
    assert abs(told - (raw - uptime)) < 1.1
