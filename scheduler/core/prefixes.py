"""What one replica's blocks hold, by name: which of a sequence's blocks exist there already, and
what the blocks are called that it fills."""

from scheduler.core.block_hash import BlockHasher, HashChain, HashSpace
from scheduler.core.block_pool import BlockPool
from scheduler.core.events import Capacity
from scheduler.core.sequence import Sequence


class Prefixes:
    """The names of one replica's blocks, in its own hash space."""

    def __init__(
        self, pool: BlockPool, capacity: Capacity, hasher: BlockHasher, *, among_requests: bool
    ) -> None:
        """`among_requests`: whether requests share prefixes, or only samples of one request do."""
        self.among_requests = among_requests
        self._pool = pool
        self._hasher = hasher
        self._block_size = capacity.block_size
        self._keeps_kv = capacity.num_blocks > 0
        self._space = HashSpace(capacity.model_revision, capacity.block_size, hasher.seed)

    @property
    def seed(self) -> bytes:
        """Under which blocks are named; empty if their names are nobody else's affair."""
        return self._hasher.seed if self.among_requests else b""

    def cached_blocks(self, sequence: Sequence) -> list[int]:
        """Blocks that hold its prefix, leaving at least its last token to compute."""
        limit = sequence.num_cacheable_tokens // self._block_size
        return self._pool.match(self._chain_of(sequence).keys, limit)

    def _chain_of(self, sequence: Sequence) -> HashChain:
        """The sequence's chain in this replica's hash space, covering every full block it knows."""
        chain = sequence.chain
        if chain is None or chain.space != self._space:
            shares = self.among_requests or (self._keeps_kv and sequence.request.num_samples > 1)
            root = None
            if shares:
                root = self._hasher.root(self._space, sequence.request, sequence.private)
            chain = sequence.chain = HashChain(self._space, root)
        if chain.root is not None:
            full = sequence.num_known_tokens // self._block_size
            if len(chain.keys) < full:
                self._hasher.cover(chain, sequence.tokens())
        return chain

    def name_known(self, sequence: Sequence, start: int, end: int) -> None:
        """Known tokens start to end - 1 of a running sequence are planned. The blocks that are
        full by that are named at once: whatever is planned later runs after they are written."""
        names = self._chain_of(sequence).keys
        size = self._block_size
        for index in range(start // size, min(end // size, len(names))):
            self._pool.register(sequence.blocks[index], names[index])

    def name_confirmed(self, sequence: Sequence, index: int, tokens: bytes) -> None:
        """A running sequence's block of this index holds these confirmed tokens, int32."""
        chain = sequence.chain
        assert chain is not None, "a running sequence has a chain"
        if chain.root is not None:
            if len(chain.keys) == index:
                self._hasher.append(chain, tokens)
            self._pool.register(sequence.blocks[index], chain.keys[index])

    def forget_after(self, sequence: Sequence, num_tokens: int) -> None:
        """Stop offering the sequence's blocks that hold any token beyond the first `num_tokens`."""
        if sequence.chain is not None and sequence.chain.space == self._space:
            for name in sequence.chain.keys[num_tokens // self._block_size :]:
                self._pool.forget(name)
