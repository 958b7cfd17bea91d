"""Mistral: Llama without biases, every layer with a sliding window."""

from dataclasses import replace

from worker.models.config import ModelConfig, parse_common, parse_windows, require_activation
from worker.models.fields import Fields


def parse(fields: Fields) -> ModelConfig:
    """Reads MistralForCausalLM's fields; raises `UnsupportedModelError`."""
    require_activation(fields, "hidden_act", "silu")
    common = parse_common(fields, num_kv_heads=8, max_position=131072)
    windowed = [True] * common.num_layers
    return replace(common, layers=parse_windows(fields, common.layers, windowed))
