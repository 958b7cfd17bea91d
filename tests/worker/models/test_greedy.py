"""Greedy decoding equals transformers' token for token: whole, chunked, cached and batched."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
import torch

from kernels.batch import AttentionBatch
from tests.worker.models.variants import CPU, Case
from worker.kv_cache import KVCache

BLOCK_SIZE = 8
BLOCKS_EACH = 8
NUM_OUTPUTS = 24
CACHED = 16


@dataclass
class Sequence:
    """A prompt that grows; `table` names its blocks."""

    tokens: list[int]
    table: list[int]
    num_computed: int = 0


@dataclass
class Loop:
    """A scheduler of one line: every sequence computes what it lacks, `budget` tokens at a time."""

    case: Case
    budget: int = 1000
    kv: KVCache = field(init=False)

    def __post_init__(self) -> None:
        config = self.case.loaded.config
        self.kv = KVCache(config, 4 * BLOCKS_EACH, BLOCK_SIZE, torch.float32, CPU)
        for blocks in (*self.kv.keys, *self.kv.values):
            blocks[1:] = float("nan")

    def run(self, *sequences: Sequence, until: int) -> None:
        """Steps until each sequence has so many tokens."""
        while running := [s for s in sequences if len(s.tokens) < until]:
            self._step(running)

    def _step(self, running: Iterable[Sequence]) -> None:
        rows = sorted(running, key=lambda row: len(row.tokens) - row.num_computed)
        ends = [min(len(row.tokens), row.num_computed + self.budget) for row in rows]
        counts = [end - row.num_computed for row, end in zip(rows, ends, strict=True)]
        spans = [(row, row.num_computed, end) for row, end in zip(rows, ends, strict=True)]
        batch = AttentionBatch(
            token_ids=torch.tensor([token for row, a, b in spans for token in row.tokens[a:b]]),
            positions=torch.cat([torch.arange(a, b) for _, a, b in spans]),
            cu_seqlens=torch.tensor([0, *counts]).cumsum(0).to(torch.int32),
            seq_lens=torch.tensor(ends, dtype=torch.int32),
            block_table=torch.tensor([row.table for row in rows], dtype=torch.int32),
            num_decodes=counts.count(1),
            sample_index=torch.tensor(counts).cumsum(0) - 1,
        )
        logits = self.case.loaded.model.forward(batch, self.kv)
        for (row, _, end), sampled in zip(spans, logits.argmax(-1).tolist(), strict=True):
            row.num_computed = end
            if end == len(row.tokens):
                row.tokens.append(sampled)


def table(number: int) -> list[int]:
    """Blocks of a sequence's own, highest first."""
    return list(range(1 + number * BLOCKS_EACH, 1 + (number + 1) * BLOCKS_EACH))[::-1]


@pytest.fixture(scope="module")
def prompts(case: Case) -> list[list[int]]:
    """A long one, one that begins like it for two blocks, and a short one."""
    ids = case.token_ids.tolist()
    return [ids[:29], ids[:CACHED] + ids[30:37], ids[38:41]]


@pytest.fixture(scope="module")
def expected(case: Case, prompts: list[list[int]]) -> list[list[int]]:
    """The prompts with what transformers adds to them, up to a common length."""
    until = max(map(len, prompts)) + NUM_OUTPUTS

    def grown(prompt: list[int]) -> list[int]:
        tokens = list(prompt)
        while len(tokens) < until:
            with torch.inference_mode():
                tokens.append(int(case.theirs(torch.tensor([tokens])).logits[0, -1].argmax()))
        return tokens

    sequences = [grown(prompt) for prompt in prompts]
    # Outputs that settled on one token would equal each other whatever went wrong before.
    assert all(len(set(tokens[-NUM_OUTPUTS:])) > 3 for tokens in sequences)
    return sequences


@pytest.mark.parametrize("budget", [1000, 5])
def test_alone(
    case: Case, prompts: list[list[int]], expected: list[list[int]], budget: int
) -> None:
    sequence = Sequence(list(prompts[0]), table(0))
    Loop(case, budget).run(sequence, until=len(expected[0]))
    assert sequence.tokens == expected[0]


def test_from_cached_blocks(
    case: Case, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    loop, until = Loop(case), len(expected[0])
    first = Sequence(list(prompts[0]), table(0))
    loop.run(first, until=until)
    shared = CACHED // BLOCK_SIZE
    second = Sequence(list(prompts[1]), table(0)[:shared] + table(1)[shared:], num_computed=CACHED)
    loop.run(second, until=until)
    assert [first.tokens, second.tokens] == expected[:2]


@pytest.mark.parametrize("budget", [1000, 5])
def test_batched(
    case: Case, prompts: list[list[int]], expected: list[list[int]], budget: int
) -> None:
    sequences = [Sequence(list(prompt), table(n)) for n, prompt in enumerate(prompts)]
    loop, until = Loop(case, budget), len(expected[0])
    loop.run(sequences[0], until=len(prompts[0]) + 4)  # the others come while it decodes
    loop.run(*sequences, until=until)
    assert [sequence.tokens for sequence in sequences] == expected
