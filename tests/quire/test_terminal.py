"""Text in a terminal: words are not torn, and nothing of them is lost."""

import pytest

from quire.commands.terminal import WordWrap


def wrapped(text: str, width: int, *, piece: int = 3) -> str:
    """The text as it is shown when it comes in pieces."""
    wrap = WordWrap(width)
    pieces = (text[start : start + piece] for start in range(0, len(text), piece))
    return "".join(map(wrap.feed, pieces)) + wrap.flush()


@pytest.mark.parametrize("piece", [1, 4, 100])
def test_a_line_is_broken_between_words(piece: int) -> None:
    assert wrapped("the quick brown fox jumps", 10, piece=piece) == "the quick\nbrown fox\njumps"


def test_a_word_may_end_at_the_edge() -> None:
    assert wrapped("12345 7890 x", 10) == "12345 7890\nx"


def test_lines_and_indents_stay_as_they_are() -> None:
    text = "def f():\n    return 1\n\n\tx = 2\n"
    assert wrapped(text, 40) == text


def test_a_word_longer_than_a_line_is_left_to_the_terminal() -> None:
    assert wrapped("see " + 25 * "x" + " and go on", 10) == "see\n" + 25 * "x" + " and\ngo on"


def test_wide_characters_take_two_columns_and_need_no_blanks_between() -> None:
    assert wrapped("数学数学数学", 8) == "数学数学\n数学"


def test_a_word_is_shown_once_it_is_whole() -> None:
    wrap = WordWrap(20)
    assert [wrap.feed(piece) for piece in ("he", "llo wor", "ld\n")] == ["", "hello", " world\n"]
