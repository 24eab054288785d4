"""The timer that is a descriptor, as epoll sees it."""

import os
import select
from collections.abc import Iterator

import pytest

from dtun.platform.linux.eventloop.timer import Timer


@pytest.fixture
def timer() -> Iterator[Timer]:
    timer = Timer()
    yield timer
    timer.close()


def is_due(timer: Timer, wait: float = 0) -> bool:
    return select.select([timer], [], [], wait)[0] == [timer]


def test_it_is_due_once_its_time_has_come_and_not_before(timer: Timer) -> None:
    assert not is_due(timer)
    timer.set(3600)
    assert not is_due(timer)
    timer.set(0.01)
    assert is_due(timer, 10)
    assert is_due(timer), "until it is set again"
    timer.set(3600)
    assert not is_due(timer)


@pytest.mark.parametrize("seconds", [0, 1e-12, -1, -3600.5])
def test_a_time_that_has_passed_is_now_and_not_never(timer: Timer, seconds: float) -> None:
    timer.set(seconds)
    assert is_due(timer, 10)


def test_never_turns_it_off(timer: Timer) -> None:
    timer.set(0)
    assert is_due(timer, 10)
    timer.set(None)
    assert not is_due(timer)


@pytest.mark.parametrize("seconds", [0.9999999999, 1e9, 1 << 31])
def test_any_time_that_a_loop_may_ask_for_is_one(timer: Timer, seconds: float) -> None:
    timer.set(seconds)
    assert not is_due(timer)


def test_what_the_kernel_refuses_is_an_error() -> None:
    other = Timer()
    other.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        other.set(1)


def test_it_is_closed_once() -> None:
    timer = Timer()
    timer.close()
    again = os.dup(0)  # most likely gets the number that is free now
    timer.close()
    os.close(again)
