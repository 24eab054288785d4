"""How long to wait, how often to speak, and what of others' words to repeat."""

import random

from hypothesis import given, strategies as st

from dtun.tunnel.backoff import FIRST, LONGEST, Backoff
from dtun.tunnel.limiter import Limiter
from dtun.tunnel.text import harmless


@given(st.integers())
def test_waits_grow_to_the_longest_with_jitter_in_their_upper_half(seed: int) -> None:
    backoff = Backoff(random.Random(seed))
    ceiling = FIRST
    for _ in range(12):
        assert ceiling / 2 <= backoff.next() <= ceiling
        ceiling = min(2 * ceiling, LONGEST)
    assert ceiling == LONGEST
    backoff.reset()
    assert backoff.next() <= FIRST


def test_many_clients_do_not_come_back_as_one() -> None:
    assert len({Backoff().next() for _ in range(50)}) == 50


def test_a_burst_goes_through_and_what_was_held_back_is_counted_once() -> None:
    limiter = Limiter(burst=2, per_seconds=60)
    assert [limiter.allow(now) for now in (0, 1, 2, 59.9)] == [0, 0, None, None]
    assert [limiter.allow(now) for now in (60, 60.5, 61)] == [2, None, 1]


@given(st.lists(st.floats(0, 30), max_size=60))
def test_no_window_holds_more_than_the_burst(pauses: list[float]) -> None:
    limiter = Limiter(burst=3, per_seconds=60)
    now, said = 0.0, []
    for pause in pauses:
        now += pause
        if limiter.allow(now) is not None:
            said.append(now)
    assert all(later - earlier >= 60 for earlier, later in zip(said, said[3:], strict=False))


@given(st.text())
def test_words_from_the_network_stay_on_one_line_and_short(text: str) -> None:
    shown = harmless(text)
    assert shown.isprintable()
    assert len(shown) <= 123
    if text.isprintable() and len(text) <= 120:
        assert shown == text


def test_what_could_move_a_terminal_is_replaced() -> None:
    assert harmless("a\x1b[2J\nb\u202ec") == "a?[2J?b?c"
