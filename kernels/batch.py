"""One step's rows, flattened: what the forward pass and the sampler read.

A row is one sequence's part of the step. Rows are concatenated along the token axis without
padding; decode rows (one token each) come first, prefill chunks after them:

    token axis   | d0 | d1 | d2 | c0 c0 c0 c0 | c1 c1 |
    cu_seqlens   0    1    2    3             7       9
"""

from dataclasses import dataclass, field
from functools import cached_property

import torch


@dataclass(frozen=True)
class AttentionBatch:
    """The tensors of one flattened step; all on the model's device.

    Row r owns tokens ``cu_seqlens[r]:cu_seqlens[r + 1]``. Its context is ``seq_lens[r]`` tokens
    long, this step's tokens included, so its first token has position
    ``seq_lens[r] - (cu_seqlens[r + 1] - cu_seqlens[r])``. The KV of position p lives in block
    ``block_table[r, p // block_size]`` at offset ``p % block_size``.

    A masked row (a slot that ended on the device) has a block_table of zeros, seq_len 1 and
    position 0: it writes to the null block 0 and reads from there.

    Attributes:
        token_ids: [num_tokens] int64.
        positions: [num_tokens] int64.
        cu_seqlens: [num_rows + 1] int32, starts at 0, ends at num_tokens.
        seq_lens: [num_rows] int32, each at least 1.
        block_table: [num_rows, max_blocks] int32, contiguous; only as wide as the step needs.
        num_decodes: the first so many rows have exactly one token each.
        sample_index: [num_sampled] int64, the token rows whose logits are wanted, in any order.
        host_cu_seqlens: cu_seqlens as a tuple, where the caller has it: spares a copy from the
            device. Only the chunk part is read.
        host_seq_lens: seq_lens as a tuple, likewise.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    cu_seqlens: torch.Tensor
    seq_lens: torch.Tensor
    block_table: torch.Tensor
    num_decodes: int
    sample_index: torch.Tensor
    host_cu_seqlens: tuple[int, ...] | None = field(default=None, compare=False)
    host_seq_lens: tuple[int, ...] | None = field(default=None, compare=False)

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows."""
        return self.token_ids.shape[0]

    @property
    def num_rows(self) -> int:
        """Sequences in the step."""
        return self.seq_lens.shape[0]

    @cached_property
    def chunks(self) -> tuple[tuple[int, int, int, int], ...]:
        """Prefill rows as (row, first token, end token, context length), on the host.

        Read once per step, not per layer; on a GPU it waits for the device unless the host
        copies were given.
        """
        if self.num_rows == self.num_decodes:
            return ()
        starts = self.host_cu_seqlens or tuple(self.cu_seqlens.tolist())
        lengths = self.host_seq_lens or tuple(self.seq_lens.tolist())
        return tuple(
            (row, starts[row], starts[row + 1], lengths[row])
            for row in range(self.num_decodes, self.num_rows)
        )

    @cached_property
    def chunk_masks(self) -> tuple[torch.Tensor | None, ...]:
        """For each chunk what its tokens see, [chunk, context] bool; None for plainly causal."""
        masks = []
        for _, start, end, length in self.chunks:
            new = end - start
            seen = torch.ones(new, length, dtype=torch.bool, device=self.token_ids.device)
            masks.append(None if new == length else seen.tril(length - new))
        return tuple(masks)


@dataclass(frozen=True)
class StepTensors:
    """What all layers of one step share, computed once.

    Attributes:
        batch: the rows.
        kv_index: [num_tokens] int64, where each token's KV goes: block * block_size + offset.
        cos: [num_tokens, head_dim / 2] float32, of the rotary angles.
        sin: likewise.
    """

    batch: AttentionBatch
    kv_index: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
