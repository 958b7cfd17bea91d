"""Mistral: Llama without biases, every layer with a sliding window."""

from dataclasses import replace

from worker.models.config import ModelConfig, parse_common, require_activation
from worker.models.fields import Fields


def parse(fields: Fields) -> ModelConfig:
    """Reads MistralForCausalLM's fields; raises `UnsupportedModelError`."""
    require_activation(fields, "hidden_act", "silu")
    common = parse_common(fields, num_kv_heads=8, max_position=131072)
    # The window is the default: only an explicit null turns it off.
    window = fields.optional_positive_int("sliding_window", 4096)
    return replace(common, layers=tuple(replace(kind, window=window) for kind in common.layers))
