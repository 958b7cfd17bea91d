"""Shares of a model: ranks as threads, whose sums meet at a barrier, against one rank alone."""

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest
import safetensors.torch
import torch

from kernels.batch import AttentionBatch
from worker.checkpoint import Checkpoint
from worker.kv_cache import KVCache
from worker.loader import LoadedModel, LoadError, load_model, open_model
from worker.models.registry import checkpoint_tensors, parse_config
from worker.models.shard import Shard
from worker.models.weights import Part
from worker.parallel import ALONE, Group, side_by_side
from worker.place import Place

CPU = torch.device("cpu")
BLOCK_SIZE, NUM_BLOCKS = 8, 6
PROMPT = 19
PATIENCE_S = 60

T = TypeVar("T")


class ThreadRanks(Group):
    """One of several ranks that are threads of this process."""

    def __init__(self, place: Place, board: list[torch.Tensor], barrier: threading.Barrier) -> None:
        super().__init__(place)
        self._board = board
        self._barrier = barrier

    def _exchange(self, x: torch.Tensor) -> list[torch.Tensor]:
        self._board[self.rank] = x.clone()
        self._barrier.wait(PATIENCE_S)
        parts = list(self._board)
        self._barrier.wait(PATIENCE_S)
        return parts

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack(self._exchange(x)).sum(0)

    def join_columns(
        self, x: torch.Tensor, width: int, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        return side_by_side(self._exchange(x), width, out)


def on_ranks(world_size: int, work: Callable[[Group], T]) -> list[T]:
    """What `work` gives on each rank."""
    board, barrier = [torch.empty(0)] * world_size, threading.Barrier(world_size)

    def run(rank: int) -> T:
        try:
            return work(ThreadRanks(Place(rank, world_size), board, barrier))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(run, range(world_size)))


# --- models --------------------------------------------------------------------------------------

SMALL = {
    "vocab_size": 101,  # odd: padded on every number of ranks
    "hidden_size": 48,
    "intermediate_size": 75,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 10,
    "max_position_embeddings": 64,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "llama-biases": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": True,
        "mlp_bias": True,
    },
    "llama-tied": {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"]},
    "gemma2": {"architectures": ["Gemma2ForCausalLM"], "sliding_window": 9},
}


def write_model(directory: Path, raw: dict[str, Any]) -> Path:
    generator = torch.Generator().manual_seed(3)
    shapes = checkpoint_tensors(parse_config(raw))
    tensors = {
        name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()
    }
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(raw))
    safetensors.torch.save_file(tensors, directory / "model.safetensors")
    return directory


def forward(directory: Path, group: Group) -> torch.Tensor:
    """Logits of a prompt in two chunks and of a token decoded after it."""
    loaded = load_model(directory, dtype="float32", device=CPU, group=group)
    kv = KVCache(loaded.share, NUM_BLOCKS, BLOCK_SIZE, loaded.dtype, CPU)
    token_ids = torch.arange(PROMPT + 1) * 37 % loaded.config.vocab_size
    steps = [(0, 7), (7, PROMPT), (PROMPT, PROMPT + 1)]
    return torch.cat([_step(loaded, kv, token_ids, *span) for span in steps])


def _step(
    loaded: LoadedModel, kv: KVCache, token_ids: torch.Tensor, start: int, end: int
) -> torch.Tensor:
    batch = AttentionBatch(
        token_ids=token_ids[start:end],
        positions=torch.arange(start, end),
        cu_seqlens=torch.tensor([0, end - start], dtype=torch.int32),
        seq_lens=torch.tensor([end], dtype=torch.int32),
        block_table=torch.tensor([[4, 2, 5]], dtype=torch.int32),
        num_decodes=int(end - start == 1),
        sample_index=torch.arange(end - start),
    )
    return loaded.model.forward(batch, kv)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_ranks_compute_what_one_computes(tmp_path: Path, variant: str, world_size: int) -> None:
    directory = write_model(tmp_path / "model", SMALL | VARIANTS[variant])
    expected = forward(directory, ALONE)
    got = on_ranks(world_size, lambda group: forward(directory, group))
    for logits in got:
        assert logits.shape == (PROMPT + 1, 101)
        assert torch.equal(logits, got[0]), "ranks that differ would sample different tokens"
    torch.testing.assert_close(got[0], expected, atol=2e-5, rtol=1e-4)


def test_a_rank_reads_its_share_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = write_model(tmp_path / "model", SMALL | VARIANTS["llama-biases"])
    read: list[dict[str, tuple[int, ...]]] = [{}, {}]
    plain_read = Checkpoint.read

    def spy(
        checkpoint: Checkpoint, name: str, part: Part, dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        tensor = plain_read(checkpoint, name, part, dtype, device)
        read[rank][name] = tuple(tensor.shape)
        return tensor

    monkeypatch.setattr(Checkpoint, "read", spy)
    weight_bytes = []
    for rank in range(2):
        group = Group(Place(rank, 2))
        loaded = load_model(directory, dtype="float32", device=CPU, group=group)
        weight_bytes.append(loaded.weight_bytes)
    layer = "model.layers.1."
    # Three KV heads of ten: one for rank 0 and two for rank 1, with two query heads each.
    for name, shapes in {
        layer + "self_attn.q_proj.weight": [(20, 48), (40, 48)],
        layer + "self_attn.q_proj.bias": [(20,), (40,)],
        layer + "self_attn.k_proj.weight": [(10, 48), (20, 48)],
        layer + "self_attn.v_proj.bias": [(10,), (20,)],
        layer + "self_attn.o_proj.weight": [(48, 20), (48, 40)],
        layer + "mlp.gate_proj.weight": [(37, 48), (38, 48)],
        layer + "mlp.down_proj.weight": [(48, 37), (48, 38)],
        "model.embed_tokens.weight": [(51, 48), (50, 48)],
        "lm_head.weight": [(51, 48), (50, 48)],
        "model.norm.weight": [(48,), (48,)],
    }.items():
        assert [shapes_of[name] for shapes_of in read] == shapes, name
    whole = load_model(directory, dtype="float32", device=CPU).weight_bytes
    assert max(weight_bytes) < 0.65 * whole


def test_ranks_meet_when_they_have_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step's collectives wait for seconds: not for a rank whose disk is slower."""
    directory = write_model(tmp_path / "model", SMALL | VARIANTS["llama-tied"])
    events: list[str] = []
    plain_read = Checkpoint.read

    def read(*arguments: Any) -> torch.Tensor:
        events.append("a tensor")
        return plain_read(*arguments)

    class Noted(Group):
        def meet(self) -> None:
            events.append("all are here")

    monkeypatch.setattr(Checkpoint, "read", read)
    load_model(directory, dtype="float32", device=CPU, group=Noted(Place(1, 2)))
    assert events[-2:] == ["a tensor", "all are here"]
    assert events.count("all are here") == 1


def test_a_share_counts_the_kv_heads_that_it_holds(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "model", SMALL | VARIANTS["llama-tied"])
    groups = [Group(Place(rank, 2)) for rank in range(2)]
    shares = [open_model(directory, dtype="auto", device=CPU, group=g).share for g in groups]
    assert [share.num_kv_heads for share in shares] == [1, 2]
    per_block = [KVCache.bytes_per_block(share, BLOCK_SIZE, torch.float32) for share in shares]
    assert per_block == [2 * 2 * heads * BLOCK_SIZE * 10 * 4 for heads in (1, 2)]


def test_too_many_ranks_are_refused_with_what_would_do(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "model", SMALL | VARIANTS["qwen3"])
    for world_size in (4, 5, 7, 12):
        with pytest.raises(LoadError, match=f"--tensor-parallel-size is {world_size}; this model"):
            open_model(directory, dtype="auto", device=CPU, group=Group(Place(0, world_size)))


# --- shares --------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", range(1, 8))
@pytest.mark.parametrize("count", [1, 7, 8, 9, 1536])
def test_spans_cover_everything_once(count: int, world_size: int) -> None:
    spans = [Shard(rank, world_size).span(count) for rank in range(world_size)]
    assert _joined(spans) == list(range(count))
    sizes = [span.stop - span.start for span in spans]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "world_size"),
    [(9, 3, 2), (9, 3, 3), (9, 3, 9), (32, 8, 1), (32, 8, 16), (28, 4, 8), (15, 5, 4), (8, 1, 3)],
)
def test_every_query_head_is_somewhere_once_with_the_kv_head_it_reads(
    num_heads: int, num_kv_heads: int, world_size: int
) -> None:
    shares = [Shard(rank, world_size).heads(num_heads, num_kv_heads) for rank in range(world_size)]
    assert _joined([heads for heads, _ in shares]) == list(range(num_heads))
    for heads, kv_heads in shares:
        count = heads.stop - heads.start
        held = kv_heads.stop - kv_heads.start
        assert count > 0
        assert count % held == 0
        for index, head in enumerate(range(heads.start, heads.stop)):
            # The head that the kernel reads is the one that the whole model reads.
            read = kv_heads.start + index // (count // held)
            assert read == head // (num_heads // num_kv_heads)


@pytest.mark.parametrize("world_size", range(1, 8))
@pytest.mark.parametrize("size", [100, 101, 127, 49152])
def test_parts_of_the_vocabulary_have_one_size(size: int, world_size: int) -> None:
    parts = [Shard(rank, world_size).vocabulary(size) for rank in range(world_size)]
    assert _joined([rows for rows, _ in parts]) == list(range(size))
    (each,) = {each for _, each in parts}
    assert [rows.start for rows, _ in parts] == [rank * each for rank in range(world_size)]


def _joined(spans: Sequence[slice]) -> list[int]:
    return [index for span in spans for index in range(span.start, span.stop)]
