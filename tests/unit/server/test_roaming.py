"""Which sessions are tried for a record from an unknown address, and how often."""

from dataclasses import dataclass

import pytest
from hypothesis import given, strategies as st

from dtun.server.roaming import SEQUENCE_REACH, TRIALS_PER_DATAGRAM, TRIALS_PER_SECOND, Trials


@dataclass
class Known:
    """A session that has opened records up to this number."""

    highest: int


def trials_of(*highest: int) -> Trials[Known]:
    sessions = [Known(number) for number in highest]
    return Trials(lambda: sessions)


def tried(trials: Trials[Known], sequence: int, now: float = 0.0) -> list[int]:
    return [known.highest for known in trials.candidates(sequence, now)]


def test_the_nearest_come_first_and_only_those_that_are_behind() -> None:
    assert tried(trials_of(5, 99, 100, 101, -1, 50), sequence=100) == [99, 50, 5, -1]


@given(st.lists(st.integers(-1, 2**48 - 1), max_size=40), st.integers(0, 2**48 - 1))
def test_a_trial_is_for_a_newer_record_within_reach(highest: list[int], sequence: int) -> None:
    trials = trials_of(*highest, sequence - SEQUENCE_REACH, sequence - SEQUENCE_REACH - 1)
    numbers = tried(trials, sequence)
    assert all(0 < sequence - number <= SEQUENCE_REACH for number in numbers)
    assert sequence - SEQUENCE_REACH in numbers
    assert numbers == sorted(numbers, reverse=True)


def test_one_datagram_causes_a_bounded_number_of_trials() -> None:
    assert len(tried(trials_of(*[1] * 1000), sequence=2)) == TRIALS_PER_DATAGRAM


def test_all_datagrams_together_cause_a_bounded_number_of_trials_a_second() -> None:
    trials = trials_of(*[1] * 10)
    number = sum(len(tried(trials, sequence=2, now=n / 1000)) for n in range(2000))
    assert 2.9 * TRIALS_PER_SECOND <= number <= 3 * TRIALS_PER_SECOND  # a full bucket and two seconds


def test_unused_trials_do_not_accumulate() -> None:
    trials = trials_of(*[1] * 50)
    assert len(tried(trials, sequence=2, now=3600)) == 50
    number = sum(len(tried(trials, sequence=2, now=3600)) for _ in range(1000))
    assert number == TRIALS_PER_SECOND - 50


def test_a_trial_that_succeeds_costs_no_more_than_itself() -> None:
    trials = trials_of(*[1] * 50)
    next(iter(trials.candidates(2, 0)))
    rest = sum(len(tried(trials, sequence=2)) for _ in range(1000))
    assert rest == TRIALS_PER_SECOND - 1


class Watched:
    """A session that counts how often anybody looked at its number."""

    looks = 0

    @property
    def highest(self) -> int:
        Watched.looks += 1
        return 1


@pytest.mark.parametrize("sequence", [2, 5_000_000])
def test_a_second_of_stray_records_costs_the_same_with_many_sessions(sequence: int) -> None:
    sessions = [Watched() for _ in range(1000)]
    trials = Trials(lambda: sessions)
    Watched.looks = 0
    for number in range(5000):
        list(trials.candidates(sequence, number / 5000))
    assert Watched.looks < 20_000  # 5 million if each record looked at all of them


def test_a_new_session_is_found_and_one_that_received_more_meanwhile_is_still_found() -> None:
    sessions = [Known(1)]
    trials = Trials(lambda: sessions)
    assert tried(trials, sequence=2) == [1]
    sessions[0].highest = 90_000
    assert tried(trials, sequence=90_001) == [90_000]
    sessions.append(Known(90_010))
    trials.forget()
    assert tried(trials, sequence=90_020) == [90_010, 90_000]


def test_sessions_may_end_while_they_are_tried() -> None:
    sessions = [Known(number) for number in range(5)]
    trials = Trials(lambda: sessions)
    for known in trials.candidates(10, 0):
        sessions.remove(known)
        trials.forget()
    assert sessions == []
