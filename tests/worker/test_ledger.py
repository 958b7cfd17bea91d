"""Blocks follow from bytes, and too few are refused with both figures."""

import dataclasses
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kernels.linear import can_pack
from tests.worker.builders import MAX_MODEL_LEN, admission
from worker import ledger
from worker.kv_cache import KVCache
from worker.ledger import (
    Claims,
    KVNeed,
    KVRequest,
    Ledger,
    MemoryShortError,
    check_weights,
    settle,
)
from worker.loader import LoadedModel, open_model
from worker.models.decoder import Decoder
from worker.parallel import Group
from worker.place import Place
from worker.plans import Sampling
from worker.sampler import Sampler
from worker.sizes import Sizes
from worker.step_state import StepState

BLOCK_SIZE = 16
BLOCKS_EACH = MAX_MODEL_LEN // BLOCK_SIZE
CPU = torch.device("cpu")


def settled(
    loaded: LoadedModel, *, blocks: int | None = None, memory: int | None = None, slots: int = 10
) -> Ledger:
    return settle(
        loaded,
        KVRequest(blocks, memory),
        Sizes(BLOCK_SIZE, slots, 256),
        device=CPU,
    )


def block_bytes(loaded: LoadedModel) -> int:
    return KVCache.bytes_per_block(loaded.config, BLOCK_SIZE, loaded.dtype)


def test_by_default_every_slot_has_room(tiny_model: LoadedModel) -> None:
    found = settled(tiny_model)
    assert found.num_blocks == 10 * BLOCKS_EACH
    assert found.kv_bytes == (found.num_blocks + 1) * block_bytes(tiny_model)
    assert found.weight_bytes == tiny_model.weight_bytes
    assert found.workspace_bytes > 0


def test_a_slot_more_costs_its_tables_and_its_logits(tiny_model: LoadedModel) -> None:
    vocab_size = tiny_model.config.vocab_size
    sampler = Sampler(max_num_seqs=1, vocab_size=vocab_size)
    state = StepState(
        max_num_seqs=1,
        max_model_len=MAX_MODEL_LEN,
        num_blocks=1,
        block_size=BLOCK_SIZE,
        vocab_size=vocab_size,
    )
    sampler.admit(admission(0, [1], [1], sampling=Sampling(presence_penalty=1.0)))
    assert sampler._tables is not None
    tables = (
        *(sampler._tables.in_prompt, sampler._tables.output_count),
        *(state._token_table, state._block_table),
    )
    two_rows_of_logits = 2 * 4 * vocab_size
    more = settled(tiny_model, slots=11).workspace_bytes - settled(tiny_model).workspace_bytes
    assert more == sum(table.nbytes for table in tables) + two_rows_of_logits


def test_the_default_takes_a_quarter_of_what_is_free(
    tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 4 * block_bytes(tiny_model) * (2 * BLOCKS_EACH + 1)
    monkeypatch.setattr(ledger, "free_bytes", lambda device: free)
    assert settled(tiny_model).num_blocks == 2 * BLOCKS_EACH


def test_pages_of_weights_are_not_free(
    tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a file count as free for the system, which would have to read them again."""
    free = 4 * block_bytes(tiny_model) * (2 * BLOCKS_EACH + 1)
    mapped = tiny_model.weight_bytes
    monkeypatch.setattr(ledger, "free_bytes", lambda device: free + mapped)
    found = settled(replace(tiny_model, mapped_bytes=mapped))
    assert (found.free_bytes, found.num_blocks) == (free, 2 * BLOCKS_EACH)
    assert found.lines()[0].endswith(" mapped from a file, which workers share")
    assert settled(tiny_model).lines()[0] == found.lines()[0].partition(" KiB")[0] + " KiB"


def test_bytes_and_blocks_can_be_asked_for(tiny_model: LoadedModel) -> None:
    assert settled(tiny_model, blocks=7).num_blocks == 7
    size = block_bytes(tiny_model)
    assert settled(tiny_model, memory=9 * size).num_blocks == 8
    assert settled(tiny_model, memory=10 * size - 1).num_blocks == 8
    assert settled(tiny_model, blocks=7, memory=100 * size).num_blocks == 7


def test_one_sequence_must_fit(tiny_model: LoadedModel) -> None:
    assert settled(tiny_model, blocks=BLOCKS_EACH).num_blocks == BLOCKS_EACH
    with pytest.raises(MemoryShortError, match="--num-blocks gives"):
        settled(tiny_model, blocks=BLOCKS_EACH - 1)
    with pytest.raises(
        MemoryShortError,
        match=r"max_model_len 96 needs 56\.00 KiB of KV memory; --kv-cache-memory gives 24\.",
    ):
        settled(tiny_model, memory=(BLOCKS_EACH // 2) * block_bytes(tiny_model))


def test_what_was_asked_for_is_judged_without_the_weights(
    tiny_directory: Path,
) -> None:
    opened = open_model(tiny_directory, dtype="float32", device=CPU)
    need = KVNeed.of(opened, BLOCK_SIZE)
    need.check(KVRequest(None, None))
    need.check(KVRequest(BLOCKS_EACH, None))
    need.check(KVRequest(None, (BLOCKS_EACH + 1) * need.block_bytes))
    with pytest.raises(MemoryShortError, match=r"--num-blocks gives .*-len 80$"):
        need.check(KVRequest(BLOCKS_EACH - 1, None))
    with pytest.raises(MemoryShortError, match=r"gives 24\.00 KiB, enough for --max-model-len 32$"):
        need.check(KVRequest(None, 3 * need.block_bytes))
    with pytest.raises(MemoryShortError, match=r"gives 8\.00 KiB, too little$"):
        need.check(KVRequest(None, need.block_bytes))


def packed_bytes(loaded: LoadedModel) -> int:
    """What a tied head takes that is laid out otherwise than the embedding."""
    assert isinstance(loaded.model, Decoder)
    weight = loaded.model.embedding.weight
    assert isinstance(weight, torch.Tensor)
    return weight.numel() * weight.itemsize * can_pack(weight)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_weights_take_is_known_before_they_are_read(tiny_directory: Path, dtype: str) -> None:
    opened = open_model(tiny_directory, dtype=dtype, device=CPU)
    loaded = opened.load()
    assert opened.weight_bytes == loaded.weight_bytes - packed_bytes(loaded)
    shared = [
        open_model(tiny_directory, dtype=dtype, device=CPU, group=Group(Place(rank, 2)))
        for rank in range(2)
    ]
    for share in shared:
        loaded = share.load()
        assert share.weight_bytes == loaded.weight_bytes - packed_bytes(loaded)
        assert share.weight_bytes < opened.weight_bytes


def test_weights_that_do_not_fit_are_not_read(
    tiny_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_model(tiny_directory, dtype="bfloat16", device=CPU)
    monkeypatch.setattr(ledger, "free_bytes", lambda device: opened.weight_bytes)
    check_weights(opened)
    monkeypatch.setattr(ledger, "free_bytes", lambda device: opened.weight_bytes - 1)
    figure = rf"{opened.weight_bytes / 1024:.2f} KiB"
    expected = rf"^the weights need {figure} as bfloat16; \d+\.\d\d KiB of memory are free on cpu$"
    with pytest.raises(MemoryShortError, match=expected):
        check_weights(opened)


def test_the_length_that_is_said_to_fit_fits(tiny_model: LoadedModel) -> None:
    size = block_bytes(tiny_model)
    shorter = dataclasses.replace(tiny_model, max_model_len=32)
    assert settled(shorter, memory=3 * size).num_blocks == 2
    with pytest.raises(MemoryShortError):
        settled(dataclasses.replace(tiny_model, max_model_len=33), memory=3 * size)


def test_more_than_the_machine_has_is_refused(tiny_model: LoadedModel) -> None:
    with pytest.raises(MemoryShortError, match=r"KV memory is .* are free"):
        settled(tiny_model, memory=1 << 60)


def test_on_a_device_kv_leaves_room_for_steps_and_graphs(
    tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, free_blocks = block_bytes(tiny_model), 4 * BLOCKS_EACH
    monkeypatch.setattr(ledger, "free_bytes", lambda device: free_blocks * size)

    def blocks(asked: int | None, claims: Claims) -> int:
        request, sizes = KVRequest(asked, None), Sizes(BLOCK_SIZE, 10, 256)
        device = torch.device("cuda")
        return settle(tiny_model, request, sizes, device=device, claims=claims).num_blocks

    claims = Claims(workspace_bytes=3 * size, graph_bytes=2 * size, spared_bytes=4 * size)
    assert blocks(None, claims) == free_blocks - 3 - 2 - 4 - 1
    assert blocks(free_blocks - 3 - 2 - 1, claims) == free_blocks - 6  # what was spared may be had
    with pytest.raises(MemoryShortError, match=r"KV memory is .* free beside steps and graphs$"):
        blocks(free_blocks - 3 - 2, claims)


def test_the_ledger_reads_as_figures(tiny_model: LoadedModel) -> None:
    text = "\n".join(settled(tiny_model, blocks=12).lines())
    assert "12 blocks of 16 tokens = 192 tokens, 2.0 sequences of 96" in text
    for entry in ("weights", "KV cache", "workspace", "slack"):
        assert entry in text
    assert text.endswith("in use; other workers of this machine take theirs from it, too")


def test_a_containers_limit_counts_without_the_pages_of_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "_CGROUP", tmp_path)
    for name, content in (
        ("memory.max", "9000000\n"),
        ("memory.current", "8000000\n"),
        ("memory.stat", "anon 1\ninactive_file 300\nactive_file 20\nfile 9999\n"),
    ):
        (tmp_path / name).write_text(content)
    assert ledger.free_bytes(CPU) == 1_000_320
    (tmp_path / "memory.max").write_text("max\n")
    assert ledger.free_bytes(CPU) > 1 << 20


def test_this_machine_has_free_memory() -> None:
    assert ledger.free_bytes(CPU) > 1 << 20
