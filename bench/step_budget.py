"""What a step's token budget costs a CPU: prompt tokens per second, and the longest step.

    python -m bench.step_budget --model DIR --threads 1 --threads 2

A prompt of 2,048 tokens is computed whole in chunks of each budget. A step is as long as every
running sequence waits for its next token. Each figure is the best of a few rounds, and the budgets
alternate, so that other load on the machine meets all. Tokens per second of CPU time are those of
all threads together, and hardly know of other load.
"""

import time
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from worker.cores import size_thread_pools
from worker.primitive_caches import bound_primitive_caches

BLOCK_SIZE = 16
PROMPT_TOKENS = 2048
BUDGETS = (64, 128, 256, 512, 1024, 2048)
THREADS = [1, 2]


class Round(NamedTuple):
    """One way through the prompt."""

    took_s: float
    longest_step_s: float
    cpu_s: float

    def best(self, other: "Round") -> "Round":
        """The least of each."""
        return Round(*map(min, self, other))


class Prompt:
    """One prompt, computed again and again over the same blocks."""

    def __init__(self, model: Path) -> None:
        import torch

        from worker.kv_cache import KVCache
        from worker.loader import load_model

        cpu = torch.device("cpu")
        self._loaded = load_model(model, dtype="float32", device=cpu)
        num_blocks = PROMPT_TOKENS // BLOCK_SIZE
        self._kv = KVCache(self._loaded.config, num_blocks, BLOCK_SIZE, torch.float32, cpu)
        self._block_table = torch.arange(1, num_blocks + 1, dtype=torch.int32)[None]

    def chunks(self, budget: int) -> "Round":
        """Computes it in steps of that many tokens."""
        took, cpu_began = [], time.process_time()
        for start in range(0, PROMPT_TOKENS, budget):
            began = time.perf_counter()
            self._chunk(start, start + budget)
            took.append(time.perf_counter() - began)
        return Round(sum(took), max(took), time.process_time() - cpu_began)

    def _chunk(self, start: int, end: int) -> None:
        import torch

        from kernels.batch import AttentionBatch

        num_tokens = end - start
        batch = AttentionBatch(
            token_ids=torch.arange(start, end) % self._loaded.config.vocab_size,
            positions=torch.arange(start, end),
            cu_seqlens=torch.tensor([0, num_tokens], dtype=torch.int32),
            seq_lens=torch.tensor([end], dtype=torch.int32),
            block_table=self._block_table,
            num_decodes=0,
            sample_index=torch.tensor([num_tokens - 1]),
        )
        with torch.inference_mode():
            self._loaded.model.forward(batch, self._kv)


def main(
    model: Annotated[Path, typer.Option(help="A model directory.")],
    threads: Annotated[list[int], typer.Option(help="Compute threads.")] = THREADS,
    rounds: Annotated[int, typer.Option(help="Rounds; the best counts.")] = 3,
) -> None:
    """Compute a prompt in chunks of several sizes."""
    size_thread_pools(max(threads))
    bound_primitive_caches()
    from kernels.jit import set_threads

    prompt = Prompt(model)
    print(f"prompt of {PROMPT_TOKENS} tokens, float32, best of {rounds}")
    print(f"{'threads':>7}{'budget':>8}{'tokens/s':>10}{'per CPU s':>11}{'longest step':>14}")
    for count in threads:
        set_threads(count)
        prompt.chunks(BUDGETS[0])  # first calls compile
        best: dict[int, Round] = {}
        for _ in range(rounds):
            for budget in BUDGETS:
                found = prompt.chunks(budget)
                best[budget] = found.best(best.get(budget, found))
        for budget, least in best.items():
            print(
                f"{count:7}{budget:8}{PROMPT_TOKENS / least.took_s:10.0f}"
                f"{PROMPT_TOKENS / least.cpu_s:11.0f}{1e3 * least.longest_step_s:11.0f} ms"
            )


if __name__ == "__main__":
    typer.run(main)
