"""Both ends of a model: token ids to the residual stream, and the normed residual stream to logits.

Ranks hold a part of the vocabulary each.
"""

from dataclasses import dataclass

import torch

from kernels.linear import linear, linear_into
from kernels.native.packing import PackedLinear
from kernels.quantized import Matrix, QuantizedMatrix, dense
from worker.models.config import ModelConfig
from worker.models.layers import Projection
from worker.models.weights import Weights
from worker.parallel import Group


@dataclass(frozen=True)
class Embedding:
    """Token ids to the residual stream; of one rank, which holds the whole vocabulary.

    Attributes:
        weight: [rows, hidden], perhaps in codes; or packed for the native kernels.
        scale: multiplies what is looked up; None for nothing.
    """

    weight: Matrix | PackedLinear
    scale: float | None

    def __call__(self, token_ids: torch.Tensor) -> torch.Tensor:
        rows = self.look_up(token_ids)
        return rows if self.scale is None else rows * self.scale

    def look_up(self, token_ids: torch.Tensor) -> torch.Tensor:
        """[num_tokens, hidden], unscaled."""
        assert not isinstance(self.weight, PackedLinear), "it is for native kernels"
        if isinstance(self.weight, QuantizedMatrix):
            return self.weight.rows(token_ids).dequantized()
        return torch.nn.functional.embedding(token_ids, self.weight)

    @staticmethod
    def read(config: ModelConfig, weights: Weights) -> "Embedding":
        """The embedding of the model."""
        weight = read_vocabulary(config, weights, "model.embed_tokens.weight")
        scale = config.embedding_scale
        if scale is not None:
            dtype = weight.dtype if isinstance(weight, torch.Tensor) else torch.float32
            scale = torch.tensor(scale, dtype=dtype).item()  # rounded as it was in training
        if weight.shape[0] == config.vocab_size:
            packs = weights.packs_embedding and not config.tied_embeddings
            return Embedding(weights.pack([weight]) if packs else weight, scale)
        part = dense(weight)
        return SplitEmbedding(part, scale, weights.group.shard.rank * len(part), weights.group)


@dataclass(frozen=True)
class SplitEmbedding(Embedding):
    """Of one rank among several: each looks up the tokens that it holds, and the rows add up.

    Attributes:
        first: token id of the first row.
        group: the ranks.
    """

    first: int
    group: Group

    def look_up(self, token_ids: torch.Tensor) -> torch.Tensor:
        """`Embedding.look_up`."""
        assert isinstance(self.weight, torch.Tensor), "ranks look up floats"
        row = token_ids - self.first
        is_held = (row >= 0) & (row < self.weight.shape[0])
        rows = super().look_up(row * is_held)
        return self.group.sum(rows * is_held[:, None])


def read_vocabulary(config: ModelConfig, weights: Weights, name: str) -> Matrix:
    """This rank's rows of a matrix over the vocabulary: as many on each rank, the rest zeros."""
    rows, each = weights.group.shard.vocabulary(config.vocab_size)
    matrix = weights.matrix(name, config.vocab_size, config.hidden_size, rows=rows)
    missing = each - matrix.shape[0]
    return torch.nn.functional.pad(dense(matrix), (0, 0, 0, missing)) if missing else matrix


@dataclass(frozen=True)
class Head:
    """The normed residual stream to logits.

    Attributes:
        projection: hidden to this rank's part of the vocabulary.
        vocab_size: columns of the logits.
        softcap: logits l become softcap · tanh(l / softcap); None: they stay.
        group: the ranks.
    """

    projection: Projection
    vocab_size: int
    softcap: float | None
    group: Group

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """[num_rows, vocab_size], the same on each rank; in `out` if that is given."""
        weight = self.projection.weight
        assert isinstance(weight, torch.Tensor), "it is for native kernels"
        if self.group.world_size > 1:
            logits = self.group.join_columns(linear(x, weight), self.vocab_size, out)
        else:
            logits = linear(x, weight) if out is None else linear_into(x, weight, out)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    @classmethod
    def read(cls, config: ModelConfig, weights: Weights, embedding: Embedding) -> "Head":
        """The head of the model.

        A tied head shares values with the embedding, and not memory where the packed layout
        differs from the plain one.
        """
        weight = embedding.weight
        if not config.tied_embeddings:
            weight = read_vocabulary(config, weights, "lm_head.weight")
        assert not isinstance(weight, PackedLinear), "a tied embedding is packed as the head"
        projection = Projection(weights.pack([weight]), None)
        return cls(projection, config.vocab_size, config.logits_softcap, weights.group)
