"""Gemma 2: norms around attention and MLP, every other layer with a window, soft-capped scores.

Norm weights are stored less one, embeddings are scaled by the root of the width, gates go through
gelu's tanh form.
"""

from dataclasses import dataclass, replace

import torch

from kernels.batch import StepTensors
from kernels.ops import Ops
from worker.models.config import (
    LayerKind,
    ModelConfig,
    parse_common,
    parse_windows,
    require_activation,
)
from worker.models.fields import Fields
from worker.models.layers import MLP, Attention, Norm
from worker.models.weights import Weights


def parse(fields: Fields) -> ModelConfig:
    """Reads Gemma2ForCausalLM's fields; raises `UnsupportedModelError`."""
    common = parse_gemma(fields, max_position=8192)
    windowed = [index % 2 == 0 for index in range(common.num_layers)]
    return replace(
        common,
        layers=parse_windows(fields, common.layers, windowed),
        attention_softcap=fields.optional_positive_float("attn_logit_softcapping", 50.0),
        logits_softcap=fields.optional_positive_float("final_logit_softcapping", 30.0),
    )


def parse_gemma(fields: Fields, *, max_position: int) -> ModelConfig:
    """What Gemma 2 and 3 say alike."""
    require_activation(fields, "hidden_activation", "gelu_pytorch_tanh")
    fields.refuse("use_bidirectional_attention", "only causal attention is supported")
    common = parse_common(
        fields, num_kv_heads=4, head_dim=256, max_position=max_position, tied_embeddings=True
    )
    bias = fields.flag("attention_bias", False)
    return replace(
        common,
        attention_scale=fields.positive_float("query_pre_attn_scalar", 256.0) ** -0.5,
        qkv_bias=bias,
        output_bias=bias,
        norm_offset=1.0,
        activation="gelu_tanh",
        embedding_scale=common.hidden_size**0.5,
    )


@dataclass(frozen=True)
class SandwichLayer:
    """Attention and MLP, each between two norms.

    Attributes:
        attention_norm: before attention.
        attention: reads and writes the cache.
        attended_norm: after attention, before it joins the stream.
        mlp_norm: before the MLP.
        mlp: the gated MLP.
        product_norm: after the MLP, before it joins the stream.
    """

    attention_norm: Norm
    attention: Attention
    attended_norm: Norm
    mlp_norm: Norm
    mlp: MLP
    product_norm: Norm

    def __call__(
        self,
        hidden: torch.Tensor,
        residual: torch.Tensor,
        step: StepTensors,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> torch.Tensor:
        """`worker.models.layers.DecoderLayer`."""
        normed = self.attention_norm.add(hidden, residual)
        attended = self.attended_norm(self.attention(normed, step, keys, values))
        return self.product_norm(self.mlp(self.mlp_norm.add(attended, residual)))

    @classmethod
    def read(
        cls, config: ModelConfig, weights: Weights, kind: LayerKind, ops: Ops
    ) -> "SandwichLayer":
        """`worker.models.layers.ReadLayer`."""
        return cls(
            attention_norm=Norm.read(config, weights, "input_layernorm", ops),
            attention=Attention.read(config, weights.under("self_attn"), kind, ops),
            attended_norm=Norm.read(config, weights, "post_attention_layernorm", ops),
            mlp_norm=Norm.read(config, weights, "pre_feedforward_layernorm", ops),
            mlp=MLP.read(config, weights.under("mlp"), ops),
            product_norm=Norm.read(config, weights, "post_feedforward_layernorm", ops),
        )
