"""Small random models of every family, and what transformers says of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from worker.loader import LoadedModel, load_model

CPU = torch.device("cpu")
NUM_TOKENS = 41
# Odd sizes, grouped heads, a head_dim that is not hidden / heads.
SMALL = {
    "vocab_size": 101,
    "hidden_size": 42,
    "intermediate_size": 75,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "eos_token_id": None,
}
# Qwen 2 has no head_dim of its own.
EVEN = {key: value for key, value in SMALL.items() if key != "head_dim"} | {"hidden_size": 48}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
UPPER_WINDOWS = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}
GEMMA = {"num_hidden_layers": 3, "query_pre_attn_scalar": 24, "sliding_window": 9}
TWO_ROPES = {
    "full_attention": LINEAR | {"rope_theta": 500000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
}
VARIANTS: dict[str, Any] = {
    "llama": LlamaConfig(**SMALL),
    "llama-tied": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "llama-biases": LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True),
    "llama-no-groups": LlamaConfig(**SMALL | {"num_key_value_heads": 6}),
    "llama3-rope": LlamaConfig(**SMALL, rope_parameters=LLAMA3),
    "linear-rope": LlamaConfig(**SMALL, rope_parameters=LINEAR),
    "mistral": MistralConfig(**SMALL, sliding_window=None),
    "mistral-window": MistralConfig(**SMALL, sliding_window=13),
    "mistral-self-alone": MistralConfig(**SMALL, sliding_window=1),
    "qwen2": Qwen2Config(**EVEN),
    "qwen2-upper-windows": Qwen2Config(**EVEN, **UPPER_WINDOWS),
    "qwen3": Qwen3Config(**SMALL),
    "qwen3-biases-windows": Qwen3Config(**SMALL, **UPPER_WINDOWS, attention_bias=True),
    # Caps so low that they bend the scores of random weights.
    "gemma2": Gemma2Config(
        **SMALL | GEMMA, attn_logit_softcapping=1.5, final_logit_softcapping=4.0
    ),
    "gemma2-untied-uncapped": Gemma2Config(
        **SMALL | GEMMA,
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        tie_word_embeddings=False,
    ),
    "gemma3": Gemma3TextConfig(
        **SMALL | GEMMA, sliding_window_pattern=3, rope_parameters=TWO_ROPES
    ),
}


@dataclass
class Case:
    """One saved model, loaded by us, and what transformers says of one token sequence.

    Attributes:
        directory: where it is saved.
        theirs: transformers' model, of the same weights; in float32, on the host.
        loaded: ours.
        token_ids: [NUM_TOKENS].
        expected: [NUM_TOKENS, vocab_size], transformers' logits.
        device: where ours is.
    """

    directory: Path
    theirs: PreTrainedModel
    loaded: LoadedModel
    token_ids: torch.Tensor
    expected: torch.Tensor
    device: torch.device = CPU


def make_case(variant: str, directory: Path) -> Case:
    """Builds, saves and loads the variant."""
    return build(VARIANTS[variant], directory, scale=0.7)


def build(
    config: Any,
    directory: Path,
    *,
    scale: float,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
) -> Case:
    """Saves and loads a model whose weights are normally distributed, in a number format."""
    torch.manual_seed(8)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    for name, parameter in model.named_parameters():
        # Small embeddings: what layers add to them decides, not the token that came last.
        at_the_ends = "embed_tokens" in name or "lm_head" in name
        torch.nn.init.normal_(parameter, std=0.02 if at_the_ends else scale)
    model.to(dtype).float().save_pretrained(directory)
    token_ids = torch.randint(0, config.vocab_size, (NUM_TOKENS,))
    with torch.inference_mode():
        expected = model(token_ids[None]).logits[0].clone()
    loaded = load_model(directory, dtype=str(dtype).removeprefix("torch."), device=device)
    return Case(directory, model, loaded, token_ids, expected, device)
