"""What may come next is all that comes: on every runner, however a plan's work is cut up."""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from protos.grammar import GRAMMAR_LIMITS, GrammarLimits
from tests.worker.builders import VOCAB_SIZE, admission, column, plan
from tests.worker.grammar_source import END, json_schema, lark, regex, write_tokenizer
from tests.worker.runners import (
    NUM_OUTPUT,
    PROMPTS,
    generate,
    make_device_runner,
    make_host_runner,
    run,
    tenants,
)
from worker.constraints import Constraints
from worker.executor import Runner
from worker.grammars import MAX_KEPT, GrammarError, Grammars
from worker.loader import LoadedModel
from worker.plans import FinishReason, Sampling

MakeRunner = Callable[[LoadedModel, Grammars], Runner]
MAKERS: dict[str, MakeRunner] = {
    "host": lambda loaded, grammars: make_host_runner(loaded, grammars=grammars),
    "device": lambda loaded, grammars: make_device_runner(loaded, grammars=grammars),
    "captured": lambda loaded, grammars: make_device_runner(
        loaded, grammars=grammars, buckets=(4, 16)
    ),
}


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tokenizer_path))


@pytest.fixture(scope="module")
def grammars(tokenizer_path: Path) -> Grammars:
    return Grammars(tokenizer_path, VOCAB_SIZE)


@pytest.fixture(params=list(MAKERS))
def runner(request: pytest.FixtureRequest, tiny_model: LoadedModel, grammars: Grammars) -> Runner:
    """Each kind, over the same model."""
    return MAKERS[request.param](tiny_model, grammars)


def text(tokenizer: Tokenizer, token_ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(token_ids), skip_special_tokens=False))


def constrained(grammar: str, **more: object) -> Sampling:
    sampling = Sampling(temperature=1.0, stop_token_ids=(END,), grammar=grammar)
    return replace(sampling, **more)  # type: ignore[arg-type]


THOUGHT_END = 70
BOUNDED_THOUGHTS = lark(
    f"start: thoughts <[^71]>*\nthoughts: <[^{THOUGHT_END}]>{{0,4}} <[{THOUGHT_END}]>"
)
"""At most four tokens, then a certain one, as `gateway.parsing.call_grammars` writes it."""

KINDS = (
    constrained(regex("[a-c]{2,40}")),
    constrained(json_schema('{"type": "array", "items": {"type": "integer"}, "maxItems": 3}')),
    constrained(regex("(ab){3}|東京"), temperature=0.0, num_logprobs=2),
    Sampling(temperature=1.0, allowed_token_ids=(40, 50, 60, 70)),
    Sampling(temperature=1.0, bad_words=((40,), (41,), (50, 60)), allowed_token_ids=(40, 50, 60)),
    constrained(regex("[a-z]+"), repetition_penalty=1.3, top_k=5, allowed_token_ids=()),
    constrained(BOUNDED_THOUGHTS),
    Sampling(temperature=1.0),
)


@pytest.mark.parametrize("sampling", KINDS)
def test_chunks_batches_and_replay_do_not_change_the_tokens(
    runner: Runner, sampling: Sampling
) -> None:
    alone = {
        prompt: generate(runner, [sequence], chunk=1000)[sequence.slot]
        for prompt, sequence in tenants(sampling).items()
    }
    for slots, chunk in (((2, 0, 1), 7), ((1, 2, 0), 1)):
        moved = tenants(sampling, slots)
        together = generate(runner, list(moved.values()), chunk)
        assert {p: together[sequence.slot] for p, sequence in moved.items()} == alone
    for prompt, tokens in alone.items():
        known = min(5, len(tokens) - 1)
        again = tenants(sampling)[prompt]
        replayed = admission(
            again.slot,
            PROMPTS[prompt] + tokens[:known],
            again.blocks.tolist(),
            num_prompt=len(PROMPTS[prompt]),
            max_total=again.max_total_tokens,
            seed=again.seed,
            sampling=sampling,
        )
        assert generate(runner, [replayed], chunk=5)[again.slot] == tokens[known:]


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_every_runner_chooses_the_same(
    tiny_model: LoadedModel, grammars: Grammars, kind: int
) -> None:
    outputs = [
        generate(make(tiny_model, grammars), list(tenants(KINDS[kind]).values()), chunk=9)
        for make in MAKERS.values()
    ]
    assert outputs[1] == outputs[0]
    assert outputs[2] == outputs[0]


def test_the_text_is_of_the_language_and_ends_only_where_it_is_complete(
    runner: Runner, tokenizer: Tokenizer
) -> None:
    for seed in range(8):
        sampling = constrained(regex("[a-c]{3,5}(x|yy)"), bias_token_ids=(END,), bias=(50.0,))
        sequences = [replace(s, seed=seed * 10 + p) for p, s in tenants(sampling).items()]
        for output in generate(runner, sequences, chunk=1000).values():
            assert output[-1] == END
            assert re.fullmatch("[a-c]{3,5}(x|yy)", text(tokenizer, output[:-1]))


def test_thoughts_are_ended_for_a_model_that_would_go_on(runner: Runner) -> None:
    for bias, place in ((-50.0, 4), (50.0, 0)):
        eager = {"bias_token_ids": (END, THOUGHT_END), "bias": (-50.0, bias)}
        sampling = constrained(BOUNDED_THOUGHTS, **eager)
        for output in generate(runner, list(tenants(sampling).values()), chunk=1000).values():
            assert output.index(THOUGHT_END) == place
            assert len(output) == NUM_OUTPUT
            assert 71 not in output


def test_allowed_tokens_alone_come_and_bad_words_never(runner: Runner) -> None:
    sampling = Sampling(
        temperature=1.0, allowed_token_ids=(40, 50, 60), bad_words=((40,), (50, 50), (60, 60, 60))
    )
    for output in generate(runner, list(tenants(sampling).values()), chunk=1000).values():
        assert len(output) == NUM_OUTPUT
        assert set(output) <= {50, 60}
        assert [50, 50] not in [output[i : i + 2] for i in range(len(output))]
        assert [60, 60, 60] not in [output[i : i + 3] for i in range(len(output))]


def test_min_tokens_holds_the_end_back_unless_nothing_else_is_left(
    runner: Runner, tokenizer: Tokenizer
) -> None:
    eager = {"bias_token_ids": (END,), "bias": (100.0,), "min_tokens": 6}
    for output in generate(
        runner, list(tenants(constrained(regex("a+"), **eager)).values()), chunk=1000
    ).values():
        assert len(output) == 7
    for output in generate(
        runner, list(tenants(constrained(regex("ab"), **eager)).values()), chunk=1000
    ).values():
        assert text(tokenizer, output) == "ab<|end|>"


@pytest.mark.parametrize(
    "sampling",
    [
        constrained("no grammar at all"),
        constrained(regex("(")),
        constrained(json_schema('{"$ref": "#"}')),  # compiles, and has no word
        constrained(regex("a+"), allowed_token_ids=(END,)),
        constrained(regex("[^\\x00-\\U0010FFFF]")),
        Sampling(allowed_token_ids=(7,), bad_words=((7,),)),
        Sampling(allowed_token_ids=(VOCAB_SIZE + 7,)),
    ],
)
def test_rules_that_cannot_be_met_end_their_own_sequence(
    runner: Runner, sampling: Sampling
) -> None:
    sound = tenants(Sampling(temperature=1.0))
    expected = generate(runner, list(sound.values()), chunk=1000)
    mixed = [sound[0], replace(sound[1], sampling=sampling), sound[2]]
    outputs = generate(runner, mixed, chunk=1000)
    assert outputs[0] == expected[0]
    assert outputs[2] == expected[2]
    assert len(outputs[1]) < NUM_OUTPUT


def test_an_unreadable_grammar_says_error(runner: Runner) -> None:
    runner.reset()
    broken = replace(tenants(Sampling())[1], sampling=constrained(regex("(")))
    result = run(runner, plan(1, admit=[broken], chunks=[(broken.slot, 0, 3)]))
    assert result.finish.tolist() == [FinishReason.ERROR]


def test_a_model_without_tokenizer_serves_what_needs_none(
    tiny_model: LoadedModel, tmp_path: Path
) -> None:
    missing = Grammars(tmp_path / "tokenizer.json", VOCAB_SIZE)
    runner = make_host_runner(tiny_model, grammars=missing)
    sound = tenants(Sampling())
    assert len(generate(runner, [sound[0]], chunk=1000)[0]) == NUM_OUTPUT
    broken = replace(sound[0], sampling=constrained(regex("a")))
    assert len(generate(runner, [broken], chunk=1000)[0]) == 1


def test_a_slot_forgets_who_had_it_before(runner: Runner) -> None:
    first = tenants(Sampling(allowed_token_ids=(40,)))[1]
    plain = replace(tenants(Sampling())[1], generation=1)
    expected = generate(runner, [plain], chunk=1000)[plain.slot]
    runner.reset()
    run(runner, plan(1, admit=[first], chunks=[(first.slot, 0, 3)]))
    result = run(runner, plan(2, retire=[first.slot], admit=[plain], chunks=[(first.slot, 0, 3)]))
    assert result.token_id.tolist() == expected[:1]


def test_plans_may_run_ahead_of_results(tiny_model: LoadedModel, grammars: Grammars) -> None:
    runner = make_device_runner(tiny_model, grammars=grammars, buckets=(4,))
    sequence = tenants(constrained(regex("[a-c]{20}")))[1]
    expected = generate(make_host_runner(tiny_model, grammars=grammars), [sequence], 1000)
    results: list[int] = []
    runner.launch(
        plan(1, admit=[sequence], chunks=[(sequence.slot, 0, 3)]),
        0,
        lambda result: results.extend(result.token_id.tolist()),
    )
    for step in range(2, NUM_OUTPUT + 1):
        runner.launch(
            plan(step, decode=[sequence.slot], graph_bucket=4),
            0,
            lambda result: results.extend(result.token_id.tolist()),
        )
    runner.reset()
    assert results == expected[sequence.slot]


def test_compiled_grammars_are_kept_but_not_without_end(tokenizer_path: Path) -> None:
    grammars = Grammars(tokenizer_path, VOCAB_SIZE)
    begin = partial(grammars.begin, output=[])
    for number in range(MAX_KEPT + 10):
        begin(regex(f"a{{{number + 1}}}")).result()
    assert grammars.num_kept == MAX_KEPT
    for number in range(30):
        begin(regex("b" * 60_000 + str(number))).result()
        assert grammars.num_kept <= MAX_KEPT
    assert grammars.num_kept < 20
    with pytest.raises(GrammarError):
        begin(regex("(")).result()


def test_whoever_shares_a_grammar_is_not_ended_by_what_others_made_of_it(
    tokenizer_path: Path,
) -> None:
    """Each alone needs a part of the states that the lexer may have; together they need more."""
    limits: GrammarLimits = {**GRAMMAR_LIMITS, "max_lexer_states": 500}
    grammars = Grammars(tokenizer_path, VOCAB_SIZE, limits=limits)
    constraints = Constraints(1, VOCAB_SIZE, grammars)
    grammar = regex("(a|b)*a(a|b){14}")
    dice = random.Random(5)
    slots = np.array([0])
    exhausted = grammars.begin(grammar, []).result().compiled
    for generation in range(12):
        sequence = admission(0, [5], [1], generation=generation, sampling=constrained(grammar))
        constraints.apply(plan(1, admit=[sequence]))
        for _ in range(40):
            constraints.refresh(slots)
            token = dice.choice([token for token in allowed(constraints, 0) if token != END])
            constraints.advance(column([0]), column([generation]), column([token]), column([0]))
    assert grammars.begin(grammar, []).result().compiled is not exhausted


def test_known_output_that_is_not_of_the_language_is_an_error(grammars: Grammars) -> None:
    with pytest.raises(GrammarError):
        grammars.begin(regex("a+"), [200, 201, 202]).result()


def test_a_mask_has_exactly_the_tokens_that_fit(grammars: Grammars, tokenizer: Tokenizer) -> None:
    constraints = Constraints(4, VOCAB_SIZE, grammars)
    constraints.apply(plan(1, admit=[admission(2, [5], [1], sampling=constrained(regex("a|b")))]))
    slots = np.array([2])
    assert constraints.refresh(slots).tolist() == [2]
    either = [token_id(tokenizer, "a"), token_id(tokenizer, "b")]
    assert allowed(constraints, 2) == either
    assert constraints.refresh(slots).tolist() == []
    constraints.advance(column([2]), column([0]), column(either[:1]), column([0]))
    assert constraints.refresh(slots).tolist() == [2]
    assert allowed(constraints, 2) == [END]


def token_id(tokenizer: Tokenizer, content: str) -> int:
    token = tokenizer.token_to_id(content)
    assert token is not None
    return token


def allowed(constraints: Constraints, slot: int) -> list[int]:
    bits = np.unpackbits(constraints.masks[slot].view(np.uint8), bitorder="little")
    tokens: list[int] = np.flatnonzero(bits).tolist()
    return tokens
