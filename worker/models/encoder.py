"""BERT and what shares its architecture: bidirectional attention over whole prompts, no cache.

    embeddings (word + position + type, normed) ─▶ layers (attention, MLP, each added and then
    normed) ─▶ hidden states

All prompts of a step are one flattened batch without padding, but in attention: there prompts of
about the same length are padded to the longest of them, and one call serves each such group.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone reads)

from kernels.quantized import dense
from worker.models.config import parse_dtype
from worker.models.fields import Fields, UnsupportedModelError
from worker.models.layers import Outputs, Projection
from worker.models.weights import Weights, held_tensors, tensor_shapes

Tensor = torch.Tensor

_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}
_ROBERTA = ("RobertaModel", "XLMRobertaModel")
ENCODERS = ("BertModel", *_ROBERTA)
"""Architectures, as config.json names them."""

_PAD_STEP = 16
"""Prompts are padded to a multiple of this many tokens, and so grouped."""


@dataclass(frozen=True)
class EncoderConfig:
    """Dimensions and constants of one encoder.

    Attributes:
        architecture: the name in config.json.
        vocab_size: token ids are 0 to vocab_size - 1.
        hidden_size: width of the residual stream, and of a vector.
        intermediate_size: width of the MLP.
        num_layers: layers.
        num_heads: attention heads; divides hidden_size.
        num_positions: rows of the position embeddings.
        first_position: row of a prompt's first token.
        num_types: rows of the type embeddings; prompts are of type 0.
        norm_eps: added to the variance.
        activation: of the MLP.
        dtype: what the checkpoint declares.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_positions: int
    first_position: int
    num_types: int
    norm_eps: float
    activation: str
    dtype: torch.dtype

    @property
    def max_position(self) -> int:
        """Tokens of the longest prompt it was made for."""
        return self.num_positions - self.first_position


def is_encoder(raw: Mapping[str, Any]) -> bool:
    """Whether config.json's object is that of an encoder."""
    names = raw.get("architectures")
    return isinstance(names, list) and len(names) == 1 and names[0] in ENCODERS


def parse_encoder(raw: Mapping[str, Any]) -> EncoderConfig:
    """Reads the object in config.json.

    Raises:
        UnsupportedModelError: a field is missing, malformed or asks for what is not supported.
    """
    fields = Fields(raw)
    fields.refuse("quantization_config", "only unquantized weights are supported")
    fields.refuse("is_decoder", "only its use as an encoder is supported")
    kind = raw.get("position_embedding_type") or "absolute"
    if kind != "absolute":
        raise UnsupportedModelError(
            f"position_embedding_type is {kind!r}; only 'absolute' is supported"
        )
    activation = raw.get("hidden_act", "gelu")
    if activation not in _ACTIVATIONS:
        raise UnsupportedModelError(
            f"hidden_act is {activation!r}; known: {', '.join(_ACTIVATIONS)}"
        )
    hidden_size = fields.positive_int("hidden_size")
    num_heads = fields.positive_int("num_attention_heads")
    if hidden_size % num_heads:
        raise UnsupportedModelError(
            f"hidden_size is {hidden_size}; "
            f"it must be a multiple of num_attention_heads, {num_heads}"
        )
    architecture = raw["architectures"][0]
    # Theirs begin after the padding token's.
    first = fields.whole_number("pad_token_id", 1) + 1 if architecture in _ROBERTA else 0
    return EncoderConfig(
        architecture=architecture,
        vocab_size=fields.positive_int("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.positive_int("intermediate_size"),
        num_layers=fields.positive_int("num_hidden_layers"),
        num_heads=num_heads,
        num_positions=fields.positive_int("max_position_embeddings", 512),
        first_position=first,
        num_types=fields.positive_int("type_vocab_size", 2),
        norm_eps=fields.positive_float("layer_norm_eps", 1e-12),
        activation=activation,
        dtype=parse_dtype(fields),
    )


@dataclass(frozen=True)
class PromptRows:
    """The prompts of one step, flattened; all on the model's device.

    Attributes:
        token_ids: [num_tokens] int64.
        positions: [num_tokens] int64, from 0 in each prompt.
        groups: of prompts that are padded alike.
    """

    token_ids: Tensor
    positions: Tensor
    groups: "tuple[PaddedGroup, ...]"

    @classmethod
    def of(cls, prompts: Sequence[Tensor], device: torch.device) -> "PromptRows":
        """Of token ids on the host, [length] int64 each."""
        lengths = [len(prompt) for prompt in prompts]
        firsts = [0, *torch.tensor(lengths).cumsum(0).tolist()]
        by_width: dict[int, list[int]] = {}
        for prompt, length in enumerate(lengths):
            by_width.setdefault(-(-length // _PAD_STEP), []).append(prompt)
        groups = tuple(
            PaddedGroup.of([(firsts[i], lengths[i]) for i in members], device)
            for members in by_width.values()
        )
        return cls(
            torch.cat(list(prompts)).to(device),
            torch.cat([torch.arange(length) for length in lengths]).to(device),
            groups,
        )


@dataclass(frozen=True)
class PaddedGroup:
    """Prompts of about the same length, as rows that are filled up with padding.

    Attributes:
        token: [prompts, longest] int64, index among the step's tokens; of padding, the prompt's
            first.
        is_token: [prompts, longest] bool; false for padding.
        mask: [prompts, 1, 1, longest] bool, which keys may be seen; None: there is no padding.
    """

    token: Tensor
    is_token: Tensor
    mask: Tensor | None

    @classmethod
    def of(cls, spans: Sequence[tuple[int, int]], device: torch.device) -> "PaddedGroup":
        """Of prompts given as (first token, length)."""
        first, length = torch.tensor(spans).unbind(1)
        offset = torch.arange(int(length.max()))
        is_token = offset < length[:, None]
        token = first[:, None] + offset * is_token
        mask = None if bool(is_token.all()) else is_token[:, None, None].to(device)
        return cls(token.to(device), is_token.to(device), mask)


@dataclass(frozen=True)
class LayerNorm:
    """Norm of mean and variance.

    Attributes:
        weight: [hidden_size].
        bias: [hidden_size].
        eps: added to the variance.
    """

    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)

    @classmethod
    def read(cls, config: EncoderConfig, weights: Weights) -> "LayerNorm":
        """The norm under `weights`."""
        under = weights.under("LayerNorm")
        size = config.hidden_size
        return cls(under.vector("weight", size), under.vector("bias", size), config.norm_eps)


@dataclass(frozen=True)
class EncoderLayer:
    """Attention and MLP; each is added to what it was given, and the sum is normed.

    Attributes:
        qkv: hidden to queries, keys and values.
        attended: attended heads to hidden.
        attention_norm: of the sum after attention.
        up: hidden to intermediate.
        down: intermediate to hidden.
        mlp_norm: of the sum after the MLP.
        num_heads: heads.
        activation: between up and down.
    """

    qkv: Projection
    attended: Projection
    attention_norm: LayerNorm
    up: Projection
    down: Projection
    mlp_norm: LayerNorm
    num_heads: int
    activation: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor, rows: PromptRows) -> Tensor:
        """[num_tokens, hidden_size] both ways."""
        x = self.attention_norm(x + self.attended(self._attend(self.qkv(x), rows)))
        return self.mlp_norm(x + self.down(self.activation(self.up(x))))

    def _attend(self, qkv: Tensor, rows: PromptRows) -> Tensor:
        num_tokens, width = qkv.shape[0], qkv.shape[1] // 3
        out = qkv.new_empty(num_tokens, width)
        for group in rows.groups:
            # [prompts, longest, 3, heads, head_dim] to three of [prompts, heads, longest, head_dim]
            padded = qkv[group.token].view(*group.token.shape, 3, self.num_heads, -1)
            query, key, value = padded.permute(2, 0, 3, 1, 4).unbind(0)
            heads = F.scaled_dot_product_attention(query, key, value, attn_mask=group.mask)
            merged = heads.transpose(1, 2).flatten(2)
            out[group.token[group.is_token]] = merged[group.is_token]
        return out

    @classmethod
    def read(cls, config: EncoderConfig, weights: Weights) -> "EncoderLayer":
        """The layer under `weights`."""
        hidden, width = config.hidden_size, config.intermediate_size
        attention = weights.under("attention")
        return cls(
            qkv=_projection(attention.under("self"), ("query", "key", "value"), hidden, hidden),
            attended=_projection(attention.under("output"), ("dense",), hidden, hidden),
            attention_norm=LayerNorm.read(config, attention.under("output")),
            up=_projection(weights.under("intermediate"), ("dense",), width, hidden),
            down=_projection(weights.under("output"), ("dense",), hidden, width),
            mlp_norm=LayerNorm.read(config, weights.under("output")),
            num_heads=config.num_heads,
            activation=_ACTIVATIONS[config.activation],
        )


def _projection(
    weights: Weights, names: Sequence[str], out_features: int, in_features: int
) -> Projection:
    whole = [Outputs(name, out_features, slice(None)) for name in names]
    return Projection.split_outputs(weights, whole, in_features, bias=True)


class Encoder:
    """The weights and the forward pass.

    Attributes:
        config: dimensions and constants.
    """

    def __init__(self, config: EncoderConfig, weights: Weights) -> None:
        """Reads every tensor once."""
        self.config = config
        under, hidden = weights.under("embeddings"), config.hidden_size
        self._words = dense(under.matrix("word_embeddings.weight", config.vocab_size, hidden))
        types = dense(under.matrix("token_type_embeddings.weight", config.num_types, hidden))
        places = dense(under.matrix("position_embeddings.weight", config.num_positions, hidden))
        self._places = places[config.first_position :] + types[0]
        self._norm = LayerNorm.read(config, under)
        layers = weights.under("encoder.layer")
        self._layers = tuple(
            EncoderLayer.read(config, layers.under(str(index)))
            for index in range(config.num_layers)
        )

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._words.device

    @property
    def weight_bytes(self) -> int:
        """Bytes that the weights occupy."""
        tensors = held_tensors((self._words, self._places, self._norm, self._layers))
        return sum(tensor.numel() * tensor.dtype.itemsize for tensor in tensors)

    @torch.inference_mode()
    def hidden(self, rows: PromptRows) -> Tensor:
        """The last layer's states of every token, [num_tokens, hidden_size]."""
        x = F.embedding(rows.token_ids, self._words) + F.embedding(rows.positions, self._places)
        x = self._norm(x)
        for layer in self._layers:
            x = layer(x, rows)
        return x


def encoder_tensors(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of every tensor that is read from a checkpoint of this model."""
    return tensor_shapes(lambda weights: Encoder(config, weights))
