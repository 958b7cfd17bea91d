"""A GGUF file read as a model directory: its configuration and tensors, as Hugging Face names them.

GGUF keeps llama models with their own key and tensor names, and with the rows of the query and key
projections permuted (rotary pairs beside each other instead of in halves); both are undone here.
Quantized matrices come out in codes (`worker.gguf_blocks`), those of formats that have none there
in float32.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader
from gguf.quants import dequantize

from worker.checkpoint import CODES, OFFSET, SCALE
from worker.gguf_blocks import has_codes, read_blocks
from worker.gguf_header import HeaderError, check_header
from worker.models.config import IN_CODES

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
_MAX_WIDTH, _MAX_HEADS, _MAX_LAYERS, _MAX_CONTEXT = 1 << 20, 1 << 12, 1 << 12, 1 << 31
_LAYER_TENSOR = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


class ConvertError(Exception):
    """The file cannot be converted; the message is one line that says why."""


Array = npt.NDArray[np.generic]
Arrays = dict[str, Array]


@dataclass(frozen=True)
class StoredTensor:
    """One tensor on its way out: an array, or those that a matrix in codes consists of.

    Attributes:
        outline: by Hugging Face's name, number format and shape of each array, rows first.
        read: gives the arrays, in this order.
    """

    outline: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]
    read: Callable[[], Arrays]


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
            check_header(path)
            self._reader = GGUFReader(path)
        except (HeaderError, ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
            size = path.stat().st_size
            raise ConvertError(f"{path}: truncated or damaged ({size} bytes): {error}") from error
        architecture = self.get("general.architecture")
        if architecture != "llama":
            raise ConvertError(f"{path}: architecture {architecture!r}; only 'llama' is converted")

    def get(self, key: str, default: Any = None) -> Any:
        """A metadata value, or the default where the key is absent."""
        field = self._reader.get_field(key)
        try:
            return default if field is None else field.contents()
        except ValueError as error:
            raise ConvertError(f"{self.path}: {key} cannot be read: {error}") from error

    def require(self, key: str) -> Any:
        """A metadata value.

        Raises:
            ConvertError: the key is absent.
        """
        value = self.get(key)
        if value is None:
            raise ConvertError(f"{self.path}: no {key} in its metadata")
        return value

    def whole(self, key: str, least: int, most: int, default: int | None = None) -> int:
        """A whole number within limits; one that must be there where there is no default.

        Raises:
            ConvertError: it is absent, or something else.
        """
        value = self.require(key) if default is None else self.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ConvertError(
                f"{self.path}: {key} is {str(value)[:80]!r}; it must be a whole number, {least} to "
                f"{most}"
            )
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """The same for a number above 0, as it was meant."""
        value = self.require(key) if default is None else self.get(key, default)
        if not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise ConvertError(f"{self.path}: {key} is {str(value)[:80]!r}; it must be above 0")
        return _shortest(value)

    def texts(self, key: str) -> list[str]:
        """A list of texts."""
        values = self.require(key)
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise ConvertError(f"{self.path}: {key} must be a list of texts")
        return values

    def token_id(self, kind: str) -> int | None:
        """Of a special token (bos, eos, unknown, padding); None where there is none."""
        key = f"tokenizer.ggml.{kind}_token_id"
        if self.get(key) is None:
            return None
        return self.whole(key, 0, len(self.texts("tokenizer.ggml.tokens")) - 1)

    def config(self) -> dict[str, Any]:
        """What config.json will say.

        Raises:
            ConvertError: the metadata lacks a field or asks for what is not supported.
        """
        heads, hidden = self._num_heads, self.whole("llama.embedding_length", 1, _MAX_WIDTH)
        head_dim = self.whole("llama.attention.key_length", 1, _MAX_WIDTH, max(1, hidden // heads))
        names = {tensor.name for tensor in self._reader.tensors}
        self._refuse_unsupported(head_dim, names)
        config = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": len(self.texts("tokenizer.ggml.tokens")),
            "hidden_size": hidden,
            "intermediate_size": self.whole("llama.feed_forward_length", 1, _MAX_WIDTH),
            "num_hidden_layers": self.whole("llama.block_count", 1, _MAX_LAYERS),
            "num_attention_heads": heads,
            "num_key_value_heads": self._num_kv_heads,
            "head_dim": head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.whole("llama.context_length", 1, _MAX_CONTEXT),
            "rms_norm_eps": self.real("llama.attention.layer_norm_rms_epsilon"),
            "rope_theta": self.real("llama.rope.freq_base", 10000.0),
            "rope_scaling": self._rope_scaling(),
            "attention_bias": "blk.0.attn_q.bias" in names,
            "mlp_bias": "blk.0.ffn_gate.bias" in names,
            "tie_word_embeddings": "output.weight" not in names,
            "bos_token_id": self.token_id("bos"),
            "eos_token_id": self.token_id("eos"),
            "pad_token_id": self.token_id("padding"),
            "dtype": "float32",
        }
        self._check_shapes(config)
        if any(has_codes(tensor.tensor_type) for tensor in self._reader.tensors):
            config["quantization_config"] = IN_CODES
        return config

    @property
    def _num_heads(self) -> int:
        return self.whole("llama.attention.head_count", 1, _MAX_HEADS)

    @property
    def _num_kv_heads(self) -> int:
        key, heads = "llama.attention.head_count_kv", self._num_heads
        count = self.whole(key, 1, heads, heads)
        if heads % count:
            raise ConvertError(f"{self.path}: {key} is {count}; it must divide {heads}")
        return count

    def _check_shapes(self, config: dict[str, Any]) -> None:
        """Raises ConvertError unless every tensor is there, in the shape that the rest says."""
        hidden, mlp = config["hidden_size"], config["intermediate_size"]
        rows = config["num_attention_heads"] * config["head_dim"]
        kv_rows = config["num_key_value_heads"] * config["head_dim"]
        expected = {
            "token_embd.weight": (config["vocab_size"], hidden),
            "output_norm.weight": (hidden,),
        }
        if not config["tie_word_embeddings"]:
            expected["output.weight"] = (config["vocab_size"], hidden)
        for layer in range(config["num_hidden_layers"]):
            weights = {
                "attn_norm": (hidden,),
                "ffn_norm": (hidden,),
                "attn_q": (rows, hidden),
                "attn_k": (kv_rows, hidden),
                "attn_v": (kv_rows, hidden),
                "attn_output": (hidden, rows),
                "ffn_gate": (mlp, hidden),
                "ffn_up": (mlp, hidden),
                "ffn_down": (hidden, mlp),
            }
            for kind, shape in weights.items():
                expected[f"blk.{layer}.{kind}.weight"] = shape
        shapes = {
            tensor.name: tuple(int(size) for size in reversed(tensor.shape))
            for tensor in self._reader.tensors
        }
        for name, shape in expected.items():
            if name not in shapes:
                raise ConvertError(f"{self.path}: tensor {name} is missing")
            if shapes[name] != shape:
                raise ConvertError(
                    f"{self.path}: tensor {name} has the shape {shapes[name]}; it must be {shape}"
                )
        for name, shape in shapes.items():
            if name.endswith(".bias"):
                weight = expected.get(f"{name.removesuffix('.bias')}.weight", ())
                if shape != weight[:1]:
                    raise ConvertError(
                        f"{self.path}: tensor {name} has the shape {shape}; it must be {weight[:1]}"
                    )
            elif name not in expected:
                self._hugging_face_name(name)  # or it has no place at all
                raise ConvertError(f"{self.path}: tensor {name} is of no layer that there is")

    def tensors(self) -> list[StoredTensor]:
        """All tensors, in file order.

        Raises:
            ConvertError: a tensor has no place in a llama model.
        """
        permuted = {"attn_q": self._num_heads, "attn_k": self._num_kv_heads}
        converted = []
        for tensor in self._reader.tensors:
            name, kind = self._hugging_face_name(tensor.name)
            converted.append(_stored(name, tensor, permuted.get(kind)))
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
        return {"rope_type": "linear", "factor": self.real("llama.rope.scaling.factor")}


def _stored(name: str, tensor: Any, permuted_heads: int | None) -> StoredTensor:
    shape = tuple(int(size) for size in reversed(tensor.shape))

    def read_codes(num_rows: int) -> Arrays:
        data = tensor.data[:num_rows]
        matrix = read_blocks(data, tensor.tensor_type, num_rows) if len(shape) == 2 else None
        if matrix is None:
            return {}
        parts = {CODES: matrix.codes, SCALE: matrix.scale, OFFSET: matrix.offset}
        return {name + end: part.numpy() for end, part in parts.items() if part is not None}

    def read() -> Arrays:
        arrays = read_codes(shape[0]) or {name: _floats(tensor)}
        if permuted_heads is not None:
            arrays = {key: unpermute(rows, permuted_heads) for key, rows in arrays.items()}
        return {key: np.ascontiguousarray(array) for key, array in arrays.items()}

    of_one_row = read_codes(1)
    outline = {key: (row.dtype, (shape[0], row.shape[1])) for key, row in of_one_row.items()}
    return StoredTensor(outline or {name: (np.dtype(np.float32), shape)}, read)


def _floats(tensor: Any) -> npt.NDArray[np.float32]:
    try:
        with np.errstate(all="ignore"):  # whatever the bytes are, they are numbers
            values: npt.NDArray[np.float32] = dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        raise ConvertError(f"tensor {tensor.name}: {error}") from error
    return values.astype(np.float32, copy=False)


def unpermute(rows: Array, num_heads: int) -> Array:
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
