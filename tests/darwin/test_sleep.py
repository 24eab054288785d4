"""Two clocks, one of which stands still while the computer sleeps."""

from hypothesis import given, strategies as st

from dtun.platform.darwin.sleep import SleepDetector


def test_a_night_is_reported_once() -> None:
    detector = SleepDetector(1000.0, 400.0)
    assert detector.slept(1002.0, 402.0) == 0.0
    assert detector.slept(29804.0, 404.0) == 28800.0
    assert detector.slept(29806.0, 406.0) == 0.0


def test_many_moments_add_up() -> None:
    # Each is too short to be reported from the time between the two readings.
    detector = SleepDetector(0.0, 0.0)
    assert detector.slept(10.6, 10.0) == 0.0
    assert detector.slept(21.2, 20.0) > 1.0


@given(st.lists(st.tuples(st.floats(0.1, 100.0), st.floats(1.5, 1e6)), max_size=20))
def test_all_sleep_is_reported(story: list[tuple[float, float]]) -> None:
    raw = uptime = 0.0
    detector = SleepDetector(raw, uptime)
    reported = 0.0
    for awake, asleep in story:
        raw, uptime = raw + awake, uptime + awake
        reported += detector.slept(raw, uptime)
        raw += asleep
        reported += detector.slept(raw, uptime)
    assert abs(reported - (raw - uptime)) < 1.1
