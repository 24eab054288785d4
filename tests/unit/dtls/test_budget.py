"""The budget for handshakes: nobody gets more than their share, and newcomers are let in whatever others do."""

from hypothesis import given, strategies as st

from dtun.dtls.budget import (
    BURST,
    FEW_WITHIN,
    NEWCOMERS,
    PER_SECOND,
    SOURCE_BURST,
    SOURCE_PER_SECOND,
    HandshakeBudget,
)


def started(budget: HandshakeBudget, source: str, tries: int, now: float) -> int:
    number = 0
    for _ in range(tries):
        if budget.refusal(source, now) is None:
            budget.charge(source, now)
            number += 1
    return number


def test_one_source_gets_its_burst_and_then_its_rate() -> None:
    budget = HandshakeBudget()
    assert started(budget, "a", 1000, 0.0) == SOURCE_BURST
    assert budget.refusal("a", 0.0) == "handshake budget of the source"
    assert sum(started(budget, "a", 10, moment / 64) for moment in range(1, 641)) == 10 * SOURCE_PER_SECOND
    assert budget.refusal("b", 10.0) is None
    assert budget.exhausted(10.0) == 1


@given(st.integers(3, 40), st.integers(1, 20))
def test_all_together_get_no_more_than_the_common_burst_and_rate(sources: int, tries: int) -> None:
    budget = HandshakeBudget()
    number = sum(
        started(budget, f"{source}", tries, moment / 4) for moment in range(20) for source in range(sources)
    )
    assert number <= BURST + 5 * PER_SECOND


def test_busy_sources_leave_room_for_newcomers() -> None:
    budget = HandshakeBudget()
    for moment in range(1000):
        for source in range(50):
            started(budget, f"busy {source}", 2, moment / 100)
    assert budget.used(10.0) >= 0.4
    assert sum(started(budget, f"new {newcomer}", 1, 10.0) for newcomer in range(200)) >= NEWCOMERS - 1


def test_a_source_is_a_newcomer_again_after_a_rest() -> None:
    budget = HandshakeBudget()
    assert started(budget, "a", 1000, 0.0) == SOURCE_BURST
    for moment in (5.0, FEW_WITHIN):
        for other in range(120):
            started(budget, f"{other} {moment}", 1, moment)
        assert (budget.refusal("a", moment) is None) == (moment == FEW_WITHIN)


def test_sources_are_forgotten_and_the_budget_is_whole_again() -> None:
    budget = HandshakeBudget()
    for number in range(10_000):
        started(budget, f"{number}", 1, number / 100)
    assert budget.used(100.0) < 0.02
    assert budget.used(150.0) == 0
    assert budget.exhausted(150.0) == 0


def test_a_smaller_share_is_a_smaller_budget() -> None:
    assert started(HandshakeBudget(0.25), "a", 1000, 0.0) == SOURCE_BURST / 4
