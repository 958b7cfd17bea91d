"""Vectors of a decoder's prompts: transformers' states, however prompts are cut and shared."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from tests.worker.builders import MAX_MODEL_LEN, VOCAB_SIZE, admission, plan
from tests.worker.runners import (
    BLOCK_SIZE,
    MakeRunner,
    make_device_runner,
    make_host_runner,
    make_padding_runner,
    run,
)
from worker.executor import Runner
from worker.loader import LoadedModel, LoadError, load_model
from worker.plans import Admission, FinishReason, PlanError, Pooling, StepResult
from worker.sentences import SentencePooling

PROMPTS = [
    [(7 * i + 3 * j) % 300 + 5 for j in range(length)]
    for i, length in enumerate((20, 3, MAX_MODEL_LEN))
]
EACH = -(-MAX_MODEL_LEN // BLOCK_SIZE)


@pytest.fixture(params=[make_host_runner, make_device_runner, make_padding_runner])
def make_runner(request: pytest.FixtureRequest) -> MakeRunner:
    """Each kind of runner."""
    made: MakeRunner = request.param
    return made


@pytest.fixture(scope="module")
def states(tiny_directory: Path) -> list[torch.Tensor]:
    """Of each prompt, after the last norm."""
    oracle: Any = AutoModel.from_pretrained(tiny_directory, dtype=torch.float32).eval()
    with torch.inference_mode():
        return [oracle(torch.tensor([prompt])).last_hidden_state[0] for prompt in PROMPTS]


def pooling_like(loaded: LoadedModel, how: SentencePooling) -> LoadedModel:
    return replace(loaded, pooling=how)


def wants_vector(slot: int, prompt: Sequence[int], **fields: Any) -> Admission:
    blocks = range(1 + slot * EACH, 1 + (slot + 1) * EACH)
    return admission(slot, prompt, blocks, max_total=len(prompt), **fields)


def embed(runner: Runner, chunk: int) -> list[torch.Tensor]:
    """All prompts together, in chunks of at most so many tokens, beside a sequence that decodes."""
    runner.reset()
    slots = range(1, 1 + len(PROMPTS))
    chatting = admission(0, [9, 8, 7], range(1, 1 + EACH))
    admitted = [wants_vector(slot, prompt) for slot, prompt in zip(slots, PROMPTS, strict=True)]
    vectors: dict[int, torch.Tensor] = {}
    done, num_tokens = 0, 0
    for step in range(1, 200):
        spans = [
            (slot, done, min(chunk, len(prompt) - done))
            for slot, prompt in zip(slots, PROMPTS, strict=True)
            if len(prompt) > done
        ]
        if not spans:
            break
        first = step == 1
        result = run(
            runner,
            plan(
                step,
                admit=[chatting, *admitted] if first else (),
                decode=[0] if step == 2 else None,
                chunks=[(0, 0, 3), *spans] if first else spans,
            ),
        )
        num_tokens += len(result.token_id)
        assert result.slot.tolist() == [0]  # nothing is sampled of a prompt that wants its vector
        vectors |= taken(result)
        done += chunk
    assert num_tokens == step - 1
    assert runner.num_live == 1
    return [vectors[slot] for slot in slots]


def taken(result: StepResult) -> dict[int, torch.Tensor]:
    if result.vectors is None:
        return {}
    assert (result.vectors.finish == FinishReason.STOP).all()
    values = torch.from_numpy(result.vectors.value.copy())
    return dict(zip(result.vectors.slot.tolist(), values, strict=True))


@pytest.mark.parametrize("chunk", [MAX_MODEL_LEN, 7, 2])
@pytest.mark.parametrize("normalizes", [True, False])
@pytest.mark.parametrize("pooling", [Pooling.LAST, Pooling.MEAN])
def test_chunks_and_batches_do_not_change_a_vector(
    make_runner: MakeRunner,
    tiny_model: LoadedModel,
    states: list[torch.Tensor],
    pooling: Pooling,
    normalizes: bool,
    chunk: int,
) -> None:
    runner = make_runner(pooling_like(tiny_model, SentencePooling(pooling, normalizes)), None)
    for vector, of_prompt in zip(embed(runner, chunk), states, strict=True):
        want = of_prompt[-1] if pooling is Pooling.LAST else of_prompt.mean(0)
        if normalizes:
            want = torch.nn.functional.normalize(want, dim=0)
        assert (vector - want).abs().max() < 1e-5


def test_a_slot_used_again_begins_its_mean_anew(
    make_runner: MakeRunner, tiny_model: LoadedModel, states: list[torch.Tensor]
) -> None:
    runner = make_runner(pooling_like(tiny_model, SentencePooling(Pooling.MEAN, False)), None)
    run(runner, plan(1, admit=[wants_vector(0, PROMPTS[2])], chunks=[(0, 0, 50)]))
    again = wants_vector(0, PROMPTS[0], generation=3)
    result = run(runner, plan(2, retire=[0], admit=[again], chunks=[(0, 0, 20)]))
    assert result.vectors is not None
    assert result.vectors.generation.tolist() == [3]
    assert (taken(result)[0] - states[0].mean(0)).abs().max() < 1e-5


def test_the_last_token_is_enough_where_the_rest_is_cached(
    make_runner: MakeRunner, tiny_model: LoadedModel, states: list[torch.Tensor]
) -> None:
    runner = make_runner(pooling_like(tiny_model, SentencePooling(Pooling.LAST, False)), None)
    first = run(runner, plan(1, admit=[wants_vector(0, PROMPTS[0])], chunks=[(0, 0, 20)]))
    shares = admission(1, PROMPTS[0], (1, 2, EACH + 1), max_total=20, num_computed=2 * BLOCK_SIZE)
    result = run(runner, plan(2, admit=[shares], chunks=[(1, 16, 4)]))
    assert (taken(result)[1] - taken(first)[0]).abs().max() < 1e-6
    assert (taken(result)[1] - states[0][-1]).abs().max() < 1e-5


def test_a_mean_without_its_beginning_contradicts_the_plan(
    make_runner: MakeRunner, tiny_model: LoadedModel
) -> None:
    runner = make_runner(pooling_like(tiny_model, SentencePooling(Pooling.MEAN)), None)
    late = wants_vector(0, PROMPTS[0], num_computed=8)
    with pytest.raises(PlanError, match="8 tokens of which were computed before"):
        run(runner, plan(1, admit=[late], chunks=[(0, 8, 12)]))


def test_a_token_that_is_none_ends_its_sequence_alone(
    make_runner: MakeRunner, tiny_model: LoadedModel
) -> None:
    runner = make_runner(tiny_model, None)
    wrong, right = wants_vector(0, [5, VOCAB_SIZE, 6]), wants_vector(1, [5, 4, 6])
    result = run(runner, plan(1, admit=[wrong, right], chunks=[(0, 0, 3), (1, 0, 3)]))
    assert result.vectors is not None
    assert result.vectors.finish.tolist() == [FinishReason.ERROR, FinishReason.STOP]
    assert np.isclose(np.linalg.norm(result.vectors.value[1]), 1)


def test_the_first_token_of_a_decoder_says_nothing(tiny_directory: Path) -> None:
    device = torch.device("cpu")
    with pytest.raises(LoadError, match="pooling is 'cls'"):
        load_model(tiny_directory, dtype="auto", device=device, pooling=Pooling.CLS)
    loaded = load_model(tiny_directory, dtype="auto", device=device, pooling=Pooling.MEAN)
    assert loaded.pooling == SentencePooling(Pooling.MEAN, normalizes=True)


def test_a_decoder_saved_without_its_head_embeds(
    tiny_directory: Path, tiny_model: LoadedModel, tmp_path: Path
) -> None:
    """As models that were trained to embed are published."""
    oracle: Any = AutoModel.from_pretrained(tiny_directory, dtype=torch.float32)
    oracle.save_pretrained(tmp_path)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert "embed_tokens.weight" in names
    assert not any(name.startswith("model.") for name in names)
    (tmp_path / "config.json").write_bytes((tiny_directory / "config.json").read_bytes())
    loaded = load_model(tmp_path, dtype="auto", device=torch.device("cpu"))
    with_head, without = (make_host_runner(model, None) for model in (tiny_model, loaded))
    for vector, same in zip(embed(with_head, 50), embed(without, 50), strict=True):
        assert torch.equal(vector, same)
