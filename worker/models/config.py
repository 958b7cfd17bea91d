"""What config.json says of a model, parsed once into a frozen shape that all families share.

A family's file reads its own fields into it (`worker.models.registry`). Everything a family does
not implement is refused there or here, by name, before a weight is read.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from worker.models.fields import Fields, UnsupportedModelError
from worker.models.rope import Rope
from worker.models.shard import Shard

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
IN_CODES = {"quant_method": "quire"}
"""Said of a directory with matrices in codes (`worker.checkpoint`), which are nobody else's."""
Activation = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True)
class LayerKind:
    """What tells the attention of one layer from another's.

    Attributes:
        rope: the rotary embedding.
        window: tokens a position sees, itself included; None: all.
    """

    rope: Rope
    window: int | None = None


@dataclass(frozen=True)
class ModelConfig:
    """Dimensions and constants of one model.

    Attributes:
        architecture: the name in config.json.
        vocab_size: token ids are 0 to vocab_size - 1.
        hidden_size: width of the residual stream.
        intermediate_size: width of the MLP.
        layers: the kind of each decoder layer, in order.
        num_heads: query heads.
        num_kv_heads: key/value heads; divides num_heads.
        head_dim: width of a head; even.
        max_position: the longest sequence the model was made for, in tokens.
        rms_norm_eps: added to the mean square.
        tied_embeddings: the output head is the embedding matrix.
        dtype: what the checkpoint declares.
        attention_scale: multiplies the products of queries and keys.
        attention_softcap: bounds the scaled products; None: they are not.
        logits_softcap: bounds the logits; None: they are not.
        qkv_bias: query, key and value projections have biases.
        output_bias: the projection of the attended heads has one.
        mlp_bias: gate, up and down projections have biases.
        head_norms: query and key heads are normed before the rotation.
        norm_offset: the checkpoint's norm weights are this much less than the true ones.
        activation: of the MLP's gates.
        embedding_scale: multiplies the embeddings; None: they stay.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: tuple[LayerKind, ...]
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int
    rms_norm_eps: float
    tied_embeddings: bool
    dtype: torch.dtype
    attention_scale: float
    attention_softcap: float | None = None
    logits_softcap: float | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    head_norms: bool = False
    norm_offset: float = 0.0
    activation: Activation = "silu"
    embedding_scale: float | None = None

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self.layers)

    def share(self, shard: Shard) -> "ModelConfig":
        """What one rank computes; raises `UnsupportedModelError` where ranks cannot divide it."""
        heads, kv_heads = shard.heads(self.num_heads, self.num_kv_heads)
        channels = shard.span(self.intermediate_size)
        return replace(
            self,
            num_heads=heads.stop - heads.start,
            num_kv_heads=kv_heads.stop - kv_heads.start,
            intermediate_size=channels.stop - channels.start,
        )


def parse_common(
    fields: Fields,
    *,
    num_kv_heads: int | None = None,
    head_dim: int | None = None,
    max_position: int,
    tied_embeddings: bool = False,
) -> ModelConfig:
    """What all families say alike; every layer sees its whole context.

    Args:
        fields: config.json's object.
        num_kv_heads: the family's default; None: as many as query heads.
        head_dim: the family's default; None: hidden_size / query heads.
        max_position: the family's default, in tokens.
        tied_embeddings: the family's default.

    Raises:
        UnsupportedModelError: a field is missing, malformed or asks for what is not supported.
    """
    if fields.raw.get("quantization_config") != IN_CODES:
        fields.refuse(
            "quantization_config", "only GGUF's codes and unquantized weights are supported"
        )
    hidden_size = fields.positive_int("hidden_size")
    num_heads = fields.positive_int("num_attention_heads")
    head_dim = fields.positive_int("head_dim", head_dim or hidden_size // num_heads, most=8192)
    config = ModelConfig(
        architecture=fields.raw["architectures"][0],
        vocab_size=fields.positive_int("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.positive_int("intermediate_size"),
        layers=(LayerKind(Rope.parse(fields)),)
        * fields.positive_int("num_hidden_layers", most=4096),
        num_heads=num_heads,
        num_kv_heads=fields.positive_int("num_key_value_heads", num_kv_heads or num_heads),
        head_dim=head_dim,
        max_position=fields.positive_int("max_position_embeddings", max_position),
        rms_norm_eps=fields.positive_float("rms_norm_eps", 1e-6),
        tied_embeddings=fields.flag("tie_word_embeddings", tied_embeddings),
        dtype=parse_dtype(fields),
        attention_scale=head_dim**-0.5,
    )
    if config.num_heads % config.num_kv_heads:
        raise UnsupportedModelError(
            f"num_attention_heads is {config.num_heads}; "
            f"it must be a multiple of num_key_value_heads, {config.num_kv_heads}"
        )
    if head_dim % 2:
        raise UnsupportedModelError(f"head_dim is {head_dim}; it must be even")
    return config


def parse_windows(
    fields: Fields, kinds: Sequence[LayerKind], windowed: Sequence[bool]
) -> tuple[LayerKind, ...]:
    """Gives some layers the sliding window; an explicit null turns it off.

    Args:
        fields: config.json's object; its layer_types, where it has them, decide.
        kinds: of all layers.
        windowed: which have a window by the family's rule.

    Raises:
        UnsupportedModelError: a kind of layer that is not known.
    """
    if fields.raw.get("layer_types") is not None:
        types = fields.words("layer_types", ("full_attention", "sliding_attention"), len(kinds))
        windowed = [name == "sliding_attention" for name in types]
    window = fields.optional_positive_int("sliding_window", 4096)
    return tuple(
        replace(kind, window=window) if has_window else kind
        for kind, has_window in zip(kinds, windowed, strict=True)
    )


def require_activation(fields: Fields, name: str, only: str) -> None:
    """Raises `UnsupportedModelError` where the MLP's activation is not the family's own."""
    if fields.raw.get(name, only) != only:
        raise UnsupportedModelError(f"{name} is {fields.raw[name]!r}; only {only!r} is supported")


def parse_dtype(fields: Fields) -> torch.dtype:
    """What the checkpoint declares; raises `UnsupportedModelError`."""
    name = fields.raw.get("dtype", fields.raw.get("torch_dtype")) or "float32"
    if not isinstance(name, str) or name not in DTYPES:
        raise UnsupportedModelError(f"dtype is {name!r}; known: {', '.join(DTYPES)}")
    return DTYPES[name]
