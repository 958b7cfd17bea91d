"""Llama 2, 3 and 3.1, and what shares their architecture: SmolLM2, TinyLlama."""

from dataclasses import replace

from worker.models.config import ModelConfig, parse_common, require_activation
from worker.models.fields import Fields


def parse(fields: Fields) -> ModelConfig:
    """Reads LlamaForCausalLM's fields; raises `UnsupportedModelError`."""
    require_activation(fields, "hidden_act", "silu")
    attention_bias = fields.flag("attention_bias", False)
    return replace(
        parse_common(fields, max_position=2048),
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        mlp_bias=fields.flag("mlp_bias", False),
    )
