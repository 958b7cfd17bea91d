"""config.json becomes a frozen shape, or one line says what is not supported."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from worker.models.fields import UnsupportedModelError
from worker.models.registry import parse_config
from worker.models.rope import Rope

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def config(**changes: Any) -> dict[str, Any]:
    """A small config.json in which some fields are changed."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 100,
        "hidden_size": 96,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        **changes,
    }


def test_absent_fields_take_the_architectures_defaults() -> None:
    llama = parse_config(config())
    assert (llama.num_kv_heads, llama.head_dim, llama.max_position) == (6, 16, 2048)
    assert (llama.layers[0].rope, llama.rms_norm_eps) == (Rope(10000.0), 1e-6)
    assert (llama.layers[0].window, llama.tied_embeddings, llama.qkv_bias) == (None, False, False)
    mistral = parse_config(config(architectures=["MistralForCausalLM"], num_attention_heads=16))
    assert (mistral.num_kv_heads, mistral.layers[0].window) == (8, 4096)


def test_an_explicit_null_turns_the_sliding_window_off() -> None:
    raw = config(architectures=["MistralForCausalLM"], num_attention_heads=16, sliding_window=None)
    assert parse_config(raw).layers[0].window is None


@pytest.mark.parametrize("scaling", [None, {"rope_type": "linear", "factor": 4.0}, LLAMA3])
@pytest.mark.parametrize("theta", [10000.0, 500000.0])
def test_frequencies_equal_transformers(scaling: dict[str, Any] | None, theta: float) -> None:
    parameters = {"rope_type": "default", **(scaling or {}), "rope_theta": theta}
    theirs = LlamaRotaryEmbedding(
        LlamaConfig(
            hidden_size=256,
            num_attention_heads=2,
            max_position_embeddings=131072,
            rope_parameters=parameters,
        )
    )
    nested = parse_config(config(rope_parameters=parameters)).layers[0].rope
    older = parse_config(config(rope_theta=theta, rope_scaling=scaling)).layers[0].rope
    ours = nested.inverse_frequencies(head_dim=128)
    torch.testing.assert_close(ours, theirs.inv_freq, atol=0, rtol=1e-6)
    assert older == nested


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "'GPT2LMHeadModel' is not supported; known: Ll"),
        ({"architectures": None}, "architectures is None"),
        ({"architectures": []}, r"architectures is \[\]"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "48"}, "hidden_size is '48'; it must be a positive integer"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"num_key_value_heads": 4}, "num_attention_heads is 6; it must be a multiple of .* 4"),
        ({"head_dim": 7}, "head_dim is 7; it must be even"),
        ({"rms_norm_eps": -1e-5}, "rms_norm_eps is -1e-05; it must be a positive number"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"quantization_config": {}}, "only unquantized weights"),
        ({"torch_dtype": "float8"}, "dtype is 'float8'"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear'; it must be an object"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "'yarn' is not supported"),
        ({"rope_scaling": {"type": "linear"}}, "factor is missing"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "high_freq_factor is 1.0"),
        ({"partial_rotary_factor": 0.5}, "only full rotation"),
    ],
)
def test_what_is_not_supported_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        parse_config(config(**changes))
