"""Qwen 2 and 2.5: Llama with biases of queries, keys and values, and perhaps windows high up."""

from dataclasses import replace

from worker.models.config import ModelConfig, parse_common, parse_windows, require_activation
from worker.models.fields import Fields


def parse(fields: Fields) -> ModelConfig:
    """Reads Qwen2ForCausalLM's fields; raises `UnsupportedModelError`."""
    require_activation(fields, "hidden_act", "silu")
    common = parse_common(fields, num_kv_heads=32, max_position=32768)
    return replace(with_upper_windows(fields, common), qkv_bias=True)


def with_upper_windows(fields: Fields, config: ModelConfig) -> ModelConfig:
    """The layers from max_window_layers on have a window, where use_sliding_window says so."""
    if not fields.flag("use_sliding_window", False):
        return config
    first = fields.whole_number("max_window_layers", 28)
    windowed = [index >= first for index in range(config.num_layers)]
    return replace(config, layers=parse_windows(fields, config.layers, windowed))
