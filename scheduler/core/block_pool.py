"""The KV blocks of one replica: who may write where, and what is worth keeping.

Every block is in exactly one of three states:

    free    no references, holds nothing                        a stack
    cached  no references, holds a named prefix                 least recently used first
    used    referenced by block tables, or by limbo (limbo.py)  a count per block

Allocation takes free blocks first and then evicts cached ones in LRU order. Blocks are released
tail first, so a sequence's tail is evicted before the head that others may share.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from scheduler.core.prefix_index import PrefixIndex


class BlockPool:
    """Blocks 1 to num_blocks; block 0 is the null block and never handed out."""

    def __init__(self, num_blocks: int, *, keeps_prefixes: bool) -> None:
        self.num_blocks = num_blocks
        self._keeps_prefixes = keeps_prefixes
        self._index = PrefixIndex(num_blocks)
        self._references = [0] * (num_blocks + 1)
        self._free = list(range(num_blocks, 0, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    @property
    def num_used(self) -> int:
        return self.num_blocks - len(self._free) - len(self._cached)

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can give: free ones and cached ones."""
        return len(self._free) + len(self._cached)

    def references(self, block: int) -> int:
        """How many block tables and limbo entries mention the block."""
        return self._references[block]

    def allocate(self, count: int) -> list[int]:
        """`count` blocks with one reference each; at most `num_available` may be asked for."""
        assert count <= self.num_available, f"{count} blocks asked for, {self.num_available} left"
        while len(self._free) < count:
            block, _ = self._cached.popitem(last=False)
            self._index.remove(block)
            self._free.append(block)
        blocks = [self._free.pop() for _ in range(count)]
        for block in blocks:
            self._references[block] = 1
        return blocks

    def acquire(self, blocks: Iterable[int]) -> None:
        """One more reference to each: they are used or cached."""
        for block in blocks:
            if self._references[block] == 0:
                del self._cached[block]
            self._references[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """One reference less to each block of a table, tail first."""
        for block in reversed(blocks):
            left = self._references[block] - 1
            assert left >= 0, f"block {block} released once too often"
            self._references[block] = left
            if left == 0:
                self._retain_or_free(block)

    def _retain_or_free(self, block: int) -> None:
        if self._keeps_prefixes and self._index.has(block):
            self._cached[block] = None
        else:
            self._index.remove(block)
            self._free.append(block)

    def adopt(self, blocks: Sequence[int], names: Sequence[bytes]) -> None:
        """Free blocks hold these prefixes from before, the one to be evicted first coming first."""
        for block, name in zip(blocks, names, strict=True):
            self._index.adopt(name, block)
            self._cached[block] = None
        self._free = [block for block in self._free if block not in self._cached]

    def take_changes(self) -> tuple[dict[int, bytes], list[int]]:
        """Names given and taken since this was called last; none where no prefixes are kept."""
        named, unnamed = self._index.take_changes()
        return (named, unnamed) if self._keeps_prefixes else ({}, [])

    def match(self, names: Sequence[bytes], limit: int) -> list[int]:
        """Blocks that hold the longest known prefix; `acquire` them before any `allocate`."""
        return self._index.match(names, limit)

    def num_idle(self, blocks: Iterable[int]) -> int:
        """How many of the matched blocks nobody uses: acquiring them makes fewer available."""
        return sum(self._references[block] == 0 for block in blocks)

    def register(self, block: int, name: bytes) -> None:
        """The used block will hold this prefix before anything planned later reads it."""
        self._index.add(name, block)

    def forget(self, name: bytes) -> None:
        """Stop offering this prefix, unless somebody beside its one owner already relies on it."""
        block = self._index.find(name)
        if block is None or self._references[block] > 1:
            return
        self._index.remove(block)
        if self._references[block] == 0:
            del self._cached[block]
            self._free.append(block)

    def stop_offering(self, blocks: Iterable[int]) -> None:
        """Forget the names of used blocks: nobody new will rely on what they hold."""
        for block in blocks:
            self._index.remove(block)

    def forget_all(self) -> int:
        """Forget every name, of cached and of used blocks; returns how many there were."""
        named = self._index.named()
        for block in named:
            self._index.remove(block)
        self._free += self._cached
        self._cached.clear()
        return len(named)

    def check_integrity(self, mentions: dict[int, int]) -> None:
        """Raises AssertionError unless references equal `mentions` and each block has one state."""
        self._index.check_integrity()
        used = {block for block in range(1, self.num_blocks + 1) if self._references[block]}
        assert {block: self._references[block] for block in used} == mentions, "wrong references"
        free, cached = set(self._free), set(self._cached)
        assert len(free) == len(self._free), "a block is free twice"
        assert free.isdisjoint(cached), "a block is free and cached"
        assert used.isdisjoint(free | cached), "a used block is free or cached"
        assert len(free) + len(cached) + len(used) == self.num_blocks, "a block is lost"
        assert all(self._index.has(block) for block in cached), "a cached block has no name"
        assert not any(self._index.has(block) for block in free), "a free block has a name"
