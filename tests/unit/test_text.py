"""What of others' words is shown."""

from hypothesis import given, strategies as st

from dtun.text import printable


@given(st.text())
def test_words_from_the_network_stay_on_one_line_and_short(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown) <= 123
    if text.isprintable() and len(text) <= 120:
        assert shown == text


def test_what_could_move_a_terminal_is_replaced() -> None:
    assert printable("a\x1b[2J\nb\u202ec") == "a?[2J?b?c"


def test_a_caller_may_keep_line_breaks_and_the_whole_length() -> None:
    assert printable("a\nb\r" + "c" * 200, None, keep="\n") == "a\nb?" + "c" * 200
