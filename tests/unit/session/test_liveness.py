"""When a peer is asked, believed and given up. Times in seconds from an arbitrary beginning."""

import pytest
from hypothesis import given, strategies as st

from dtun.session.liveness import RTT_WEIGHT, Liveness


def test_a_probe_goes_out_at_once_and_then_every_keepalive() -> None:
    liveness = Liveness(keepalive=10, timeout=30, now=100)
    asked = [now for now in range(100, 125) if liveness.poll(now, now) is not None]
    assert asked == [100, 110, 120]


def test_a_peer_that_is_heard_lives_and_a_silent_one_dies_at_its_timeout() -> None:
    liveness = Liveness(keepalive=10, timeout=30, now=0)
    liveness.poll(-1, 29.9)
    assert not liveness.dead(29.9)
    assert liveness.dead(30)
    liveness.poll(1, 29.95)
    assert not liveness.dead(59.9)
    liveness.poll(1, 50)
    assert liveness.dead(59.95), "the same number again is nothing new"


def test_the_next_timer_is_never_late_for_either() -> None:
    liveness = Liveness(keepalive=10, timeout=15, now=0)
    assert liveness.next_timer() == 0
    liveness.poll(-1, 0)
    assert liveness.next_timer() == 10
    liveness.poll(-1, 10)
    assert liveness.next_timer() == 15


def test_the_round_trip_time_is_smoothed() -> None:
    liveness = Liveness(keepalive=1, timeout=3, now=0)
    first = liveness.poll(0, 0)
    assert first is not None
    liveness.echo(first, 0.100)
    assert liveness.rtt == pytest.approx(0.100)
    second = liveness.poll(1, 1)
    assert second is not None
    liveness.echo(second, 1.200)
    assert liveness.rtt == pytest.approx(0.100 + RTT_WEIGHT * 0.100)


def test_an_echo_that_is_late_repeated_or_invented_says_nothing() -> None:
    liveness = Liveness(keepalive=1, timeout=3, now=0)
    first = liveness.poll(0, 0)
    second = liveness.poll(0, 1)
    assert first is not None
    assert second is not None
    for token in (first, second + 1, 0, 2**64 - 1):
        liveness.echo(token, 1.5)
    assert liveness.rtt is None
    liveness.echo(second, 1.1)
    liveness.echo(second, 2.9)
    assert liveness.rtt == pytest.approx(0.1)


@given(st.lists(st.tuples(st.floats(0, 5), st.booleans()), max_size=50))
def test_whoever_is_heard_more_often_than_the_timeout_never_dies(steps: list[tuple[float, bool]]) -> None:
    liveness = Liveness(keepalive=1, timeout=6, now=0)
    now = 0.0
    for heard, (pause, _) in enumerate(steps):
        now += pause
        liveness.poll(heard, now)
        assert not liveness.dead(now)
        assert liveness.next_timer() > now
