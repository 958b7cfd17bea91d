"""Matrices in codes: answers and logprobs are the same to the last bit, alone or in a crowd,
computed at once or in chunks, cached or fresh, preempted or not."""

from dataclasses import replace
from pathlib import Path

import pytest

from quire import LLM, RequestOutput, SamplingParams
from tests.e2e.exactness import (
    MAX_MODEL_LEN,
    SMALL_POOL_TOKENS,
    Setting,
    neighbours,
)
from tests.e2e.idle import idle_state
from tests.e2e.reference import NUM_OUTPUT_TOKENS, Prompt, Reference

ALONE = Setting(False, 8192, 16, 1, 1, False)
CROWDED = Setting(True, 64, 16, 32, 2, True)
GREEDY = SamplingParams(temperature=0, max_tokens=NUM_OUTPUT_TOKENS, logprobs=2)
SEEDED = SamplingParams(temperature=1, seed=11, max_tokens=NUM_OUTPUT_TOKENS, logprobs=2)
FILLING = SamplingParams(temperature=0, max_tokens=1000, ignore_eos=True)
"""With drafts the first of them may be done with less before the second has begun."""


def answers(
    model: Path, prompts: list[Prompt], setting: Setting, quantization: str
) -> list[RequestOutput]:
    """Twice each, once greedy and once drawn."""
    others = neighbours(setting)
    tokens = SMALL_POOL_TOKENS if setting.small_pool else 16384
    with LLM(
        str(model),
        threads=1,
        quantization=quantization,
        max_model_len=MAX_MODEL_LEN,
        enable_prefix_caching=setting.prefix_caching,
        max_num_batched_tokens=setting.token_budget,
        max_num_seqs=setting.concurrency,
        replicas=setting.replicas,
        num_blocks=tokens // setting.block_size,
    ) as llm:
        token_ids = [prompt.token_ids for prompt in prompts]
        params = [*[GREEDY] * len(prompts), *[SEEDED] * len(prompts), *[FILLING] * len(others)]
        outputs = llm.generate([*token_ids, *token_ids, *others], params, use_tqdm=False)
        if setting.preempts:
            assert idle_state(llm.state)["preemptions"] > 0, "the pool was meant to be too small"
    return outputs[: 2 * len(prompts)]


def check(model: Path, prompts: list[Prompt], quantization: str, crowd: Setting = CROWDED) -> None:
    alone, crowded = (answers(model, prompts, s, quantization) for s in (ALONE, crowd))
    for one, other in zip(alone, crowded, strict=True):
        assert one.outputs[0].token_ids == other.outputs[0].token_ids
        assert one.outputs[0].logprobs == other.outputs[0].logprobs


def test_as_shipped(model_dir: Path, prompts: list[Prompt]) -> None:
    check(model_dir, prompts[::4], "auto", replace(CROWDED, replicas=1))


@pytest.mark.slow
def test_more_of_it(model_dir: Path, prompts: list[Prompt]) -> None:
    check(model_dir, prompts, "auto")


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_coded_at_load(
    small_reference: Reference, small_prompts: list[Prompt], quantization: str
) -> None:
    check(small_reference.model_dir, small_prompts, quantization)
