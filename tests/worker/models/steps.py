"""Single forward passes over rows of one token sequence, wherever the model is."""

from dataclasses import dataclass, field

import torch

from kernels.batch import AttentionBatch
from tests.worker.models.variants import Case
from worker.kv_cache import KVCache


@dataclass
class Steps:
    """Runs rows of one token sequence through a model; each name is a sequence with own blocks.

    Attributes:
        case: the model, the tokens and the device.
        block_size: tokens per block.
    """

    case: Case
    block_size: int = 8
    kv: KVCache = field(init=False)

    def __post_init__(self) -> None:
        loaded, each = self.case.loaded, -(-len(self.case.token_ids) // self.block_size)
        self.blocks_each = each
        self.kv = KVCache(
            loaded.config, 4 * each, self.block_size, loaded.backend.kv_dtype, self.case.device
        )
        for cache in (*self.kv.keys, *self.kv.values):
            cache[1:] = float("nan")  # what was never written must never be read

    def __call__(self, *rows: tuple[int, int, int], num_decodes: int = 0) -> torch.Tensor:
        """Each row is (sequence, first token, end); logits of all tokens, [num_tokens, vocab]."""
        counts = [end - start for _, start, end in rows]
        tables = [self.table(sequence) for sequence, _, _ in rows]
        batch = AttentionBatch(
            token_ids=self._there(torch.cat([self.case.token_ids[a:b] for _, a, b in rows])),
            positions=self._there(torch.cat([torch.arange(a, b) for _, a, b in rows])),
            cu_seqlens=self._there(torch.tensor([0, *counts]).cumsum(0)),
            seq_lens=self._there(torch.tensor([end for _, _, end in rows])),
            block_table=self._there(torch.tensor(tables)),
            num_decodes=num_decodes,
            sample_index=torch.arange(sum(counts)).to(self.case.device),
        )
        return self.case.loaded.model.forward(batch, self.kv).cpu()

    def beside_a_masked_row(self, at: int) -> AttentionBatch:
        """Sequence 0 decodes its token of this position, after a row that is masked."""
        return AttentionBatch(
            token_ids=torch.stack((torch.tensor(7), self.case.token_ids[at])),
            positions=torch.tensor([0, at]),
            cu_seqlens=torch.tensor([0, 1, 2], dtype=torch.int32),
            seq_lens=torch.tensor([1, at + 1], dtype=torch.int32),
            block_table=torch.tensor([[0] * self.blocks_each, self.table(0)], dtype=torch.int32),
            num_decodes=2,
            sample_index=torch.tensor([1]),
        )

    def chunk(self, start: int, end: int, *sampled: int) -> AttentionBatch:
        """These tokens of sequence 0, of which some are sampled, counted from the first."""
        return AttentionBatch(
            token_ids=self.case.token_ids[start:end],
            positions=torch.arange(start, end),
            cu_seqlens=torch.tensor([0, end - start], dtype=torch.int32),
            seq_lens=torch.tensor([end], dtype=torch.int32),
            block_table=torch.tensor([self.table(0)], dtype=torch.int32),
            num_decodes=0,
            sample_index=torch.tensor(sampled),
        )

    def _there(self, values: torch.Tensor) -> torch.Tensor:
        return values.int().to(self.case.device)

    def table(self, sequence: int) -> list[int]:
        """Blocks of a sequence, highest first, so that order in memory is not order in time."""
        first = 1 + sequence * self.blocks_each
        return list(range(first, first + self.blocks_each))[::-1]
