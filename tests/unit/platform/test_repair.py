"""When to check for removals: at once, then with growing delays."""

from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from dtun.platform.repair import LONGEST_DELAY, QUIET, SHORTEST_PAUSE, RepairSchedule


def fight(schedule: RepairSchedule, now: float) -> Iterator[float]:
    """Another program removes at once what has just been restored; yields the times of the repairs."""
    while True:
        schedule.removed(now)
        assert schedule.due is not None
        now = schedule.due
        schedule.checked(now, repaired=True, complete=True)
        yield now


def test_the_first_repair_is_immediate_and_the_delay_doubles() -> None:
    times = fight(RepairSchedule(), 1000.0)
    moments = [next(times) for _ in range(9)]
    pauses = [later - earlier for earlier, later in pairwise(moments)]
    assert moments[0] == 1000.0
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


def test_a_quiet_minute_resets_the_delay() -> None:
    schedule = RepairSchedule()
    times = fight(schedule, 0.0)
    last = [next(times) for _ in range(5)][-1]
    schedule.removed(last + QUIET + 1)
    assert schedule.due == last + QUIET + 1
    assert schedule.checked(last + QUIET + 1, repaired=True, complete=True), "the first of a burst"


def test_only_the_first_repair_of_a_burst_is_a_warning() -> None:
    schedule = RepairSchedule()
    firsts = []
    for now in (0.0, 5.0, 20.0):
        schedule.removed(now)
        firsts.append(schedule.checked(now, repaired=True, complete=True))
    assert firsts == [True, False, False]


def test_a_false_alarm_adds_no_delay() -> None:
    schedule = RepairSchedule()
    for now in (0.0, 1.0, 2.0):
        schedule.removed(now)
        assert schedule.due == now
        assert not schedule.checked(now, repaired=False, complete=True)
        assert schedule.due is None


def test_an_incomplete_repair_is_retried() -> None:
    schedule = RepairSchedule()
    schedule.removed(0.0)
    moments = [0.0]
    for _ in range(3):
        schedule.checked(moments[-1], repaired=False, complete=False)
        assert schedule.due is not None
        moments.append(schedule.due)
    assert moments == [0.0, 1.0, 3.0, 7.0]


def test_a_change_of_the_host_does_not_wait() -> None:
    schedule = RepairSchedule()
    schedule.removed(0.0)
    for now in (0.0, 1.0, 3.0, 7.0, 15.0):
        schedule.checked(now, repaired=False, complete=False)
    assert schedule.due == 31.0
    schedule.host_changed(16.0)
    assert schedule.due == 16.0


def test_many_changes_of_the_host_are_checked_with_pauses() -> None:
    schedule = RepairSchedule()
    schedule.host_changed(0.0)
    schedule.checked(0.0, repaired=False, complete=True)
    schedule.host_changed(0.01)
    assert schedule.due == pytest.approx(SHORTEST_PAUSE)


ACTIONS = st.tuples(
    st.sampled_from(["removed", "host_changed", "check"]), st.floats(0, 100), st.booleans(), st.booleans()
)


@given(st.lists(ACTIONS, max_size=50))
def test_the_next_check_is_never_late(actions: list[tuple[str, float, bool, bool]]) -> None:
    schedule, now = RepairSchedule(), 0.0
    for action, pause, repaired, complete in actions:
        now += pause
        if action == "check":
            schedule.checked(now, repaired=repaired, complete=complete)
            assert (schedule.due is None) == complete
        else:
            (schedule.removed if action == "removed" else schedule.host_changed)(now)
            assert schedule.due is not None
        if schedule.due is not None:
            assert schedule.due <= now + LONGEST_DELAY
