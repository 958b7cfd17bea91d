"""The forward pass that all families share: embedding, layers over the paged cache, norm, head."""

import torch

from kernels.batch import AttentionBatch, RopeTable, StepTensors
from kernels.ops import Ops
from worker.kv_cache import KVCache
from worker.models.config import ModelConfig
from worker.models.layers import Norm, ReadLayer
from worker.models.rope import Rope
from worker.models.vocabulary import Embedding, Head
from worker.models.weights import Weights, held_tensors


class Decoder:
    """The weights and the forward pass.

    Attributes:
        config: dimensions and constants.
        share: those of what this rank computes.
        embedding: token ids to the residual stream.
        layers: decoder layers, in order.
        norm: of what the head sees.
        head: the residual stream to logits.
    """

    def __init__(
        self,
        config: ModelConfig,
        read_layer: ReadLayer,
        weights: Weights,
        ops: Ops,
        max_model_len: int,
    ) -> None:
        """Reads every tensor once, fusing and packing layer by layer.

        Args:
            config: dimensions and constants.
            read_layer: the family's.
            weights: the checkpoint.
            ops: the device's kernels.
            max_model_len: the longest sequence it will see, in tokens.
        """
        self.config = config
        self.share = config.share(weights.group.shard)
        self.embedding = Embedding.read(config, weights)
        self.layers = tuple(
            read_layer(config, weights.under(f"model.layers.{index}"), kind, ops)
            for index, kind in enumerate(config.layers)
        )
        self.norm = Norm.read(config, weights, "model.norm", ops)
        self.head = Head.read(config, weights, self.embedding)
        ropes = tuple(dict.fromkeys(kind.rope for kind in config.layers))
        self._rope_tables = tuple(
            _rope_table(rope, config.head_dim, max_model_len, self.norm.weight.device)
            for rope in ropes
        )
        self._rope_of_layer = tuple(ropes.index(kind.rope) for kind in config.layers)

    @property
    def weight_bytes(self) -> int:
        """Bytes that the weights occupy."""
        return _bytes_of((self.embedding, self.layers, self.norm, self.head))

    @property
    def embedding_bytes(self) -> int:
        """Bytes of them that the embedding occupies."""
        return _bytes_of(self.embedding)

    @torch.inference_mode()
    def forward(
        self, batch: AttentionBatch, kv: KVCache, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """One step: writes the KV of every token, returns the logits of the sampled rows.

        Args:
            batch: the step's rows.
            kv: the paged cache; blocks in the batch's tables are written and read.
            out: where the logits go; None for a tensor of their own.

        Returns:
            [num_sampled, vocab_size], in the number format of the weights.
        """
        residual, hidden = self._layers(batch, kv)
        sampled = residual[batch.sample_index] + hidden[batch.sample_index]
        return self.head(self.norm(sampled), out)

    @torch.inference_mode()
    def hidden(self, batch: AttentionBatch, kv: KVCache) -> torch.Tensor:
        """One step, likewise, up to what the head reads: `forward` is `logits` of the sampled rows.

        Returns:
            [num_tokens, hidden_size], after the last norm.
        """
        residual, hidden = self._layers(batch, kv)
        return self.norm(residual.add_(hidden))

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Of some rows of `hidden`: [rows, vocab_size], in the number format of the weights."""
        return self.head(hidden)

    def _layers(self, batch: AttentionBatch, kv: KVCache) -> tuple[torch.Tensor, torch.Tensor]:
        """The residual stream, and what the last layer leaves to be added to it."""
        steps = [StepTensors(batch, kv.block_size, table) for table in self._rope_tables]
        residual = self.embedding(batch.token_ids)
        hidden = torch.zeros_like(residual)
        for layer, rope, keys, values in zip(
            self.layers, self._rope_of_layer, kv.keys, kv.values, strict=True
        ):
            hidden = layer(hidden, residual, steps[rope], keys, values)
        return residual, hidden


def _rope_table(rope: Rope, head_dim: int, max_model_len: int, device: torch.device) -> RopeTable:
    frequencies = rope.inverse_frequencies(head_dim)
    if device.type == "meta":  # for a range there torch would load its compiler: see `rows_joined`
        angles = torch.empty(max_model_len, len(frequencies), device=device)
        return RopeTable(angles, angles)
    return RopeTable.build(frequencies.to(device), max_model_len)


def _bytes_of(holder: object) -> int:
    """Of each tensor that it holds, once."""
    tensors = {id(tensor): tensor for tensor in held_tensors(holder)}.values()
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)
