"""The paged KV cache: real blocks that block tables name.

Ids 1 to num_blocks hold sequences; block 0 is the null block, where masked rows write. A block
keeps the tokens of one KV head together, ``[num_kv_heads, block_size, head_dim]``, so that a kernel
which walks a context head by head reads memory in runs.
"""

import torch

from worker.models.config import ModelConfig


class KVCache:
    """Keys and values of all layers.

    Attributes:
        num_blocks: blocks that plans may name; one more, the null block, exists.
        block_size: tokens per block.
        keys: per layer, [num_blocks + 1, num_kv_heads, block_size, head_dim].
        values: likewise.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Reserves the memory; pages are touched only as blocks are first written."""
        shape = (2, config.num_layers, num_blocks + 1, config.num_kv_heads, block_size)
        storage = torch.empty((*shape, config.head_dim), dtype=dtype, device=device)
        storage[:, :, 0] = 0
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.keys = tuple(storage[0].unbind(0))
        self.values = tuple(storage[1].unbind(0))

    @staticmethod
    def bytes_per_block(config: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
        """Bytes that one block takes over all layers, keys and values together."""
        elements = config.num_layers * config.num_kv_heads * block_size * config.head_dim
        return 2 * elements * dtype.itemsize
