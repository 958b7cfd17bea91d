"""Models by their shape alone, written as directories that `--load-format dummy` can serve.

The tokenizer knows as many tokens as the model, so that what comes out costs as much to turn into
text as it would for a real one.
"""

import itertools
import json
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Shape:
    """A model but for its weights.

    Attributes:
        name: for people.
        config: its config.json.
    """

    name: str
    config: dict[str, Any]


LLAMA_3_1_8B = Shape(
    "Llama-3.1-8B",
    {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "hidden_act": "silu",
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    },
)
QWEN2_5_7B = Shape(
    "Qwen2.5-7B",
    {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 151643,
        "eos_token_id": 151643,
    },
)
QWEN3_0_6B = Shape(
    "Qwen3-0.6B",
    {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "hidden_act": "silu",
        "attention_bias": False,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": 151643,
        "eos_token_id": 151645,
    },
)
TINY = Shape(
    "tiny Llama",
    {
        **LLAMA_3_1_8B.config,
        "vocab_size": 10240,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 512,
        "rope_scaling": None,
        "bos_token_id": 0,
        "eos_token_id": 1,
    },
)


def write_model(directory: Path, shape: Shape) -> Path:
    """Writes config.json and what a router needs; returns the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    files = {
        "config.json": shape.config,
        "tokenizer.json": _tokenizer(shape.config["vocab_size"]),
        "tokenizer_config.json": {},
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content), encoding="utf-8")
    return directory


def _tokenizer(vocab_size: int) -> dict[str, Any]:
    """Byte-level BPE that merges nothing: one token for each byte, then words."""
    spelled = [_spelled(byte) for byte in range(256)]
    words = ("".join(letters) for letters in itertools.product(string.ascii_lowercase, repeat=4))
    spaced = (f"Ġ{word}" for word in words)
    tokens = [*spelled, *itertools.islice(spaced, vocab_size - len(spelled))]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {**byte_level, "use_regex": True},
        "post_processor": None,
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [],
        },
    }


def _spelled(byte: int) -> str:
    """How byte-level tokenizers write a byte: itself if it prints, else a letter from U+0100 on."""
    return chr(byte) if _prints(byte) else chr(0x100 + sum(not _prints(b) for b in range(byte)))


def _prints(byte: int) -> bool:
    return 0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xAC or 0xAE <= byte <= 0xFF
