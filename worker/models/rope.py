"""Rotary frequencies: their base, and how a model stretched them for a longer context."""

import math
from dataclasses import dataclass

import torch

from worker.models.fields import Fields, UnsupportedModelError


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
class Rope:
    """The rotary embedding of a layer.

    Attributes:
        theta: base of the frequencies.
        scaling: None where they are unscaled.
    """

    theta: float
    scaling: RopeScaling | None = None

    @classmethod
    def parse(cls, fields: Fields, default_theta: float = 10000.0) -> "Rope":
        """Reads the configuration's rope object under its new or its old name.

        Raises:
            UnsupportedModelError: a kind of scaling or a partial rotation that is not computed.
        """
        nested = fields.nested("rope_parameters", "rope_scaling")
        outside = fields.positive_float("rope_theta", default_theta)
        if fields.positive_float("partial_rotary_factor", 1.0) != 1.0:
            raise _partial_rotation()
        return cls.parse_object(nested, outside)

    @classmethod
    def parse_object(cls, nested: Fields, default_theta: float) -> "Rope":
        """Reads one rope object.

        Raises:
            UnsupportedModelError: as `parse` does.
        """
        if nested.positive_float("partial_rotary_factor", 1.0) != 1.0:
            raise _partial_rotation()
        return cls(nested.positive_float("rope_theta", default_theta), _scaling(nested))

    def inverse_frequencies(self, head_dim: int) -> torch.Tensor:
        """Radians per position, [head_dim / 2] float32 on the CPU, scaled as the model asks.

        llama3 scaling blends by wavelength: long ones are divided by `factor`, short ones kept,
        those between interpolated (the Llama 3.1 release).
        """
        exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
        plain = 1.0 / self.theta**exponents
        scaling = self.scaling
        if scaling is None:
            return plain
        if scaling.kind == "linear":
            return plain / scaling.factor
        turns = scaling.original_max_position * plain / (2 * math.pi)
        span = scaling.high_freq_factor - scaling.low_freq_factor
        kept = ((turns - scaling.low_freq_factor) / span).clamp(0.0, 1.0)
        return (1 - kept) * plain / scaling.factor + kept * plain


def _scaling(nested: Fields) -> RopeScaling | None:
    kind = nested.raw.get("rope_type", nested.raw.get("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", nested.positive_float("factor"))
    if kind == "llama3":
        scaling = RopeScaling(
            "llama3",
            nested.positive_float("factor"),
            nested.positive_float("low_freq_factor"),
            nested.positive_float("high_freq_factor"),
            nested.positive_int("original_max_position_embeddings"),
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


def _partial_rotation() -> UnsupportedModelError:
    return UnsupportedModelError("partial_rotary_factor is set; only full rotation is supported")
