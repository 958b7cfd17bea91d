"""config.json becomes a frozen shape, or one line says what is not supported."""

from typing import Any

import pytest
import torch
from transformers import Gemma3TextConfig, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from worker.models.fields import UnsupportedModelError
from worker.models.registry import parse_config
from worker.models.rope import Rope, RopeScaling

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


def windows(architecture: str, **changes: Any) -> list[int | None]:
    """Of each layer of a model of seven."""
    raw = config(architectures=[architecture], num_hidden_layers=7, num_key_value_heads=2)
    return [kind.window for kind in parse_config(raw | changes).layers]


@pytest.mark.parametrize("architecture", ["Qwen2ForCausalLM", "Qwen3ForCausalLM"])
def test_qwen_has_windows_only_if_asked_and_only_high_up(architecture: str) -> None:
    every: list[int | None] = [None] * 7
    assert windows(architecture, sliding_window=64, max_window_layers=0) == every
    asked = {"use_sliding_window": True, "sliding_window": 64}
    assert windows(architecture, **asked) == every  # from layer 28 on
    assert windows(architecture, **asked, max_window_layers=5) == [None] * 5 + [64] * 2
    assert windows(architecture, **asked, max_window_layers=0) == [64] * 7
    kinds = ["sliding_attention"] + ["full_attention"] * 6
    assert windows(architecture, **asked, layer_types=kinds) == [64] + [None] * 6


def test_gemmas_layers_take_turns() -> None:
    assert windows("Gemma2ForCausalLM") == [4096, None, 4096, None, 4096, None, 4096]
    assert windows("Gemma3ForCausalLM", sliding_window=512) == [512] * 5 + [None, 512]
    thirds = windows("Gemma3ForCausalLM", sliding_window=512, sliding_window_pattern=3)
    assert thirds == [512, 512, None, 512, 512, None, 512]
    kinds = ["full_attention"] * 6 + ["sliding_attention"]
    assert windows("Gemma2ForCausalLM", layer_types=kinds) == [None] * 6 + [4096]


def test_the_fields_of_gemma() -> None:
    second = parse_config(config(architectures=["Gemma2ForCausalLM"], num_attention_heads=4))
    assert (second.head_dim, second.num_kv_heads, second.max_position) == (256, 4, 8192)
    assert (second.attention_softcap, second.logits_softcap) == (50.0, 30.0)
    assert (second.attention_scale, second.embedding_scale) == (256**-0.5, 96**0.5)
    assert (second.tied_embeddings, second.norm_offset, second.head_norms) == (True, 1.0, False)
    third = parse_config(config(architectures=["Gemma3ForCausalLM"], num_attention_heads=4))
    assert (third.attention_softcap, third.logits_softcap, third.head_norms) == (None, None, True)
    nulls = config(
        architectures=["Gemma2ForCausalLM"],
        num_attention_heads=4,
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
    )
    uncapped = parse_config(nulls)
    assert (uncapped.attention_softcap, uncapped.logits_softcap) == (None, None)


@pytest.mark.parametrize("scaling", [None, {"rope_type": "linear", "factor": 8.0}])
def test_gemma_3_rotates_by_the_kind_of_layer(scaling: dict[str, Any] | None) -> None:
    raw = config(architectures=["Gemma3ForCausalLM"], num_attention_heads=4, num_hidden_layers=6)
    theirs = Gemma3TextConfig(
        num_hidden_layers=6, rope_theta=2e6, rope_local_base_freq=3e4, rope_scaling=scaling
    ).rope_parameters
    flat = {"rope_theta": 2e6, "rope_local_base_freq": 3e4, "rope_scaling": scaling}
    linear = None if scaling is None else RopeScaling("linear", 8.0)
    for spelling in (flat, {"rope_parameters": theirs}):
        ropes = [kind.rope for kind in parse_config(raw | spelling).layers]
        assert ropes == [Rope(3e4)] * 5 + [Rope(2e6, linear)]
    by_default = [kind.rope.theta for kind in parse_config(raw).layers]
    assert by_default == [1e4] * 5 + [1e6]


def test_what_a_family_does_not_compute_is_named() -> None:
    for architecture, changes, message in (
        ("Qwen2ForCausalLM", {"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu'"),
        ("Gemma2ForCausalLM", {"hidden_activation": "gelu"}, "only 'gelu_pytorch_tanh'"),
        ("Gemma3ForCausalLM", {"use_bidirectional_attention": True}, "only causal attention"),
        ("Gemma2ForCausalLM", {"layer_types": ["full_attention"]}, "it must be a list of 2"),
        ("Gemma2ForCausalLM", {"layer_types": ["full_attention", "mamba"]}, "has 'mamba'"),
        ("Qwen3ForCausalLM", {"use_sliding_window": 1}, "it must be true or false"),
        (
            "Qwen3ForCausalLM",
            {"use_sliding_window": True, "max_window_layers": -1},
            "max_window_layers is -1",
        ),
        ("Gemma3ForConditionalGeneration", {}, "'Gemma3ForConditionalGeneration' is not supp"),
    ):
        raw = config(architectures=[architecture], num_key_value_heads=2)
        with pytest.raises(UnsupportedModelError, match=message):
            parse_config(raw | changes)


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
        ({"architectures": [["LlamaForCausalLM"]]}, r"architectures is \[\["),
        ({"architectures": [7]}, r"architectures is \[7\]; it must name one supported"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "48"}, "hidden_size is '48'; it must be a positive integer"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"num_key_value_heads": 4}, "num_attention_heads is 6; it must be a multiple of .* 4"),
        ({"head_dim": 7}, "head_dim is 7; it must be even"),
        ({"rms_norm_eps": -1e-5}, "rms_norm_eps is -1e-05; it must be a positive number"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"quantization_config": {}}, "only GGUF's codes and unquantized weights"),
        ({"torch_dtype": "float8"}, "dtype is 'float8'"),
        ({"torch_dtype": ["float16"]}, r"dtype is \['float16'\]; known: float32"),
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
