"""Which sessions are tried for a record from an unknown address, and how often."""

from dataclasses import dataclass

from hypothesis import given, strategies as st

from dtun.server.roaming import SEQUENCE_REACH, TRIALS_PER_DATAGRAM, TRIALS_PER_SECOND, Trials


@dataclass
class Known:
    """A session that has opened records up to this number."""

    highest: int


def numbers_of(trials: Trials, highest: list[int], sequence: int, now: float = 0.0) -> list[int]:
    return [known.highest for known in trials.candidates(map(Known, highest), sequence, now)]


def test_the_nearest_come_first_and_only_those_that_are_behind() -> None:
    assert numbers_of(Trials(), [5, 99, 100, 101, -1, 50], sequence=100) == [99, 50, 5, -1]


@given(st.lists(st.integers(-1, 2**48 - 1), max_size=40), st.integers(0, 2**48 - 1))
def test_a_trial_is_for_a_newer_record_within_reach(highest: list[int], sequence: int) -> None:
    tried = numbers_of(
        Trials(), [*highest, sequence - SEQUENCE_REACH, sequence - SEQUENCE_REACH - 1], sequence
    )
    assert all(0 < sequence - number <= SEQUENCE_REACH for number in tried)
    assert sequence - SEQUENCE_REACH in tried
    assert tried == sorted(tried, reverse=True)


def test_one_datagram_causes_a_bounded_number_of_trials() -> None:
    assert len(numbers_of(Trials(), [1] * 1000, sequence=2)) == TRIALS_PER_DATAGRAM


def test_all_datagrams_together_cause_a_bounded_number_of_trials_a_second() -> None:
    trials = Trials()
    tried = sum(len(numbers_of(trials, [1] * 10, sequence=2, now=n / 1000)) for n in range(2000))
    assert 2.9 * TRIALS_PER_SECOND <= tried <= 3 * TRIALS_PER_SECOND  # a full bucket and two seconds


def test_unused_trials_do_not_accumulate() -> None:
    trials = Trials()
    assert len(numbers_of(trials, [1] * 50, sequence=2, now=3600)) == 50
    tried = sum(len(numbers_of(trials, [1] * 50, sequence=2, now=3600)) for _ in range(1000))
    assert tried == TRIALS_PER_SECOND - 50


def test_a_trial_that_succeeds_costs_no_more_than_itself() -> None:
    trials = Trials()
    next(iter(trials.candidates([Known(1)] * 50, 2, 0)))
    rest = sum(len(numbers_of(trials, [1] * 50, sequence=2)) for _ in range(1000))
    assert rest == TRIALS_PER_SECOND - 1
