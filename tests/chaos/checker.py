"""The history checker: what must be true of every run, whatever happened during it.

One end for each request, and a good one; text, tokens, logprobs and usage of the undisturbed run;
nothing left behind; the scheduler's books in order.
"""

from collections.abc import Sequence

from tests.chaos.judge import TIE, Judge
from tests.chaos.stack import Stack
from tests.chaos.streams import Choice, History, told
from tests.chaos.traffic import Asked

LOGPROB_TOLERANCE = 2e-3
NUM_PROBES = 3
USAGE_FIELDS = ("prompt_tokens", "completion_tokens", "total_tokens")
"""`cached_tokens` is the one that may differ: it says what the caches held."""


def check_ended(history: History) -> None:
    """One end, a good one, and usage that says what was received."""
    asked, who = history.asked, f"{history.asked.kind} (seed {history.asked.body['seed']})"
    assert not history.errors, f"{who}: {history.errors}"
    assert history.status == 200, who
    assert history.num_done == 1, f"{who}: {history.num_done} ends"
    assert len(history.choices) == asked.body.get("n", 1), who
    for choice in history.choices.values():
        assert len(choice.finish_reasons) == 1, f"{who}: {choice.finish_reasons}"
    assert len(history.usages) == 1, f"{who}: usage came {len(history.usages)} times"
    said = history.usages[0]["completion_tokens"]
    assert said == history.num_tokens, f"{who}: usage says {said}, {history.num_tokens} came"


def check_same(history: History, reference: History, judge: Judge) -> None:
    """What the undisturbed run had, up to a tie."""
    ties_before = judge.num_ties
    for index, expected in sorted(reference.choices.items()):
        _check_choice(history, index, history.choices[index], expected, judge)
    if judge.num_ties == ties_before:
        for name in USAGE_FIELDS:
            assert history.usages[0][name] == reference.usages[0][name], name


def check_exact(histories: Sequence[History], reference: Sequence[History]) -> None:
    """Streams of the small model ended well, as in the undisturbed run: in its few logits there
    are no ties."""
    for history, expected in zip(histories, reference, strict=True):
        check_ended(history)
        assert history.choices[0].tokens == expected.choices[0].tokens


def check_cut_off(history: History, reference: History, judge: Judge) -> None:
    """Its connection broke, and nothing else is wrong: it has the beginning of what it should."""
    assert history.status in (None, 200)
    assert not history.num_done
    for index, choice in history.choices.items():
        expected = reference.choices[index]
        same = _common_length(choice.tokens, expected.tokens)
        if same < len(choice.tokens):
            _check_tie(history, index, choice, expected, judge)


def _check_choice(
    history: History, index: int, got: Choice, expected: Choice, judge: Judge
) -> None:
    asked = history.asked
    who = f"{asked.kind} (seed {asked.body['seed']}), choice {index}"
    assert got.prompt_tokens == expected.prompt_tokens, who
    same = _common_length(got.tokens, expected.tokens)
    if same < min(len(got.tokens), len(expected.tokens)):
        _check_tie(history, index, got, expected, judge)
        return
    assert len(got.tokens) == len(expected.tokens), who
    assert got.text == expected.text, who
    assert got.finish_reasons == expected.finish_reasons, who
    assert len(got.logprobs) == len(expected.logprobs), who
    for one, other in zip(got.logprobs, expected.logprobs, strict=True):
        if one is None or other is None:
            assert one is other, who
        else:
            assert abs(one - other) <= LOGPROB_TOLERANCE, f"{who}: logprob {one}, not {other}"


def _check_tie(history: History, index: int, got: Choice, expected: Choice, judge: Judge) -> None:
    """Where two outputs part, either token could have won."""
    asked, same = history.asked, _common_length(got.tokens, expected.tokens)
    assert same < len(expected.tokens), f"{asked.kind}: it went on past its end"
    pair = got.tokens[same], expected.tokens[same]
    gap = judge.gap(asked, index, got.prompt_tokens, got.tokens[:same], pair)
    assert gap <= TIE, (
        f"{asked.kind} (seed {asked.body['seed']}), choice {index}: token {same} of "
        f"{len(expected.tokens)} is {pair[0]} in place of {pair[1]}, whose scores are "
        f"{gap:.2e} apart"
    )
    judge.num_ties += 1


def _common_length(one: Sequence[int], other: Sequence[int]) -> int:
    for length, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return length
    return min(len(one), len(other))


async def check_run(
    stack: Stack, histories: Sequence[History], reference: Sequence[History], judge: Judge
) -> None:
    """The whole list, and then the stack itself."""
    for history, expected in zip(histories, reference, strict=True):
        check_ended(history)
        check_same(history, expected, judge)
    await check_nothing_left(stack)


async def check_survivors(
    stack: Stack, histories: Sequence[History], reference: Sequence[History], judge: Judge
) -> int:
    """The same where a router was killed: how many broke off with it."""
    num_broken = 0
    for history, expected in zip(histories, reference, strict=True):
        if history.errors:
            check_cut_off(history, expected, judge)
            num_broken += 1
        else:
            check_ended(history)
            check_same(history, expected, judge)
    await check_nothing_left(stack)
    return num_broken


async def check_nothing_left(stack: Stack, *, num_errors: int = 0) -> None:
    """Every counter is back at zero, the books balance, so many requests have failed so far, and
    what is asked now is answered."""
    await stack.until_idle()
    routers = [name for name in stack.processes() if name.startswith("router")]
    in_flight = sum(stack.metric(name, "quire:requests_in_flight{") for name in routers)
    assert in_flight == 0
    assert sum(stack.metric(name, 'finished_reason="error"') for name in routers) == num_errors
    assert stack.metric("scheduler", "quire:integrity_failures_total") == 0
    body = {"model": "smollm2", "prompt": "One, two,", "max_tokens": 4, "seed": 0}
    extra = {"stream": True, "stream_options": {"include_usage": True}, "return_token_ids": True}
    probe = Asked("probe", "/v1/completions", body | extra | {"temperature": 0})
    for history in await told(stack.url, [probe] * NUM_PROBES):
        check_ended(history)
    await stack.until_idle()
