"""Which of two keys is tried while a client's key is being changed."""

import random
from collections.abc import Iterator

import pytest
from hypothesis import given, strategies as st

from dtun.config import Key
from dtun.server.psk import INCONCLUSIVE, MAX_FAILURES, MAX_NAMES, MEMORY, KeyChooser

OLD, NEW = Key(b"old"), Key(b"new")
KEYS = (OLD, NEW)
HOME, ELSEWHERE = "192.0.2.1", "198.51.100.1"


def never() -> bool:
    raise AssertionError("there was no doubt")


def attempt(chooser: KeyChooser, has: Key, source: str = HOME, now: float = 0.0, name: str = "demo") -> bool:
    """A handshake of a client that has this key. Returns whether it succeeded."""
    tried = chooser.choose(name, source, KEYS, now)
    if tried == has:
        chooser.worked(name, source, tried)
        return True
    chooser.failed(name, source, tried, now)
    return False


def test_one_key_is_no_choice() -> None:
    assert KeyChooser(never).choose("demo", HOME, (OLD,), 0) is OLD


def test_a_client_with_the_new_key_is_let_in_at_its_second_try_and_then_always_at_once() -> None:
    chooser = KeyChooser(never)
    assert [attempt(chooser, NEW) for _ in range(4)] == [False, True, True, True]
    assert attempt(chooser, NEW, ELSEWHERE), "also from another address"


def test_a_client_that_goes_back_to_the_old_key_is_let_in_again() -> None:
    chooser = KeyChooser(never)
    assert [attempt(chooser, has) for has in (NEW, NEW, OLD, OLD, OLD)] == [False, True, False, True, True]


def test_failures_from_other_addresses_do_not_matter() -> None:
    chooser = KeyChooser(never)
    attempt(chooser, OLD)
    for number in range(100):
        chooser.failed("demo", f"203.0.113.{number}", OLD, 0)
        chooser.failed("other", HOME, OLD, 0)
    assert attempt(chooser, OLD)


@given(st.sampled_from(KEYS), st.lists(st.sampled_from(KEYS), min_size=1, max_size=50), st.integers())
def test_a_client_cannot_be_locked_out_even_from_the_same_address(
    has: Key, interference: list[Key], seed: int
) -> None:
    coin = random.Random(seed)
    chooser = KeyChooser(lambda: coin.random() < 0.5)

    def tries_after_interference() -> bool:
        # Between two tries of the client, an attacker causes any failures.
        for key in interference:
            chooser.failed("demo", HOME, key, 0)
        return attempt(chooser, has)

    assert any(tries_after_interference() for _ in range(64)), "a coin that falls on the same side 60 times"


def test_it_does_not_help_an_attacker_to_make_the_server_forget() -> None:
    tosses: Iterator[bool] = iter([False, True])
    chooser = KeyChooser(lambda: next(tosses))
    attempt(chooser, OLD)
    for number in range(MAX_FAILURES):
        chooser.failed("demo", f"address {number}", OLD, 0)
    assert not attempt(chooser, OLD), "the coin says: the new one"
    for number in range(MAX_FAILURES):
        chooser.failed("demo", f"address {number}", OLD, 0)
    assert attempt(chooser, OLD), "the coin says: the old one"


def test_the_oldest_failure_is_forgotten_when_there_are_too_many() -> None:
    chooser = KeyChooser(never)
    for number in range(MAX_FAILURES + 1):
        assert chooser.failed(f"id {number}", HOME, OLD, 0) == 1
    assert chooser.failed(f"id {MAX_FAILURES}", HOME, OLD, 0) == 2
    assert chooser.failed("id 0", HOME, OLD, 0) == 1


def test_the_id_whose_key_worked_first_is_forgotten_when_there_are_too_many() -> None:
    chooser = KeyChooser(never)
    for number in range(MAX_NAMES + 1):
        chooser.worked(f"id {number}", HOME, NEW)
    assert chooser.choose("id 1", HOME, KEYS, 0) is NEW
    assert chooser.choose("id 0", HOME, KEYS, 0) is OLD


def test_a_failure_is_forgotten_in_time() -> None:
    chooser = KeyChooser(never)
    attempt(chooser, OLD)
    for _ in range(INCONCLUSIVE):
        chooser.failed("demo", HOME, OLD, 0)
    assert attempt(chooser, OLD, now=MEMORY + 1)


def test_a_removed_key_is_not_tried() -> None:
    chooser, newest = KeyChooser(never), Key(b"newest")
    attempt(chooser, OLD)
    chooser.failed("demo", HOME, OLD, 0)
    assert chooser.choose("demo", HOME, (NEW, newest), 0) is NEW


@pytest.mark.parametrize("failures", [1, 2, 5])
def test_it_is_counted_how_often_in_a_row(failures: int) -> None:
    chooser = KeyChooser(lambda: True)
    assert [chooser.failed("demo", HOME, OLD, 0) for _ in range(failures)][-1] == failures
    chooser.worked("demo", HOME, OLD)
    assert chooser.failed("demo", HOME, OLD, 0) == 1
