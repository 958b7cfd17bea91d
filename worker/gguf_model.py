"""A GGUF file read as a Hugging Face model: its configuration and its tensors.

GGUF keeps llama models with their own key and tensor names, and with the rows of the query and key
projections permuted (rotary pairs beside each other instead of in halves); both are undone here.
Quantized tensors come out in float32.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader
from gguf.quants import dequantize

_PLAIN_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_TENSOR = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


class ConvertError(Exception):
    """The file cannot be converted; the message is one line that says why."""


@dataclass(frozen=True)
class FloatTensor:
    """One tensor on its way out.

    Attributes:
        name: Hugging Face's.
        shape: rows first.
        read: dequantizes, gives a float32 array of that shape.
    """

    name: str
    shape: tuple[int, ...]
    read: Callable[[], npt.NDArray[np.float32]]


class GGUFModel:
    """An open GGUF file of the llama architecture.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        """Reads the metadata and checks that every tensor lies within the file.

        Raises:
            ConvertError: no such file, not GGUF, truncated, or another architecture.
        """
        self.path = path
        if not path.is_file():
            raise ConvertError(f"{path}: no such file")
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ConvertError(f"{path}: not a GGUF file")
        try:
            self._reader = GGUFReader(path)
        except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
            # The reader slices the mapped file: a range beyond its end shows as a bad reshape.
            size = path.stat().st_size
            raise ConvertError(f"{path}: truncated or damaged ({size} bytes): {error}") from error
        architecture = self.get("general.architecture")
        if architecture != "llama":
            raise ConvertError(f"{path}: architecture {architecture!r}; only 'llama' is converted")

    def get(self, key: str, default: Any = None) -> Any:
        """A metadata value, or the default where the key is absent."""
        field = self._reader.get_field(key)
        return default if field is None else field.contents()

    def require(self, key: str) -> Any:
        """A metadata value.

        Raises:
            ConvertError: the key is absent.
        """
        value = self.get(key)
        if value is None:
            raise ConvertError(f"{self.path}: no {key} in its metadata")
        return value

    def config(self) -> dict[str, Any]:
        """What config.json will say.

        Raises:
            ConvertError: the metadata lacks a field or asks for what is not supported.
        """
        heads = self.require("llama.attention.head_count")
        hidden = self.require("llama.embedding_length")
        head_dim = self.get("llama.attention.key_length", hidden // heads)
        names = {tensor.name for tensor in self._reader.tensors}
        self._refuse_unsupported(head_dim, names)
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": len(self.require("tokenizer.ggml.tokens")),
            "hidden_size": hidden,
            "intermediate_size": self.require("llama.feed_forward_length"),
            "num_hidden_layers": self.require("llama.block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self.get("llama.attention.head_count_kv", heads),
            "head_dim": head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.require("llama.context_length"),
            "rms_norm_eps": _shortest(self.require("llama.attention.layer_norm_rms_epsilon")),
            "rope_theta": _shortest(self.get("llama.rope.freq_base", 10000.0)),
            "rope_scaling": self._rope_scaling(),
            "attention_bias": "blk.0.attn_q.bias" in names,
            "mlp_bias": "blk.0.ffn_gate.bias" in names,
            "tie_word_embeddings": "output.weight" not in names,
            "bos_token_id": self.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": self.get("tokenizer.ggml.eos_token_id"),
            "pad_token_id": self.get("tokenizer.ggml.padding_token_id"),
            "dtype": "float32",
        }

    def tensors(self) -> list[FloatTensor]:
        """All tensors, in file order.

        Raises:
            ConvertError: a tensor has no place in a llama model.
        """
        heads = self.require("llama.attention.head_count")
        kv_heads = self.get("llama.attention.head_count_kv", heads)
        permuted = {"attn_q": heads, "attn_k": kv_heads}
        converted = []
        for tensor in self._reader.tensors:
            name, kind = self._hugging_face_name(tensor.name)
            shape = tuple(int(size) for size in reversed(tensor.shape))
            converted.append(FloatTensor(name, shape, _reader_of(tensor, permuted.get(kind))))
        return converted

    def _hugging_face_name(self, name: str) -> tuple[str, str]:
        """The name, and GGUF's word for what it is within its layer ("" outside layers)."""
        if name in _PLAIN_NAMES:
            return _PLAIN_NAMES[name], ""
        match = _LAYER_TENSOR.fullmatch(name)
        if match is None or match[2] not in _LAYER_NAMES:
            raise ConvertError(f"{self.path}: tensor {name} has no place in a llama model")
        return f"model.layers.{match[1]}.{_LAYER_NAMES[match[2]]}.{match[3]}", match[2]

    def _refuse_unsupported(self, head_dim: int, names: set[str]) -> None:
        rotated = self.get("llama.rope.dimension_count", head_dim)
        if rotated != head_dim:
            raise ConvertError(
                f"{self.path}: rope.dimension_count is {rotated}; "
                f"it must be the head dimension, {head_dim}"
            )
        if self.get("llama.expert_count", 0):
            raise ConvertError(f"{self.path}: mixtures of experts are not supported")
        if "rope_freqs.weight" in names:
            raise ConvertError(
                f"{self.path}: rope_freqs.weight (Llama 3.1 scaling baked into factors) is not "
                "supported; use the Hugging Face directory of this model"
            )

    def _rope_scaling(self) -> dict[str, Any] | None:
        kind = self.get("llama.rope.scaling.type", "none")
        if kind == "none":
            return None
        if kind != "linear":
            raise ConvertError(f"{self.path}: rope scaling {kind!r}; only 'linear' is supported")
        return {"rope_type": "linear", "factor": self.require("llama.rope.scaling.factor")}


def _reader_of(tensor: Any, permuted_heads: int | None) -> Callable[[], npt.NDArray[np.float32]]:
    def read() -> npt.NDArray[np.float32]:
        values: npt.NDArray[np.float32] = dequantize(tensor.data, tensor.tensor_type)
        if permuted_heads is not None:
            values = unpermute(values, permuted_heads)
        return np.ascontiguousarray(values, dtype="<f4")

    return read


def unpermute(rows: npt.NDArray[np.float32], num_heads: int) -> npt.NDArray[np.float32]:
    """Rows of each head from interleaved pairs (0, d/2, 1, d/2 + 1, ...) back to halves.

    Args:
        rows: [num_heads · head_dim, ...].
        num_heads: heads that the rows belong to.
    """
    pairs = rows.reshape(num_heads, -1, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _shortest(value: float) -> float:
    """The number meant by a float32: 9.999999747378752e-06 is 1e-05."""
    return float(str(np.float32(value)))
