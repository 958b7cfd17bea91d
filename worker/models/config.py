"""What config.json says of a Llama-architecture model, parsed once into a frozen shape.

Everything the model does not implement is refused here, by name, before a weight is read.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class UnsupportedModelError(ValueError):
    """The model directory asks for something Quire does not compute; the message names it."""


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies were stretched for a longer context.

    Attributes:
        kind: "linear" or "llama3".
        factor: how many times longer.
        low_freq_factor: llama3: wavelengths above original / low are stretched in full.
        high_freq_factor: llama3: wavelengths below original / high are left alone.
        original_max_position: llama3: the context length before stretching, in tokens.
    """

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_max_position: int = 0


@dataclass(frozen=True)
class ModelConfig:
    """Dimensions and constants of one model.

    Attributes:
        architecture: a name in ARCHITECTURES.
        vocab_size: token ids are 0 to vocab_size - 1.
        hidden_size: width of the residual stream.
        intermediate_size: width of the MLP.
        num_layers: decoder layers.
        num_heads: query heads.
        num_kv_heads: key/value heads; divides num_heads.
        head_dim: width of a head; even.
        max_position: the longest sequence the model was made for, in tokens.
        rms_norm_eps: added to the mean square.
        rope_theta: base of the rotary frequencies.
        rope_scaling: None where frequencies are unscaled.
        sliding_window: tokens a position sees, itself included; None: all.
        attention_bias: q, k, v and o projections have biases.
        mlp_bias: gate, up and down projections have biases.
        tied_embeddings: the output head is the embedding matrix.
        dtype: what the checkpoint declares.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    sliding_window: int | None
    attention_bias: bool
    mlp_bias: bool
    tied_embeddings: bool
    dtype: torch.dtype

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> "ModelConfig":
        """Reads the object in config.json.

        Raises:
            UnsupportedModelError: a field is missing, malformed or asks for what is not supported.
        """
        architecture = _architecture(raw)
        mistral = architecture == "MistralForCausalLM"
        hidden_size = _positive_int(raw, "hidden_size")
        num_heads = _positive_int(raw, "num_attention_heads")
        config = cls(
            architecture=architecture,
            vocab_size=_positive_int(raw, "vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=_positive_int(raw, "intermediate_size"),
            num_layers=_positive_int(raw, "num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=_positive_int(raw, "num_key_value_heads", 8 if mistral else num_heads),
            head_dim=_positive_int(raw, "head_dim", hidden_size // num_heads),
            max_position=_positive_int(raw, "max_position_embeddings", 131072 if mistral else 2048),
            rms_norm_eps=_positive_float(raw, "rms_norm_eps", 1e-6),
            rope_theta=_rope_theta(raw),
            rope_scaling=_rope_scaling(raw),
            # Mistral's default is a window: only an explicit null turns it off.
            sliding_window=_optional_int(raw, "sliding_window", 4096 if mistral else None),
            attention_bias=bool(raw.get("attention_bias", False)),
            mlp_bias=bool(raw.get("mlp_bias", False)),
            tied_embeddings=bool(raw.get("tie_word_embeddings", False)),
            dtype=_dtype(raw),
        )
        config._check(raw)
        return config

    def _check(self, raw: Mapping[str, Any]) -> None:
        if self.num_heads % self.num_kv_heads:
            raise UnsupportedModelError(
                f"num_attention_heads is {self.num_heads}; "
                f"it must be a multiple of num_key_value_heads, {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise UnsupportedModelError(f"head_dim is {self.head_dim}; it must be even")
        activation = raw.get("hidden_act", "silu")
        if activation != "silu":
            raise UnsupportedModelError(f"hidden_act is {activation!r}; only 'silu' is supported")
        if "quantization_config" in raw:
            raise UnsupportedModelError(
                "quantization_config is set; only unquantized weights are supported"
            )

    def inverse_frequencies(self) -> torch.Tensor:
        """Rotary frequencies, [head_dim / 2] float32 on the CPU, scaled as the model asks.

        llama3 scaling blends by wavelength: long ones are divided by `factor`, short ones kept,
        those between interpolated (the Llama 3.1 release).
        """
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.int64).float() / self.head_dim
        plain = 1.0 / self.rope_theta**exponents
        scaling = self.rope_scaling
        if scaling is None:
            return plain
        if scaling.kind == "linear":
            return plain / scaling.factor
        turns = scaling.original_max_position * plain / (2 * math.pi)
        span = scaling.high_freq_factor - scaling.low_freq_factor
        kept = ((turns - scaling.low_freq_factor) / span).clamp(0.0, 1.0)
        return (1 - kept) * plain / scaling.factor + kept * plain


def _architecture(raw: Mapping[str, Any]) -> str:
    names = raw.get("architectures")
    known = ", ".join(ARCHITECTURES)
    if not isinstance(names, list) or len(names) != 1:
        raise UnsupportedModelError(
            f"architectures is {names!r}; it must name one supported architecture: {known}"
        )
    if names[0] not in ARCHITECTURES:
        raise UnsupportedModelError(f"architecture {names[0]!r} is not supported; known: {known}")
    return str(names[0])


def _rope_parameters(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The nested rope object under its new or its old name; empty where there is none."""
    nested = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(nested, Mapping):
        raise UnsupportedModelError(f"rope_scaling is {nested!r}; it must be an object")
    return nested


def _rope_theta(raw: Mapping[str, Any]) -> float:
    nested = _rope_parameters(raw)
    return _positive_float(nested if "rope_theta" in nested else raw, "rope_theta", 10000.0)


def _rope_scaling(raw: Mapping[str, Any]) -> RopeScaling | None:
    nested = _rope_parameters(raw)
    kind = nested.get("rope_type", nested.get("type", "default"))
    if nested.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0)) != 1.0:
        raise UnsupportedModelError("partial_rotary_factor is set; only full rotation is supported")
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", _positive_float(nested, "factor"))
    if kind == "llama3":
        scaling = RopeScaling(
            "llama3",
            _positive_float(nested, "factor"),
            _positive_float(nested, "low_freq_factor"),
            _positive_float(nested, "high_freq_factor"),
            _positive_int(nested, "original_max_position_embeddings"),
        )
        if scaling.high_freq_factor <= scaling.low_freq_factor:
            raise UnsupportedModelError(
                f"high_freq_factor is {scaling.high_freq_factor}; "
                f"it must be greater than low_freq_factor, {scaling.low_freq_factor}"
            )
        return scaling
    raise UnsupportedModelError(
        f"rope_scaling type {kind!r} is not supported; known: default, linear, llama3"
    )


def _dtype(raw: Mapping[str, Any]) -> torch.dtype:
    name = raw.get("dtype", raw.get("torch_dtype")) or "float32"
    if name not in _DTYPES:
        raise UnsupportedModelError(f"dtype is {name!r}; known: {', '.join(_DTYPES)}")
    return _DTYPES[name]


def _positive_int(raw: Mapping[str, Any], field: str, default: int | None = None) -> int:
    value = _optional_int(raw, field, default)
    if value is None:
        raise UnsupportedModelError(f"{field} is missing")
    return value


def _optional_int(raw: Mapping[str, Any], field: str, default: int | None) -> int | None:
    value = raw.get(field, default)
    if value is None:
        # An explicit null means the default, except where null itself has a meaning.
        return None if field == "sliding_window" else default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UnsupportedModelError(f"{field} is {value!r}; it must be a positive integer")
    return value


def _positive_float(raw: Mapping[str, Any], field: str, default: float | None = None) -> float:
    value = raw.get(field)
    if value is None:
        value = default
    if value is None:
        raise UnsupportedModelError(f"{field} is missing")
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise UnsupportedModelError(f"{field} is {value!r}; it must be a positive number")
    return float(value)
