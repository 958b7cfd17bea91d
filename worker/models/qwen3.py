"""Qwen 3, the dense models: query and key heads are normed before the rotation."""

from dataclasses import replace

from worker.models.config import ModelConfig, parse_common, require_activation
from worker.models.fields import Fields
from worker.models.qwen2 import with_upper_windows


def parse(fields: Fields) -> ModelConfig:
    """Reads Qwen3ForCausalLM's fields; raises `UnsupportedModelError`."""
    require_activation(fields, "hidden_act", "silu")
    common = parse_common(fields, num_kv_heads=32, head_dim=128, max_position=32768)
    bias = fields.flag("attention_bias", False)
    return replace(
        with_upper_windows(fields, common), qkv_bias=bias, output_bias=bias, head_norms=True
    )
