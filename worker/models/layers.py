"""What the layers of all families are made of; each part reads its own weights, its rank's only.

Query, key and value projections are one matrix, gate and up are one matrix: fewer, larger
multiplications per layer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from kernels.batch import HeadNorms, Scoring, StepTensors
from kernels.linear import linear
from kernels.native.packing import PackedLinear
from kernels.ops import Ops
from kernels.quantized import rows_joined
from worker.models.config import LayerKind, ModelConfig
from worker.models.weights import Weights
from worker.parallel import Group


class Outputs(NamedTuple):
    """The outputs of one linear map of the checkpoint.

    Attributes:
        name: the checkpoint's, without ".weight".
        size: outputs there are.
        span: those of this rank.
    """

    name: str
    size: int
    span: slice


@dataclass(frozen=True)
class Projection:
    """One linear map; the weight is in the device's own layout (`kernels.linear`).

    Attributes:
        weight: [out_features, in_features], perhaps opaque; or packed for the native kernels,
            which compute whole layers and not this alone.
        bias: [out_features] or None.
    """

    weight: torch.Tensor | PackedLinear
    bias: torch.Tensor | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        assert isinstance(self.weight, torch.Tensor), "it is for native kernels"
        return linear(x, self.weight, self.bias)

    @classmethod
    def split_outputs(
        cls, weights: Weights, parts: Sequence[Outputs], in_features: int, bias: bool
    ) -> "Projection":
        """Several maps of one input as one; a rank holds its outputs of each."""
        matrices, biases = [], []
        for name, size, span in parts:
            matrices.append(weights.matrix(f"{name}.weight", size, in_features, rows=span))
            if bias:
                biases.append(weights.vector(f"{name}.bias", size, span))
        return cls(weights.pack(matrices), rows_joined(biases) if bias else None)


@dataclass(frozen=True)
class SummedProjection:
    """One linear map of inputs that ranks divide among them: what each makes of its own adds up.

    Attributes:
        projection: of this rank's inputs; rank 0's has the bias.
        group: the ranks.
    """

    projection: Projection
    group: Group

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.group.sum(self.projection(x))

    @classmethod
    def split_inputs(
        cls, weights: Weights, inputs: Outputs, out_features: int, bias: bool
    ) -> "SummedProjection":
        """The map of these inputs, which are another's outputs."""
        name, size, span = inputs
        matrix = weights.matrix(f"{name}.weight", out_features, size, columns=span)
        added = weights.vector(f"{name}.bias", out_features) if bias else None
        projection = Projection(
            weights.pack([matrix]), added if weights.group.shard.rank == 0 else None
        )
        return cls(projection, weights.group)


@dataclass(frozen=True)
class Norm:
    """RMSNorm of the residual stream or of what is added to it.

    Attributes:
        weight: [hidden].
        eps: added to the mean square.
        ops: the device's kernels.
    """

    weight: torch.Tensor
    eps: float
    ops: Ops

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.ops.rms_norm(x, self.weight, self.eps)

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """residual += x (in place), then the norm of the sum."""
        return self.ops.add_rms_norm(x, residual, self.weight, self.eps)

    @classmethod
    def read(cls, config: ModelConfig, weights: Weights, name: str, ops: Ops) -> "Norm":
        """The norm of this name."""
        weight = _norm_weight(config, weights, name, config.hidden_size)
        return cls(weight, config.rms_norm_eps, ops)


def _norm_weight(config: ModelConfig, weights: Weights, name: str, size: int) -> torch.Tensor:
    """[size]; an offset makes it float32: the sum needs more bits than its parts."""
    weight = weights.vector(f"{name}.weight", size)
    return weight.float() + config.norm_offset if config.norm_offset else weight


@dataclass(frozen=True)
class Attention:
    """Grouped-query attention over the paged cache.

    Attributes:
        qkv: hidden to queries, keys and values.
        output: attended heads to hidden.
        norms: of query and key heads; None for none.
        scoring: scale, window, soft cap.
        ops: the device's kernels.
    """

    qkv: Projection
    output: SummedProjection
    norms: HeadNorms | None
    scoring: Scoring
    ops: Ops

    def __call__(
        self, x: torch.Tensor, step: StepTensors, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        """Writes the tokens' keys and values, then attends; [num_tokens, hidden] both ways."""
        query = self.ops.rope_and_store(self.qkv(x), step, keys, values, self.norms)
        return self.output(self.ops.paged_attention(query, keys, values, step, self.scoring))

    @classmethod
    def read(cls, config: ModelConfig, weights: Weights, kind: LayerKind, ops: Ops) -> "Attention":
        """The attention under `weights`."""
        hidden, num_heads, num_kv_heads = config.hidden_size, config.num_heads, config.num_kv_heads
        heads, kv_heads = weights.group.shard.heads(num_heads, num_kv_heads)

        def of_heads(name: str, count: int, span: slice) -> Outputs:
            size = config.head_dim
            return Outputs(name, count * size, slice(span.start * size, span.stop * size))

        maps = (
            of_heads("q_proj", num_heads, heads),
            of_heads("k_proj", num_kv_heads, kv_heads),
            of_heads("v_proj", num_kv_heads, kv_heads),
        )
        attended = of_heads("o_proj", num_heads, heads)
        return cls(
            qkv=Projection.split_outputs(weights, maps, hidden, config.qkv_bias),
            output=SummedProjection.split_inputs(weights, attended, hidden, config.output_bias),
            norms=_read_head_norms(config, weights) if config.head_norms else None,
            scoring=Scoring(config.attention_scale, kind.window, config.attention_softcap),
            ops=ops,
        )


def _read_head_norms(config: ModelConfig, weights: Weights) -> HeadNorms:
    return HeadNorms(
        query=_norm_weight(config, weights, "q_norm", config.head_dim),
        key=_norm_weight(config, weights, "k_norm", config.head_dim),
        eps=config.rms_norm_eps,
    )


@dataclass(frozen=True)
class MLP:
    """down(activation(gate(x)) · up(x)).

    Attributes:
        gate_up: hidden to gates and ups.
        down: intermediate to hidden.
        product: gates and ups to activation(gate) · up.
    """

    gate_up: Projection
    down: SummedProjection
    product: Callable[[torch.Tensor], torch.Tensor]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.product(self.gate_up(x)))

    @classmethod
    def read(cls, config: ModelConfig, weights: Weights, ops: Ops) -> "MLP":
        """The MLP under `weights`."""
        hidden, width, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        span = weights.group.shard.span(width)
        channels = (Outputs("gate_proj", width, span), Outputs("up_proj", width, span))
        return cls(
            gate_up=Projection.split_outputs(weights, channels, hidden, bias),
            down=SummedProjection.split_inputs(
                weights, Outputs("down_proj", width, span), hidden, bias
            ),
            product=ops.silu_mul if config.activation == "silu" else ops.gelu_tanh_mul,
        )


class DecoderLayer(Protocol):
    """One layer of a family."""

    def __call__(
        self,
        hidden: torch.Tensor,
        residual: torch.Tensor,
        step: StepTensors,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> torch.Tensor:
        """One layer's part of the forward pass.

        Args:
            hidden: [num_tokens, hidden_size], what the layer before leaves to be added.
            residual: [num_tokens, hidden_size], the stream; updated in place.
            step: the rows, with this layer's rotary angles.
            keys: this layer's cache; written.
            values: likewise.

        Returns:
            What the next layer, or the last norm, has to add to the stream.
        """
        ...


class ReadLayer(Protocol):
    """Reads the layer of a kind whose tensors are under `weights`."""

    def __call__(
        self, config: ModelConfig, weights: Weights, kind: LayerKind, ops: Ops
    ) -> DecoderLayer:
        """The layer."""
        ...


@dataclass(frozen=True)
class PreNormLayer:
    """Attention and MLP, each after a norm: the layer of Llama and of most families since.

    Attributes:
        attention_norm: before attention.
        attention: reads and writes the cache.
        mlp_norm: before the MLP.
        mlp: the gated MLP.
    """

    attention_norm: Norm
    attention: Attention
    mlp_norm: Norm
    mlp: MLP

    def __call__(
        self,
        hidden: torch.Tensor,
        residual: torch.Tensor,
        step: StepTensors,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> torch.Tensor:
        """`DecoderLayer`."""
        normed = self.attention_norm.add(hidden, residual)
        attended = self.attention(normed, step, keys, values)
        return self.mlp(self.mlp_norm.add(attended, residual))

    @classmethod
    def read(
        cls, config: ModelConfig, weights: Weights, kind: LayerKind, ops: Ops
    ) -> "PreNormLayer":
        """`ReadLayer`."""
        return cls(
            attention_norm=Norm.read(config, weights, "input_layernorm", ops),
            attention=Attention.read(config, weights.under("self_attn"), kind, ops),
            mlp_norm=Norm.read(config, weights, "post_attention_layernorm", ops),
            mlp=MLP.read(config, weights.under("mlp"), ops),
        )
