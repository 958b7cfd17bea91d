"""Names for the content of blocks: a chain of keyed hashes.

The name of a block is a hash over the name of the block before it and its own token ids, so equal
names mean equal prefixes. The chain is rooted in everything else that changes the KV: the model's
revision, the adapter, and the salt within which a client agrees to share. A secret seed keys the
hash, so that nobody can craft a prompt which collides with another client's.
"""

from dataclasses import dataclass, field
from hashlib import blake2b

from scheduler.core.events import Int32Column, Request

_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class HashSpace:
    """What must be equal on two replicas for the same tokens to have the same names."""

    model_revision: str
    block_size: int
    seed: bytes = b""


@dataclass(slots=True)
class HashChain:
    """The names of a sequence's full blocks, as far as its tokens are known."""

    space: HashSpace
    root: bytes | None
    """None: this sequence shares with nobody, and nothing is ever hashed."""
    keys: list[bytes] = field(default_factory=list)


class BlockHasher:
    """Makes and extends chains under one secret seed."""

    def __init__(self, seed: bytes) -> None:
        self.seed = seed
        self._keyed = blake2b(key=seed, digest_size=_DIGEST_BYTES)

    def _digest(self, data: bytes) -> bytes:
        state = self._keyed.copy()
        state.update(data)
        return state.digest()

    def root(self, space: HashSpace, request: Request, private: int | None) -> bytes:
        """Start of the chain; `private`, a number of the request, keeps it to that request."""
        parts = (
            space.model_revision,
            request.adapter,
            request.cache_salt,
            "" if private is None else str(private),
        )
        encoded = [part.encode() for part in parts]
        return self._digest(b"".join(len(part).to_bytes(8, "little") + part for part in encoded))

    def append(self, chain: HashChain, block_tokens: bytes) -> None:
        """Name one more full block, given its token ids as int32 bytes."""
        if chain.root is not None:
            parent = chain.keys[-1] if chain.keys else chain.root
            chain.keys.append(self._digest(parent + block_tokens))

    def cover(self, chain: HashChain, tokens: Int32Column) -> None:
        """Name every full block of `tokens` that has no name yet."""
        if chain.root is None:
            return
        stride = tokens.itemsize * chain.space.block_size
        data = tokens.tobytes()
        name = chain.keys[-1] if chain.keys else chain.root
        for start in range(stride * len(chain.keys), len(data) - stride + 1, stride):
            name = self._digest(name + data[start : start + stride])
            chain.keys.append(name)
