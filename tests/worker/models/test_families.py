"""Each family against transformers, in float32, however its tokens are spread over steps."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from kernels import ops
from tests.worker.models.steps import Steps
from tests.worker.models.variants import CPU, NUM_TOKENS, VARIANTS, Case
from worker.loader import load_model
from worker.models.registry import FAMILIES


def test_every_family_is_tried() -> None:
    tried = {
        type(AutoModelForCausalLM.from_config(config)).__name__ for config in VARIANTS.values()
    }
    assert tried == set(FAMILIES)


def assert_logits(got: torch.Tensor, expected: Sequence[torch.Tensor] | torch.Tensor) -> None:
    wanted = expected if isinstance(expected, torch.Tensor) else torch.cat(list(expected))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("block_size", [1, 8, 64])
def test_a_whole_prompt_equals_transformers(case: Case, block_size: int) -> None:
    assert_logits(Steps(case, block_size)((0, 0, NUM_TOKENS)), case.expected)


def test_a_prompt_in_chunks_equals_transformers(case: Case) -> None:
    steps = Steps(case)
    bounds = [0, 1, 6, 7, 23, NUM_TOKENS]
    parts = [steps((0, a, b)) for a, b in pairwise(bounds)]
    assert_logits(torch.cat(parts), case.expected)


def test_token_by_token_equals_transformers(case: Case) -> None:
    steps = Steps(case)
    parts = [steps((0, at, at + 1), num_decodes=1) for at in range(NUM_TOKENS)]
    assert_logits(torch.cat(parts), case.expected)


def test_decodes_and_chunks_share_a_step(case: Case) -> None:
    steps = Steps(case)
    steps((0, 0, 9), (1, 0, 30))
    got = steps((1, 30, 31), (0, 9, 10), (2, 0, 17), (3, 0, 1), num_decodes=2)
    expected = [case.expected[a:b] for a, b in ((30, 31), (9, 10), (0, 17), (0, 1))]
    assert_logits(got, expected)


def test_a_chunk_reads_blocks_that_the_same_step_writes(case: Case) -> None:
    steps = Steps(case)
    assert_logits(steps((0, 0, 12), (0, 12, 20)), case.expected[:20])


def test_compiled_ops_and_plain_torch_agree(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "select", lambda device, dtype: ops.REFERENCE)
    plain = load_model(case.directory, dtype="float32", device=CPU)
    steps = Steps(replace(case, loaded=plain))
    assert_logits(steps((0, 0, 20)), case.expected[:20])
    assert_logits(
        steps((0, 20, 21), (1, 0, 9), num_decodes=1), (case.expected[20:21], case.expected[:9])
    )


def test_a_masked_row_leaves_the_others_alone(case: Case) -> None:
    steps = Steps(case)
    steps((0, 0, 8))
    batch = steps.beside_a_masked_row(8)
    assert_logits(case.loaded.model.forward(batch, steps.kv), case.expected[8:9])


def test_only_the_wanted_rows_get_logits(case: Case) -> None:
    steps = Steps(case)
    steps((0, 0, 3))
    batch = steps.chunk(3, 9, 5, 0)
    assert_logits(case.loaded.model.forward(batch, steps.kv), case.expected[[8, 3]])
    nobody = replace(batch, sample_index=torch.empty(0, dtype=torch.int64))
    assert case.loaded.model.forward(nobody, steps.kv).shape == (0, 101)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_as_near_as_transformers_half_precision(case: Case, dtype: str) -> None:
    loaded = load_model(case.directory, dtype=dtype, device=CPU)
    steps = Steps(replace(case, loaded=loaded))
    theirs = AutoModelForCausalLM.from_pretrained(
        case.directory, dtype=loaded.dtype, attn_implementation="eager"
    )
    with torch.inference_mode():
        their_logits = theirs(case.token_ids[None]).logits[0].float()
    error = (steps((0, 0, NUM_TOKENS)) - case.expected).norm()
    assert error < 1.5 * (their_logits - case.expected).norm()


def test_a_sharded_checkpoint_is_the_same_model(case: Case, tmp_path: Path) -> None:
    case.theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    sharded = load_model(tmp_path, dtype="auto", device=CPU)
    steps = Steps(replace(case, loaded=sharded))
    assert_logits(steps((0, 0, NUM_TOKENS)), case.expected)
