"""What runners compute: the same tokens, however a plan's work was cut up and launched."""

import math

import numpy as np
import pytest
import torch

from kernels.batch import AttentionBatch
from tests.worker.builders import MAX_MODEL_LEN, VOCAB_SIZE, admission, plan
from tests.worker.churn import churn
from tests.worker.runners import (
    BLOCK_SIZE,
    NUM_OUTPUT,
    NUM_SLOTS,
    PROMPTS,
    MakeRunner,
    generate,
    make_device_runner,
    make_host_runner,
    make_padding_runner,
    run,
    tenants,
)
from worker.executor import Model
from worker.kv_cache import KVCache
from worker.loader import LoadedModel
from worker.plans import FinishReason, Sampling, StepResult
from worker.sizes import Sizes
from worker.warm_up import warm_up


@pytest.fixture(params=[make_host_runner, make_device_runner, make_padding_runner])
def make_runner(request: pytest.FixtureRequest) -> MakeRunner:
    """Each kind of runner."""
    made: MakeRunner = request.param
    return made


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=1.0),
        Sampling(temperature=0.9, top_p=0.9, top_k=50, repetition_penalty=1.2),
    ],
)
def test_chunks_batches_slots_and_replay_do_not_change_the_tokens(
    make_runner: MakeRunner, tiny_model: LoadedModel, sampling: Sampling
) -> None:
    runner = make_runner(tiny_model, None)
    first = tenants(sampling)
    alone = {
        prompt: generate(runner, [sequence], chunk=1000)[sequence.slot]
        for prompt, sequence in first.items()
    }
    assert all(len(tokens) == NUM_OUTPUT for tokens in alone.values())
    assert len({tuple(tokens) for tokens in alone.values()}) == len(PROMPTS)
    for slots, chunk in (((0, 1, 2), 1000), ((2, 0, 1), 7), ((1, 2, 0), 1)):
        moved = tenants(sampling, slots)
        together = generate(runner, list(moved.values()), chunk)
        assert {p: together[sequence.slot] for p, sequence in moved.items()} == alone
    for prompt, tokens in alone.items():
        # As after a preemption: half the output is known and computed anew.
        again = tenants(sampling)[prompt]
        replayed = admission(
            again.slot,
            PROMPTS[prompt] + tokens[:6],
            again.blocks.tolist(),
            num_prompt=len(PROMPTS[prompt]),
            max_total=again.max_total_tokens,
            seed=again.seed,
            sampling=sampling,
        )
        assert generate(runner, [replayed], chunk=5)[again.slot] == tokens[6:]


def test_blocks_computed_by_one_sequence_serve_another(
    make_runner: MakeRunner, tiny_model: LoadedModel
) -> None:
    runner = make_runner(tiny_model, None)
    whole = tenants(Sampling())[2]
    expected = generate(runner, [whole], chunk=1000)[whole.slot]
    shared = admission(
        5,
        PROMPTS[2],
        [*whole.blocks[:4].tolist(), *range(100, 108)],
        num_computed=4 * BLOCK_SIZE,
        max_total=whole.max_total_tokens,
    )
    runner.reset()
    run(runner, plan(1, admit=[whole], chunks=[(whole.slot, 0, 32)]))
    run(runner, plan(2, retire=[whole.slot], admit=[shared], chunks=[(5, 32, 1)]))
    tokens = [run(runner, plan(3, decode=[5])).token_id.tolist()[0]]
    tokens += [run(runner, plan(step)).token_id.tolist()[0] for step in range(4, 8)]
    assert tokens == expected[1:6]


class Broken:
    """A model that makes one sampled row not a number, so many passes after it is told to."""

    def __init__(self, model: Model, row: int) -> None:
        self._model = model
        self._row = row
        self._passes_left = 0

    def break_pass(self, number: int) -> None:
        self._passes_left = number

    def forward(
        self, batch: AttentionBatch, kv: KVCache, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        logits = self._model.forward(batch, kv, out)
        self._passes_left -= 1
        if self._passes_left == 0:
            logits[self._row, 17] = math.nan
        return logits

    def hidden(self, batch: AttentionBatch, kv: KVCache) -> torch.Tensor:
        return self._model.hidden(batch, kv)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._model.logits(hidden)


def test_logits_that_are_not_finite_end_their_row_alone(
    make_runner: MakeRunner, tiny_model: LoadedModel
) -> None:
    sound = tenants(Sampling())
    expected = generate(make_runner(tiny_model, None), list(sound.values()), chunk=1000)
    model = Broken(tiny_model.model, row=1)
    broken = make_runner(tiny_model, model)
    model.break_pass(4)
    outputs = generate(broken, list(sound.values()), chunk=1000)
    assert outputs[0] == expected[0]
    assert outputs[2] == expected[2]
    assert outputs[1][:3] == expected[1][:3]
    assert len(outputs[1]) == 4


def test_a_plan_that_only_retires_computes_nothing(
    make_runner: MakeRunner, tiny_model: LoadedModel
) -> None:
    runner = make_runner(tiny_model, None)
    run(runner, plan(1, admit=[admission(0, [5, 6], [1])], chunks=[(0, 0, 1)]))
    result = run(runner, plan(2, retire=[0], decode=[]))
    assert len(result.slot) == 0
    assert runner.num_live == 0


def test_warming_up_leaves_no_trace(make_runner: MakeRunner, tiny_model: LoadedModel) -> None:
    fresh, warm = make_runner(tiny_model, None), make_runner(tiny_model, None)
    for num_slots in (1, NUM_SLOTS):
        for num_tokens in (8, 1000):
            warm_up(
                warm,
                Sizes(BLOCK_SIZE, num_slots, max_num_batched_tokens=64),
                max_model_len=MAX_MODEL_LEN,
                vocab_size=VOCAB_SIZE,
                num_prompt_tokens=num_tokens,
            )
    assert warm.num_live == 0
    sequences = list(tenants(Sampling(temperature=0.8)).values())
    assert generate(warm, sequences, chunk=9) == generate(fresh, sequences, chunk=9)


@pytest.mark.parametrize("buckets", [(), (2, 8)])
def test_a_device_runner_says_what_a_host_runner_says(
    tiny_model: LoadedModel, buckets: tuple[int, ...]
) -> None:
    """Sequences of every kind come and go; plans run ahead of results on the one, not the other."""
    host = make_host_runner(tiny_model)
    device = make_device_runner(tiny_model, buckets=buckets)
    for host_result, device_result in zip(churn(host), churn(device), strict=True):
        assert told(device_result) == told(host_result)


def told(result: StepResult) -> dict[str, object]:
    """What a result says, but for its timing; log-probabilities to five digits."""
    logprobs = result.logprobs
    return {
        "step_id": result.step_id,
        "slot": result.slot.tolist(),
        "generation": result.generation.tolist(),
        # After an error the token means nothing.
        "token_id": np.where(result.finish == FinishReason.ERROR, 0, result.token_id).tolist(),
        "finish": result.finish.tolist(),
        "logprobs": logprobs
        and {
            "row": logprobs.row.tolist(),
            "logprob": logprobs.logprob.round(5).tolist(),
            "rank": logprobs.rank.tolist(),
            "num_top": logprobs.num_top.tolist(),
            "top_token_id": logprobs.top_token_id.tolist(),
            "top_logprob": logprobs.top_logprob.round(5).tolist(),
        },
    }
