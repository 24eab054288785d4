"""What the benchmark does with its numbers: percentiles, the search for a rate, the tables."""

import math

import pytest
from hypothesis import given, strategies as st

from bench.measure import LOSS_LIMIT, PRECISION, highest_rate
from bench.table import METRICS, percentile, ratio_table, results_table


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 1), (1, 1), (50, 50), (50.5, 51), (99, 99), (99.1, 100), (100, 100)]
)
def test_a_percentile_is_the_least_value_that_so_many_do_not_exceed(percent: float, expected: int) -> None:
    assert percentile(reversed(range(1, 101)), percent) == expected


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.1, 100))
def test_a_percentile_holds_what_it_promises(values: list[float], percent: float) -> None:
    result = percentile(values, percent)
    enough = math.ceil(len(values) * percent / 100)
    assert result in values
    assert sum(value <= result for value in values) >= enough
    assert sum(value < result for value in values) < max(enough, 1)


def test_nothing_has_no_percentile() -> None:
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 50)


@given(st.integers(1_000, 200_000), st.integers(200_001, 2_000_000))
def test_the_highest_rate_without_loss_is_found(capacity: int, sender: int) -> None:
    def trial(rate: float) -> tuple[float, float]:
        offered = rate or sender
        # Overloaded, a tunnel carries less than it could.
        return offered, offered if offered <= capacity else capacity * (capacity / offered) ** 0.25

    found = highest_rate(trial, 20)

    assert capacity / PRECISION <= found <= capacity / (1 - LOSS_LIMIT)


def test_a_sender_that_cannot_overload_the_tunnel_sets_the_rate() -> None:
    trials = []

    def trial(rate: float) -> tuple[float, float]:
        trials.append(rate)
        return 100_000, 99_500

    assert highest_rate(trial, 5) == 99_500
    assert trials == [0]


def test_a_tunnel_that_always_loses_has_no_rate() -> None:
    assert highest_rate(lambda rate: (rate or 1000, (rate or 1000) / 2), 5) == 0


def test_the_table_has_medians_and_below_them_the_spread() -> None:
    results = {
        "dtun": {"tcp_up": [2.0, 3.0, 2.5], "udp_64": [1234.56, 1000.0, 2000.0]},
        "none": {"tcp_up": [9.0]},
    }

    groups, titles, medians, spread, other = results_table(results).splitlines()

    assert groups.split("  ")[-1].strip() == "memory, MiB"
    assert titles.split()[:2] == ["up", "down"]
    # A dash for what was not measured.
    absent = len(METRICS) - 2
    assert medians.split() == ["dtun", "2.50", "-", "-", "-", "1,234.6", *["-"] * (absent - 3)]
    assert spread.split() == ["2.00-3.00", "1000.0-2000.0"]
    assert other.split() == ["none", "9.00", *["-"] * (len(METRICS) - 1)]


def test_columns_stand_below_their_titles() -> None:
    results = {"a-tunnel-with-a-long-name": {metric.key: [1.0, 2.0] for metric in METRICS}}
    _, titles, *rows = results_table(results).splitlines()
    assert {len(row) for row in rows} == {len(titles)}


def test_one_round_has_no_spread() -> None:
    assert len(results_table({"dtun": {"tcp_up": [1.0]}}).splitlines()) == 3


def test_ratios_are_of_the_subject_to_each_other_peer() -> None:
    results = {
        "openvpn": {"tcp_up": [0.5], "cpu": [9.0], "udp_64": [0.0]},
        "dtun": {"tcp_up": [2.0, 1.0, 3.0], "cpu": [3.0], "udp_64": [5.0]},
    }
    _, _, row = ratio_table(results, "dtun").splitlines()
    # No ratio to what is zero or was not measured.
    assert row.split() == ["openvpn", "4.00", "-", "-", "-", "-", "0.33"]


def test_without_the_subject_there_are_no_ratios() -> None:
    assert ratio_table({"openvpn": {"tcp_up": [0.5]}}, "dtun") == ""
