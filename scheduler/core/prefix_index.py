"""Which block of a replica holds which prefix: a one-to-one map of names to blocks."""

from collections.abc import Sequence


class PrefixIndex:
    """Names (see block_hash.py) of the blocks of one replica."""

    def __init__(self, num_blocks: int) -> None:
        self._block_of: dict[bytes, int] = {}
        self._name_of: list[bytes | None] = [None] * (num_blocks + 1)
        self._named: dict[int, bytes] = {}
        """Blocks named since the last `take_changes`."""
        self._unnamed: list[int] = []
        """Blocks whose name was removed since, of those that were told to have one."""

    def __len__(self) -> int:
        return len(self._block_of)

    def match(self, names: Sequence[bytes], limit: int) -> list[int]:
        """Blocks of the longest known prefix, at most `limit` of them."""
        blocks: list[int] = []
        block_of = self._block_of
        for index in range(min(limit, len(names))):
            block = block_of.get(names[index])
            if block is None:
                break
            blocks.append(block)
        return blocks

    def find(self, name: bytes) -> int | None:
        """The block of that name, if any."""
        return self._block_of.get(name)

    def has(self, block: int) -> bool:
        """Whether the block has a name."""
        return self._name_of[block] is not None

    def add(self, name: bytes, block: int) -> None:
        """Name a block, unless it has a name or another block has this one already."""
        if self._name_of[block] is None and name not in self._block_of:
            self._block_of[name] = block
            self._name_of[block] = name
            self._named[block] = name

    def remove(self, block: int) -> None:
        """Forget a block's name, if it has one."""
        name = self._name_of[block]
        if name is not None:
            del self._block_of[name]
            self._name_of[block] = None
            if self._named.pop(block, None) is None:
                self._unnamed.append(block)

    def adopt(self, name: bytes, block: int) -> None:
        """The block had this name before; nobody need be told."""
        self.add(name, block)
        del self._named[block]

    def take_changes(self) -> tuple[dict[int, bytes], list[int]]:
        """Blocks named, and blocks unnamed and not named anew, since this was called last."""
        changes = self._named, [block for block in self._unnamed if block not in self._named]
        self._named, self._unnamed = {}, []
        return changes

    def named(self) -> list[int]:
        """Every block that has a name."""
        return list(self._block_of.values())

    def check_integrity(self) -> None:
        """Raises AssertionError unless the two directions agree."""
        named = {name: block for block, name in enumerate(self._name_of) if name is not None}
        assert named == self._block_of, "prefix index: names and blocks disagree"
