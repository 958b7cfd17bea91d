"""What a model may write where that is bound: calls that must come or must be right, and what has
a form.

In llguidance's Lark. The arguments follow the tool's own schema, spaced as the models were trained
to write them. Where a model thinks, it may do so first, whatever comes then.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from gateway.conversation import Tool
from gateway.grammar import GrammarKind, GrammarSpec, as_rule, escaped
from gateway.limits import DEFAULT_LIMITS, RequestLimits
from gateway.parsing.call_rules import (
    SPACE,
    Token,
    call_rules,
    head,
    headed_rules,
    word,
)
from gateway.parsing.formats import CallFormat, Thoughts
from gateway.parsing.reader import MAX_SPACE

_SPACE = f"{SPACE}{{0,{MAX_SPACE}}}"
"""What may come before thoughts."""


@dataclass(frozen=True, slots=True)
class ThoughtLimit:
    """How long a model may think: so many tokens, and then its thoughts are ended for it.

    Counted in tokens, so their begin and end must be single ones; a model that would spell them out
    in several is not seen to think.
    """

    max_tokens: int
    begin: int
    end: int
    """Token ids."""
    field: str
    """Where the client said it."""


def answer_grammar(
    *,
    content: GrammarSpec | None,
    form: CallFormat | None,
    tools: Sequence[Tool],
    several: bool,
    thoughts: Thoughts | None,
    starts_thinking: bool,
    token: Token,
    held: Collection[Tool] | None = None,
    tools_field: str = "tools",
    limits: RequestLimits = DEFAULT_LIMITS,
    thought_limit: ThoughtLimit | None = None,
) -> GrammarSpec:
    """The language of whole answers: perhaps thoughts, and then either calls of these tools
    (`several` of them or one) or what the client wants the content to be.

    Without `content` it must be calls, without tools it cannot be; without either it is anything,
    and `thought_limit` is all that binds it. If `held` are given, words and calls come as the model
    likes, with right arguments for those of the tools. Raises RequestError.
    """
    rules: list[str] = []
    ways: list[str] = []
    if held is not None:
        assert form is not None
        ways.append("free")
        rules += _free(form, tools, held, several, thoughts, token)
    elif form is not None and tools:
        ways.append("calls")
        rules += call_rules(form, tools, tools, several, token)
    if content is not None:
        ways.append("content")
        rules.append(f"content: {as_rule(content, limits)}")
    start = f"({' | '.join(ways)})"
    space = "" if held is not None else r"/[ \n]{1,4}/? "
    if thought_limit is not None:
        limit = thought_limit
        rules.append(f"thoughts: <[^{limit.end}]>{{0,{limit.max_tokens}}} <[{limit.end}]>")
        start = f"{space}{start}" if ways else f"<[^{limit.begin}]>*"
        thought = "thoughts" if starts_thinking else f"(<[{limit.begin}]> thoughts)?"
        start = f"{thought} {start}"
    elif thoughts is not None:
        rules += _upto("thoughts", thoughts.end, "", token)
        before = f"thoughts {space}"
        if not starts_thinking:
            before = f"(begin {before})?"
            rules += _begin(thoughts, held is not None, token)
        start = f"{before} {start}"
    text = "\n".join([f"start: {start}", *rules])
    field = tools_field if content is None else content.field
    if thought_limit is not None and not ways:
        field = thought_limit.field
    return GrammarSpec(GrammarKind.LARK, f"{text}\n", field, has_tokens=True)


def _free(
    form: CallFormat,
    tools: Sequence[Tool],
    held: Collection[Tool],
    several: bool,
    thoughts: Thoughts | None,
    token: Token,
) -> Iterator[str]:
    """The rules of an answer that may be words and calls, the first of which is `free`.

    Where a text could be the beginning of a call, or of thoughts, it is.
    """
    others = []
    if thoughts is not None:
        others.append(f"~/{_SPACE}{escaped(thoughts.begin)}(?s:.*)/")
    if form.opening:
        yield f"free: (words block){'*' if several else '?'} LAST"
        yield _text_without("LAST", form.opening, others)
        yield from _upto("words", form.opening, " & ".join(others), token)
        yield from call_rules(form, tools, held, several, token)
        return
    tags = [f"<[{number}]>" for tag in form.tokens if (number := token(tag)) is not None]
    before = f"({' | '.join(tags)})? " if tags else ""
    yield f"free: {before}(headed | WORDS)"
    others.append(f"~/{head(form, tools)}(?s:.*)/")
    yield f"WORDS: {' & '.join(['/(?s:.*)/', *others])}"
    yield from headed_rules(form, tools, held, several, token)


def _begin(thoughts: Thoughts, is_free: bool, token: Token) -> Iterator[str]:
    """The rule of how thoughts begin: beside words, in every way in which they are read as such."""
    number = token(thoughts.begin)
    if is_free:
        yield f"BEGIN: /{_SPACE}{escaped(thoughts.begin)}/"
        yield "begin: BEGIN" if number is None else f"begin: BEGIN | <[{number}]>"
    else:
        yield f"begin: {word(thoughts.begin, token)}"


def _upto(name: str, end: str, others: str, token: Token) -> Iterator[str]:
    """The rule of all up to an `end`, with that: a text in which it does not come, then the special
    token, if there is one; and in any case the same spelled out, as who reads the text takes it."""
    terminal = name.upper()
    spelled = f"/(?s:.*){escaped(end)}/"
    yield f"{terminal}_SPELLED: {' & '.join(filter(None, [spelled, others]))}"
    yield f"{name}_spelled[lazy]: {terminal}_SPELLED"
    number = token(end)
    if number is None:
        yield f"{name}: {name}_spelled"
        return
    yield f"{name}: {terminal} <[{number}]> | {name}_spelled"
    yield _text_without(terminal, end, [others] if others else [])


def _text_without(terminal: str, marker: str, others: Sequence[str]) -> str:
    never = f"~/(?s:.*){escaped(marker)}(?s:.*)/"
    return f"{terminal}: {' & '.join(['/(?s:.*)/', never, *others])}"
