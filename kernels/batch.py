"""One step's rows, flattened: what the forward pass and the sampler read.

A row is one sequence's part of the step. Rows are concatenated along the token axis without
padding; decode rows (one token each) come first, prefill chunks after them:

    token axis   | d0 | d1 | d2 | c0 c0 c0 c0 | c1 c1 |
    cu_seqlens   0    1    2    3             7       9
"""

from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch


@dataclass(frozen=True)
class AttentionBatch:
    """The tensors of one flattened step; all on the model's device.

    Row r owns tokens ``cu_seqlens[r]:cu_seqlens[r + 1]``. Its context is ``seq_lens[r]`` tokens
    long, this step's tokens included, so its first token has position
    ``seq_lens[r] - (cu_seqlens[r + 1] - cu_seqlens[r])``. The KV of position p lives in block
    ``block_table[r, p // block_size]`` at offset ``p % block_size``.

    A masked row (a slot that ended on the device, or padding) has a block table of zeros, seq_len 1
    and position 0: it writes to the null block 0 and reads from there.

    Attributes:
        token_ids: [num_tokens] integer.
        positions: [num_tokens] integer.
        cu_seqlens: [num_rows + 1] int32, starts at 0, ends at num_tokens.
        seq_lens: [num_rows] int32, each at least 1.
        block_table: [tables, max_blocks] int32, contiguous. One table per row, only as wide as the
            step needs; or, with `row_slot`, every slot's table, read in place.
        num_decodes: the first so many rows have exactly one token each.
        sample_index: [num_sampled] int64, the token rows whose logits are wanted, in any order.
        host_cu_seqlens: cu_seqlens as a tuple, where the caller has it: spares a copy from the
            device. Only the chunk part is read.
        host_seq_lens: seq_lens as a tuple, likewise.
        row_slot: [num_rows] int32, which table is the row's; None: row r has table r.
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
    row_slot: torch.Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows."""
        return self.token_ids.shape[0]

    @property
    def num_rows(self) -> int:
        """Sequences in the step."""
        return self.seq_lens.shape[0]

    @cached_property
    def row_tables(self) -> torch.Tensor:
        """The block table of each row, [num_rows, max_blocks] int32."""
        if self.row_slot is None:
            return self.block_table
        return self.block_table[self.row_slot.long()]

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


@dataclass(frozen=True)
class RopeTable:
    """Rotary angles of every position a sequence may reach; built once per model.

    Attributes:
        cos: [max_position, head_dim / 2] float32.
        sin: likewise.
    """

    cos: torch.Tensor
    sin: torch.Tensor

    @classmethod
    def build(cls, inverse_frequencies: torch.Tensor, max_position: int) -> "RopeTable":
        """cos and sin of position · frequency.

        Args:
            inverse_frequencies: [head_dim / 2] float32.
            max_position: positions are 0 to max_position - 1.
        """
        positions = torch.arange(max_position, device=inverse_frequencies.device).float()
        angles = positions[:, None] * inverse_frequencies[None, :]
        return cls(angles.cos(), angles.sin())


@dataclass(frozen=True)
class StepTensors:
    """What all layers of one step share. The derived tensors are computed when first asked for.

    Attributes:
        batch: the rows.
        block_size: tokens per block of the cache.
        rope: rotary angles by position.
        memo: what an op derives from the rows once for all layers, by a key of its own.
    """

    batch: AttentionBatch
    block_size: int
    rope: RopeTable
    memo: dict[Hashable, Any] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def kv_index(self) -> torch.Tensor:
        """Where each token's KV goes, [num_tokens] int64: block · block_size + offset."""
        batch = self.batch
        lengths = batch.cu_seqlens.diff()
        rows = torch.repeat_interleave(
            torch.arange(batch.num_rows, device=lengths.device),
            lengths,
            output_size=batch.num_tokens,
        )
        blocks = batch.row_tables[rows, batch.positions // self.block_size].long()
        return blocks * self.block_size + batch.positions % self.block_size

    @cached_property
    def cos(self) -> torch.Tensor:
        """Of each token's angles, [num_tokens, head_dim / 2] float32."""
        return self.rope.cos[self.batch.positions]

    @cached_property
    def sin(self) -> torch.Tensor:
        """Of each token's angles, [num_tokens, head_dim / 2] float32."""
        return self.rope.sin[self.batch.positions]


@dataclass(frozen=True)
class HeadNorms:
    """RMSNorm of every query and key head before the rotation (QK-norm).

    Attributes:
        query: [head_dim], the weight for queries.
        key: [head_dim], for keys.
        eps: added to the mean square.
    """

    query: torch.Tensor
    key: torch.Tensor
    eps: float


@dataclass(frozen=True)
class Scoring:
    """How a query's products with the keys become the weights of the values.

    Attributes:
        scale: multiplies the products; usually 1 / sqrt(head_dim).
        window: a token sees so many positions, its own included; None: all up to its own.
        softcap: scaled products s become softcap · tanh(s / softcap); None: they stay.
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
