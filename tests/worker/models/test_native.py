"""Each family as the CPU's own kernels compute it: against transformers, and bit by bit itself."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import MistralConfig

from kernels.native.build import usable
from protos.blocks import BLOCK_SIZE
from tests.worker.models.steps import Steps
from tests.worker.models.test_families import assert_logits
from tests.worker.models.variants import CPU, NUM_TOKENS, SMALL, Case, build
from worker.backends import NativeBackend, Wishes
from worker.kv_cache import KVCache
from worker.loader import load_model
from worker.native import NativeDecoder, fastest_threads

BEST, *OTHERS = (instructions.name for instructions in usable())
ISAS = [BEST, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]


@pytest.fixture(scope="module", params=ISAS)
def compiled(case: Case, request: pytest.FixtureRequest) -> Case:
    """The variant, on two threads."""
    wishes = Wishes("native", num_threads=2, cpu_isa=request.param)
    loaded = load_model(case.directory, dtype="float32", device=CPU, wishes=wishes)
    return replace(case, loaded=loaded)


def steps_of(compiled: Case) -> Steps:
    return Steps(compiled, BLOCK_SIZE)


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
    steps, filled = steps_of(compiled), BLOCK_SIZE
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
    other = KVCache(compiled.loaded.config, 4, BLOCK_SIZE, torch.float32, CPU)
    out = torch.empty(1, 101)
    assert model.forward(batch, other, out) is out
    assert_logits(out, compiled.expected[8:9])


def test_nothing_depends_on_how_work_is_cut_up(compiled: Case) -> None:
    """Not the last bit: not on chunks, on neighbours or on threads."""
    steps = steps_of(compiled)
    whole = steps((0, 0, NUM_TOKENS))
    pieces = torch.cat([steps((1, a, b)) for a, b in pairwise([0, 1, 6, 7, 23, NUM_TOKENS])])
    assert torch.equal(pieces, whole)
    one_by_one = [steps((2, at, at + 1), num_decodes=1) for at in range(NUM_TOKENS)]
    assert torch.equal(torch.cat(one_by_one), whole)
    steps = steps_of(compiled)
    steps((0, 0, 9), (1, 0, 30))
    together = steps((1, 30, 31), (0, 9, 10), (2, 0, 17), (3, 0, 1), num_decodes=2)
    assert torch.equal(together, torch.cat((whole[30:31], whole[9:10], whole[:17], whole[:1])))
    backend = compiled.loaded.backend
    assert isinstance(backend, NativeBackend)
    wishes = Wishes("native", num_threads=1, cpu_isa=backend.instructions.name)
    one_thread = load_model(compiled.directory, dtype="float32", device=CPU, wishes=wishes)
    assert torch.equal(steps_of(replace(compiled, loaded=one_thread))((0, 0, NUM_TOKENS)), whole)


def test_layers_share_their_angles(compiled: Case) -> None:
    """Of long contexts they take as much memory as some layers' weights."""
    config, model = compiled.loaded.config, compiled.loaded.model
    assert isinstance(model, NativeDecoder)
    tables = {layer.rope.cosines for layer in model._described.decoder.layers[: config.num_layers]}
    assert len(tables) == len({kind.rope for kind in config.layers})


@pytest.mark.parametrize("window", [None, 300])
def test_long_contexts(tmp_path: Path, window: int | None) -> None:
    """Several stretches, shared out among threads when there are few rows."""
    length = 900
    config = MistralConfig(**SMALL | {"max_position_embeddings": length, "sliding_window": window})
    case = build(config, tmp_path, scale=0.3)
    token_ids = torch.randint(0, 101, (length,), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = case.theirs(token_ids[None]).logits[0]
    got = []
    for threads, cuts in ((2, [0, 250, 899, 900]), (1, [0, 513, 700, 701, 900])):
        wishes = Wishes("native", num_threads=threads)
        loaded = load_model(tmp_path, dtype="float32", device=CPU, wishes=wishes)
        steps = Steps(replace(case, loaded=loaded, token_ids=token_ids), BLOCK_SIZE)
        got.append(torch.cat([steps((0, a, b)) for a, b in pairwise(cuts)]))
        torch.testing.assert_close(got[-1], expected, atol=2e-4, rtol=1e-3)
    assert torch.equal(*got)


def test_the_fastest_number_of_threads_is_found(compiled: Case) -> None:
    config, model = compiled.loaded.config, compiled.loaded.model
    assert isinstance(model, NativeDecoder)
    kv = KVCache(config, 0, BLOCK_SIZE, torch.float32, CPU)
    seconds = fastest_threads(model, kv, 2, seconds_each=0.01)
    assert list(seconds) == [1, 2]
    assert all(took > 0 for took in seconds.values())
    model.use_threads(1)
    assert_logits(steps_of(compiled)((0, 0, NUM_TOKENS)), compiled.expected)
    model.use_threads(2)
