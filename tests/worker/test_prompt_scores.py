"""Logprobs of prompts' own tokens: the model's, however a prompt was cut into chunks."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from kernels.batch import AttentionBatch
from tests.worker.builders import MAX_MODEL_LEN, admission, plan
from tests.worker.runners import (
    BLOCK_SIZE,
    CPU,
    NUM_BLOCKS,
    MakeRunner,
    make_device_runner,
    make_host_runner,
    run,
)
from worker.executor import Runner
from worker.kv_cache import KVCache
from worker.loader import LoadedModel
from worker.plans import Admission, Sampling, Scores

PROMPT = [(11 * i) % 300 + 5 for i in range(80)]
"""Longer than a tile."""
OTHER = [(5 * i) % 200 + 9 for i in range(30)]
NUM_TOP = 3


@pytest.fixture(params=[make_host_runner, make_device_runner])
def runner(request: pytest.FixtureRequest, tiny_model: LoadedModel) -> Runner:
    """Each kind of runner."""
    make: MakeRunner = request.param
    return make(tiny_model, None)


def expected_logprobs(loaded: LoadedModel, tokens: Sequence[int]) -> torch.Tensor:
    """[tokens, vocabulary]: of what follows each token, from one pass over all of them."""
    count = len(tokens)
    num_blocks = -(-count // BLOCK_SIZE)
    batch = AttentionBatch(
        token_ids=torch.tensor(tokens),
        positions=torch.arange(count),
        cu_seqlens=torch.tensor([0, count], dtype=torch.int32),
        seq_lens=torch.tensor([count], dtype=torch.int32),
        block_table=torch.arange(1, num_blocks + 1, dtype=torch.int32)[None],
        num_decodes=0,
        sample_index=torch.arange(count),
    )
    kv = KVCache(loaded.config, NUM_BLOCKS, BLOCK_SIZE, loaded.dtype, CPU)
    return loaded.model.forward(batch, kv).log_softmax(dim=1)


def asking(
    slot: int,
    tokens: Sequence[int],
    num_top: int,
    *,
    score_from: int = 1,
    num_prompt: int | None = None,
) -> Admission:
    """A sequence that wants to know all of its prompt's logprobs, unless told otherwise."""
    first_block = 1 + slot * (MAX_MODEL_LEN // BLOCK_SIZE)
    asks = admission(
        slot,
        tokens,
        range(first_block, first_block + MAX_MODEL_LEN // BLOCK_SIZE),
        generation=7 + slot,
        num_prompt=num_prompt,
        sampling=Sampling(num_prompt_logprobs=num_top),
    )
    return replace(asks, score_from=score_from)


def by_position(scores: Sequence[Scores], slot: int) -> dict[int, tuple[float, int, list[float]]]:
    """Logprob, rank and alternatives of each prompt token told; none is told twice."""
    told: dict[int, tuple[float, int, list[float]]] = {}
    for part in scores:
        ends = np.cumsum(part.logprobs.num_top)
        row = 0
        for owner, generation, start, length in zip(
            part.slot.tolist(), part.generation.tolist(), part.start, part.length, strict=True
        ):
            for position in range(start, start + length):
                if owner == slot:
                    assert generation == 7 + slot
                    assert position not in told
                    values = part.logprobs
                    first = ends[row] - values.num_top[row]
                    top = values.top_logprob[first : ends[row]].tolist()
                    told[position] = (float(values.logprob[row]), int(values.rank[row]), top)
                row += 1
        assert row == len(part.logprobs.logprob)
    return told


@pytest.mark.parametrize("chunk", [1000, 33, 2])
def test_every_prompt_token_but_the_first_is_scored_once(
    runner: Runner, tiny_model: LoadedModel, chunk: int
) -> None:
    decoding = admission(3, OTHER, range(100, 112))
    first, second = asking(0, PROMPT, NUM_TOP), asking(1, OTHER, 0)
    run(runner, plan(1, admit=[decoding], chunks=[(3, 0, len(OTHER))]))
    scores = []
    for step, start in enumerate(range(0, len(PROMPT), chunk), start=2):
        admits = [first, second] if start == 0 else []
        chunks = [(0, start, min(chunk, len(PROMPT) - start))]
        if start == 0:
            chunks = [(1, 0, len(OTHER)), *chunks]
        result = run(runner, plan(step, admit=admits, chunks=chunks, decode=[3]))
        assert result.scores is not None
        scores.append(result.scores)
    for slot, tokens, num_top in ((0, PROMPT, NUM_TOP), (1, OTHER, 0)):
        told = by_position(scores, slot)
        assert sorted(told) == list(range(1, len(tokens)))
        expected = expected_logprobs(tiny_model, tokens)
        for position, (logprob, rank, top) in told.items():
            row = expected[position - 1]
            assert logprob == pytest.approx(float(row[tokens[position]]), abs=1e-4)
            assert rank == int((row > row[tokens[position]]).sum()) + 1
            assert top == pytest.approx(row.topk(num_top).values.tolist(), abs=1e-4)


def test_scoring_does_not_change_what_is_sampled(runner: Runner) -> None:
    asks = asking(0, PROMPT, NUM_TOP)
    scored = run(runner, plan(1, admit=[asks], chunks=[(0, 0, len(PROMPT))]))
    runner.reset()
    quiet = replace(asks, sampling=Sampling())
    result = run(runner, plan(1, admit=[quiet], chunks=[(0, 0, len(PROMPT))]))
    assert result.scores is None
    assert scored.token_id.tolist() == result.token_id.tolist()


def test_what_was_told_before_and_what_is_output_are_not_scored(runner: Runner) -> None:
    asks = asking(0, PROMPT, 0, score_from=50, num_prompt=60)
    result = run(runner, plan(1, admit=[asks], chunks=[(0, 0, 40)]))
    assert result.scores is None
    result = run(runner, plan(2, chunks=[(0, 40, 40)]))
    assert result.scores is not None
    assert sorted(by_position([result.scores], 0)) == list(range(50, 60))
    done = asking(1, PROMPT, 0, score_from=60, num_prompt=60)
    result = run(runner, plan(3, admit=[done], chunks=[(1, 0, 80)]))
    assert result.scores is None
