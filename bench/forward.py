"""The bare forward pass against transformers' with its cache: same weights, threads and lengths.

    python -m bench.forward --model DIR --threads 2

Prints, for decoding at several batch sizes and for one prefill chunk, milliseconds per step and
tokens per second of both, and their ratio. Each figure is the best of a few rounds, and the two
sides alternate, so that other load on the machine meets both.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from worker.cores import size_thread_pools
from worker.primitive_caches import bound_primitive_caches

BLOCK_SIZE = 16
BATCH_SIZES = (1, 8, 32)
PREFILL_TOKENS = 256


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


class Ours:
    """Quire's model over its paged cache; contexts hold noise, which costs what text costs."""

    def __init__(self, model: Path, context: int) -> None:
        import torch

        from worker.kv_cache import KVCache
        from worker.loader import load_model

        cpu = torch.device("cpu")
        self._loaded = load_model(model, dtype="float32", device=cpu)
        longest = max(context, PREFILL_TOKENS)
        self._blocks_each = -(-longest // BLOCK_SIZE)
        num_blocks = self._blocks_each * max(BATCH_SIZES)
        self._kv = KVCache(self._loaded.config, num_blocks, BLOCK_SIZE, torch.float32, cpu)
        for cache in (*self._kv.keys, *self._kv.values):
            cache.normal_()

    def step(self, num_rows: int, tokens_each: int, context: int) -> Callable[[], object]:
        """A step of rows that each compute their last `tokens_each` tokens."""
        import torch

        from kernels.batch import AttentionBatch

        num_tokens = num_rows * tokens_each
        blocks = torch.arange(1, num_rows * self._blocks_each + 1, dtype=torch.int32)
        batch = AttentionBatch(
            token_ids=torch.arange(num_tokens) % self._loaded.config.vocab_size,
            positions=torch.arange(context - tokens_each, context).repeat(num_rows),
            cu_seqlens=torch.arange(0, num_tokens + 1, tokens_each, dtype=torch.int32),
            seq_lens=torch.full((num_rows,), context, dtype=torch.int32),
            block_table=blocks.view(num_rows, -1),
            num_decodes=num_rows if tokens_each == 1 else 0,
            sample_index=torch.arange(tokens_each - 1, num_tokens, tokens_each),
        )
        return lambda: self._loaded.model.forward(batch, self._kv)


class Transformers:
    """transformers' model with its dynamic cache, cut back to the same context before each step."""

    def __init__(self, model: Path) -> None:
        from bench.float_model import float_model

        self._model = float_model(model)

    def step(self, num_rows: int, tokens_each: int, context: int) -> Callable[[], object]:
        """The same step as `Ours.step`."""
        import torch
        from transformers import DynamicCache

        config, num_past = self._model.config, context - tokens_each
        past = DynamicCache(config=config)
        known = torch.arange(num_rows * num_past).view(num_rows, -1) % config.vocab_size
        new = torch.arange(num_rows * tokens_each).view(num_rows, -1) % config.vocab_size

        def forward(ids: Any, cache: Any) -> None:
            with torch.inference_mode():
                self._model(ids, past_key_values=cache, logits_to_keep=1)

        def decode() -> None:
            forward(new, past)
            past.crop(-tokens_each)

        if num_past == 0:
            return lambda: forward(new, DynamicCache(config=config))
        forward(known, past)
        return decode


def main(
    model: Annotated[Path, typer.Option(help="A model directory.")],
    threads: Annotated[int, typer.Option(help="Compute threads.")] = 2,
    context: Annotated[int, typer.Option(help="Tokens per sequence when decoding.")] = 320,
    rounds: Annotated[int, typer.Option(help="Rounds; the best counts.")] = 8,
) -> None:
    """Compare the bare forward pass with transformers'."""
    size_thread_pools(threads)
    bound_primitive_caches()
    from kernels.jit import set_threads

    set_threads(threads)
    ours, theirs = Ours(model, context), Transformers(model)
    cases = [(f"decode, batch {rows}", rows, 1, context) for rows in BATCH_SIZES]
    cases.append((f"prefill {PREFILL_TOKENS}", 1, PREFILL_TOKENS, PREFILL_TOKENS))
    print(f"{threads} threads, context {context}, float32, best of {rounds}")
    print(f"{'':18}{'quire':>22}{'transformers':>22}{'ratio':>8}")
    for name, rows, tokens_each, length in cases:
        steps = [side.step(rows, tokens_each, length) for side in (ours, theirs)]
        best = [float("inf"), float("inf")]
        for _ in range(rounds + 1):
            best = [min(old, _seconds(step)) for old, step in zip(best, steps, strict=True)]
        figures = "".join(
            f"{1e3 * seconds:9.1f} ms {rows * tokens_each / seconds:7.0f}/s" for seconds in best
        )
        print(f"{name:18}{figures}{best[1] / best[0]:7.2f}x")


if __name__ == "__main__":
    typer.run(main)
