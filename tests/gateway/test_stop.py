"""Stop strings: cut in the same place however the text arrives, and never shown in part."""

import itertools
import re

from hypothesis import given
from hypothesis import strategies as st

from gateway.grammar import GrammarKind, GrammarSpec, Reader, compiled
from gateway.stop import StopMatcher

TEXTS = st.text(alphabet="abc", max_size=40)
STOPS = st.lists(st.text(alphabet="abc", min_size=1, max_size=6), min_size=1, max_size=4)


def reference(text: str, stops: list[str], *, include: bool) -> tuple[str, str | None]:
    """The rule, said once more and slowly: take one character after another until one stop is
    complete; of several complete at once the one that starts first."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


def chunked(
    text: str, stops: list[str], cuts: list[int], *, include: bool
) -> tuple[list[str], str | None]:
    """What is shown after each chunk, and what stopped it."""
    matcher = StopMatcher(stops, include=include)
    edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    shown = []
    for start, end in itertools.pairwise(edges):
        shown.append(matcher.feed(text[start:end]))
        if matcher.matched is not None:
            return shown, matcher.matched
    return [*shown, matcher.close()], None


@given(TEXTS, STOPS, st.lists(st.integers(min_value=0)), st.booleans())
def test_chunks_give_what_the_whole_gives(
    text: str, stops: list[str], cuts: list[int], include: bool
) -> None:
    shown, matched = chunked(text, stops, cuts, include=include)
    assert ("".join(shown), matched) == reference(text, stops, include=include)


@given(TEXTS, STOPS)
def test_no_more_is_held_back_than_could_still_match(text: str, stops: list[str]) -> None:
    shown, matched = chunked(text, stops, list(range(41)), include=False)
    if matched is None:
        held = shown[-1]
        assert held == "" or any(stop.startswith(held) for stop in stops)


def test_a_partial_match_is_shown_once_it_fails() -> None:
    matcher = StopMatcher(["</end>"], include=False)
    assert matcher.feed("word </en") == "word "
    assert matcher.feed("large>") == "</enlarge>"
    assert matcher.matched is None


def test_the_stop_string_is_kept_when_asked_for() -> None:
    matcher = StopMatcher(["END"], include=True)
    assert matcher.feed("one E") == "one "
    assert matcher.feed("ND two") == "END"
    assert matcher.matched == "END"


LANGUAGE = "(ab|c)*b?"
"""Of texts that are not complete wherever a stop string may begin or end."""


@given(
    st.lists(st.sampled_from(["ab", "c"]), max_size=20).map("".join),
    STOPS,
    st.lists(st.integers(min_value=0)),
    st.booleans(),
)
def test_a_text_of_a_language_ends_where_it_is_complete(
    text: str, stops: list[str], cuts: list[int], include: bool
) -> None:
    expected: tuple[str, str | None] = (text, None)
    for end in range(len(text) + 1):
        matches = sorted((s for s in stops if text[:end].endswith(s)), key=len, reverse=True)
        kept = [(text[: end if include else end - len(stop)], stop) for stop in matches]
        if found := [match for match in kept if re.fullmatch(LANGUAGE, match[0])]:
            expected = found[0]
            break
    grammar = compiled(GrammarSpec(GrammarKind.REGEX, LANGUAGE))
    matcher = StopMatcher(stops, include=include, language=Reader(grammar))
    edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    shown = ""
    for start, end in itertools.pairwise(edges):
        shown += matcher.feed(text[start:end])
        if matcher.matched is not None:
            break
    else:
        shown += matcher.close()
    assert (shown, matcher.matched) == expected
