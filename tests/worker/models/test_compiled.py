"""Each family as OpenVINO compiles it, against transformers."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from protos.blocks import OPENVINO_BLOCK_SIZE
from tests.worker.models.steps import Steps
from tests.worker.models.test_families import assert_logits
from tests.worker.models.variants import CPU, NUM_TOKENS, Case
from worker.backends import Wishes, why_openvino_is_missing
from worker.kv_cache import KVCache
from worker.loader import LoadError, load_model

pytestmark = pytest.mark.skipif(
    why_openvino_is_missing() is not None, reason="OpenVINO does not compute here"
)

WITH_OPENVINO = Wishes("openvino", num_threads=1)


@pytest.fixture(scope="module")
def compiled(case: Case) -> Case:
    """The variant, compiled; skipped where that cannot be."""
    if case.loaded.config.attention_softcap is not None:
        with pytest.raises(LoadError, match=r"is openvino; the model caps its attention scores$"):
            load_model(case.directory, dtype="float32", device=CPU, wishes=WITH_OPENVINO)
        pytest.skip("torch computes it")
    loaded = load_model(case.directory, dtype="float32", device=CPU, wishes=WITH_OPENVINO)
    return replace(case, loaded=loaded)


def steps_of(compiled: Case) -> Steps:
    return Steps(compiled, OPENVINO_BLOCK_SIZE)


def test_a_prompt_in_chunks_equals_transformers(compiled: Case) -> None:
    steps = steps_of(compiled)
    for a, b in pairwise([0, 1, 6, 7, 23, NUM_TOKENS]):
        assert_logits(steps((0, a, b)), compiled.expected[a:b])


def test_token_by_token_equals_transformers(compiled: Case) -> None:
    steps = steps_of(compiled)
    for at in range(NUM_TOKENS):
        assert_logits(steps((0, at, at + 1), num_decodes=1), compiled.expected[at : at + 1])


def test_decodes_and_chunks_share_a_step(compiled: Case) -> None:
    steps = steps_of(compiled)
    steps((0, 0, 9), (1, 0, 30))
    got = steps((1, 30, 31), (0, 9, 10), (2, 0, 17), (3, 0, 1), num_decodes=2)
    expected = [compiled.expected[a:b] for a, b in ((30, 31), (9, 10), (0, 17), (0, 1))]
    assert_logits(got, expected)


def test_a_chunk_reads_blocks_that_the_same_step_fills(compiled: Case) -> None:
    """As samples of one request do: whole blocks, since no two rows ever write to one."""
    steps, filled = steps_of(compiled), OPENVINO_BLOCK_SIZE
    assert_logits(steps((0, 0, filled), (0, filled, NUM_TOKENS)), compiled.expected)


def test_a_masked_row_leaves_the_others_alone(compiled: Case) -> None:
    steps = steps_of(compiled)
    steps((0, 0, 8))
    batch = steps.beside_a_masked_row(8)
    model = compiled.loaded.model
    assert_logits(model.forward(batch, steps.kv), compiled.expected[8:9])
    nobody = replace(batch, sample_index=torch.empty(0, dtype=torch.int64))
    assert model.forward(nobody, steps.kv).shape == (0, 101)


def test_hidden_rows_and_their_logits(compiled: Case) -> None:
    steps, model = steps_of(compiled), compiled.loaded.model
    batch = steps.chunk(0, 9, 8)
    hidden = model.hidden(batch, steps.kv)
    assert_logits(model.logits(hidden[[5, 0]]), compiled.expected[[5, 0]])
    other = KVCache(compiled.loaded.config, 4, OPENVINO_BLOCK_SIZE, torch.float32, CPU)
    out = torch.empty(1, 101)
    assert model.forward(batch, other, out) is out
    assert_logits(out, compiled.expected[8:9])
