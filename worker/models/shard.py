"""Which part of a model one rank holds.

Ranks divide heads and channels as evenly as these allow, not only where a division leaves no rest:
three KV heads are two for one rank and one for the other. A rank holds the query heads that read
its KV heads. Where there are fewer KV heads than ranks, several ranks hold the same one and divide
its query heads. What each rank computes is added up, so that shares need not be alike; only the
vocabulary is cut into parts of one size, with rows that mean nothing at the end of the last.
"""

from dataclasses import dataclass

from worker.models.fields import UnsupportedModelError


@dataclass(frozen=True)
class Shard:
    """One of the parts of a model.

    Attributes:
        rank: 0 to world_size - 1.
        world_size: parts there are.
    """

    rank: int = 0
    world_size: int = 1

    def span(self, count: int) -> slice:
        """This rank's share of `count` units."""
        return slice(self.rank * count // self.world_size, self._end(count))

    def _end(self, count: int) -> int:
        return (self.rank + 1) * count // self.world_size

    def heads(self, num_heads: int, num_kv_heads: int) -> tuple[slice, slice]:
        """This rank's query heads and the KV heads that they read.

        Raises `UnsupportedModelError` where the ranks cannot divide them.
        """
        per_kv_head = num_heads // num_kv_heads
        if num_kv_heads >= self.world_size:
            kv_heads = self.span(num_kv_heads)
            return slice(kv_heads.start * per_kv_head, kv_heads.stop * per_kv_head), kv_heads
        if self.world_size > num_heads or self.world_size % num_kv_heads:
            raise UnsupportedModelError(
                f"--tensor-parallel-size is {self.world_size}; this model has {num_heads} query "
                f"heads and {num_kv_heads} key/value heads: it must be at most {num_kv_heads}, or "
                f"a multiple of that up to {num_heads}"
            )
        kv_head = self.rank * num_kv_heads // self.world_size
        return self.span(num_heads), slice(kv_head, kv_head + 1)

    def vocabulary(self, size: int) -> tuple[slice, int]:
        """This rank's rows of the vocabulary, and as many as every rank has with what is padded."""
        each = -(-size // self.world_size)
        start = min(self.rank * each, size)
        return slice(start, min(start + each, size)), each
