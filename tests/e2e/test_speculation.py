"""The default model repeats itself; drafts make that quicker, and change nothing else."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from quire import LLM, SamplingParams
from quire.outputs import RequestOutput

LIST = "1. Alexandria, Egypt\n2. Barcelona, Spain\n3. Copenhagen, Denmark\n4. Florence, Italy"
AGAIN = [{"role": "user", "content": f"Say this list again:\n\n{LIST}"}]

FEW = dict.fromkeys((28, 198, 253), 90.0)

PARAMS = {
    "greedy": SamplingParams(temperature=0, max_tokens=60),
    "goes on": SamplingParams(temperature=0, max_tokens=90, ignore_eos=True),
    # Drawn from few tokens, whatever the model's numbers: so they say again what they have said.
    "drawn": SamplingParams(
        temperature=1.0, seed=4, max_tokens=60, ignore_eos=True, logit_bias=FEW
    ),
    "top-p": SamplingParams(
        temperature=0.7, top_p=0.8, min_p=0.02, seed=7, max_tokens=60, n=2, logit_bias=FEW
    ),
    "logprobs": SamplingParams(temperature=0, max_tokens=40, logprobs=3),
    "stop string": SamplingParams(temperature=0, max_tokens=60, stop="Denmark"),
    "biased": SamplingParams(temperature=0, max_tokens=40, logit_bias={198: 2.0}, min_tokens=30),
    "limit": SamplingParams(temperature=0, max_tokens=17),
    "penalized": SamplingParams(temperature=0, max_tokens=30, repetition_penalty=1.1),
    "constrained": SamplingParams(
        temperature=0, max_tokens=30, structured_outputs={"regex": "(ab )+c"}
    ),
}


def serve(model_dir: Path, drafts: str) -> LLM:
    return LLM(str(model_dir), threads=1, max_model_len=512, speculative_ngram=drafts)


@pytest.fixture(scope="module")
def plain(model_dir: Path) -> dict[str, RequestOutput]:
    """Each answer, without drafts."""
    with serve(model_dir, "off") as llm:
        outputs = llm.chat([AGAIN] * len(PARAMS), list(PARAMS.values()), use_tqdm=False)
        assert llm.state()["draft_tokens"] == 0
    return dict(zip(PARAMS, outputs, strict=True))


@pytest.fixture(scope="module")
def drafting(model_dir: Path) -> Iterator[LLM]:
    with serve(model_dir, "auto") as llm:
        yield llm


def answer(llm: LLM, params: SamplingParams) -> RequestOutput:
    [output] = llm.chat(AGAIN, params, use_tqdm=False)
    return output


def check(found: RequestOutput, expected: RequestOutput) -> None:
    for one, other in zip(found.outputs, expected.outputs, strict=True):
        assert (one.token_ids, one.text) == (other.token_ids, other.text)
        assert (one.finish_reason, one.stop_reason) == (other.finish_reason, other.stop_reason)
        check_logprobs(one.logprobs, other.logprobs)


def check_logprobs(found: Any, expected: Any) -> None:
    assert (found is None) == (expected is None)
    for one, other in zip(found or (), expected or (), strict=True):
        assert list(one) == list(other)
        values = [entry.logprob for entry in other.values()]
        assert [entry.logprob for entry in one.values()] == pytest.approx(values, abs=1e-3)


def num_accepted(llm: LLM) -> int:
    return int(llm.state()["accepted_tokens"])


@pytest.mark.parametrize("name", PARAMS)
def test_an_answer_is_the_same_with_drafts(
    drafting: LLM, plain: dict[str, RequestOutput], name: str
) -> None:
    before = num_accepted(drafting)
    check(answer(drafting, PARAMS[name]), plain[name])
    accepted = num_accepted(drafting) - before
    assert (accepted == 0) == (name in ("penalized", "constrained"))


def test_so_are_all_of_them_at_once(drafting: LLM, plain: dict[str, RequestOutput]) -> None:
    outputs = drafting.chat([AGAIN] * len(PARAMS), list(PARAMS.values()), use_tqdm=False)
    for output, expected in zip(outputs, plain.values(), strict=True):
        check(output, expected)


@pytest.mark.slow
def test_preemption_amid_drafts_changes_nothing(
    model_dir: Path, plain: dict[str, RequestOutput]
) -> None:
    names = ["goes on", "drawn", "greedy", "goes on", "drawn", "goes on"]
    with LLM(str(model_dir), threads=1, max_model_len=160, num_blocks=24, block_size=8) as llm:
        outputs = llm.chat([AGAIN] * len(names), [PARAMS[name] for name in names], use_tqdm=False)
        state = llm.state()
    for output, name in zip(outputs, names, strict=True):
        check(output, plain[name])
    assert state["preemptions"] > 0
    assert state["accepted_tokens"] > 0


def test_metrics_count_what_was_drafted_and_accepted(drafting: LLM) -> None:
    answer(drafting, PARAMS["greedy"])
    [scheduler] = [p for p in drafting._stack.stack.record().processes if p.role == "scheduler"]
    values = {
        sample.name: sample.value
        for family in text_string_to_metric_families(httpx.get(str(scheduler.metrics)).text)
        for sample in family.samples
    }
    state = drafting.state()
    name = "quire:spec_decode_num"
    assert values[f"{name}_draft_tokens_total"] == state["draft_tokens"]
    assert values[f"{name}_accepted_tokens_total"] == state["accepted_tokens"]
    assert 0 < values[f"{name}_drafts_total"] <= state["draft_tokens"]
    assert 0 < state["accepted_tokens"] <= state["draft_tokens"]
