"""Two hosts with one id are told from one host that comes and goes."""

import tracemalloc

from hypothesis import given, strategies as st

from dtun.server.duplicate_ids import WINDOW, DuplicateIds


def test_two_hosts_that_take_turns_are_noticed_once_and_named() -> None:
    duplicate_ids = DuplicateIds()
    news = [duplicate_ids.login(host, f"{host}:1", now=float(n)) for n, host in enumerate("ABABAB")]
    assert news == [False, False, False, True, False, False]
    assert duplicate_ids.evident(6)
    assert duplicate_ids.describe().endswith(": A:1, B:1")


def test_one_host_may_log_in_as_often_as_it_likes() -> None:
    duplicate_ids = DuplicateIds()
    assert not any(duplicate_ids.login("A", f"A:{n}", now=float(n)) for n in range(100))


@given(st.lists(st.floats(0, 60), max_size=30))
def test_a_host_that_restarts_all_the_time_is_no_rival(pauses: list[float]) -> None:
    duplicate_ids = DuplicateIds()
    now = 0.0
    for number, pause in enumerate(pauses):
        now += pause
        assert not duplicate_ids.login(f"instance {number}", "192.0.2.1:1", now)


def test_going_back_to_the_old_host_once_is_no_duplicate_ids() -> None:
    duplicate_ids = DuplicateIds()
    assert not any(duplicate_ids.login(host, host, now=float(n)) for n, host in enumerate("ABA"))


def test_duplicate_ids_are_reported_again_after_a_pause() -> None:
    duplicate_ids = DuplicateIds()
    for number, host in enumerate("ABAB"):
        duplicate_ids.login(host, host, now=float(number))
    later = 2 * WINDOW
    assert not duplicate_ids.evident(later)
    news = [duplicate_ids.login(host, host, now=later + number) for number, host in enumerate("ABABA")]
    assert news == [False, False, True, False, False], (
        "B was there last, so A's second login is the second return"
    )


def test_slow_turns_are_not_duplicate_ids() -> None:
    duplicate_ids = DuplicateIds()
    assert not any(duplicate_ids.login(host, host, now=n * (WINDOW + 1)) for n, host in enumerate("ABABABAB"))


def test_memory_and_description_stay_small() -> None:
    duplicate_ids = DuplicateIds()

    def log_in(first: int, count: int) -> int:
        """Returns how many bytes are in use then."""
        for number in range(first, first + count):
            duplicate_ids.login(f"{number // 4}-{number % 2}", f"192.0.2.{number % 250}:1", now=number * 10.0)
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = log_in(0, 200)
        assert log_in(200, 2000) < before + 20_000
    finally:
        tracemalloc.stop()
    assert duplicate_ids.describe().count(",") < 4
