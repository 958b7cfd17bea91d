"""From a model directory to a model that can run: whole, or a `LoadError` with one clear line.

Configuration and all weight-file headers are checked before the first weight is read, so nothing is
ever half loaded.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from kernels import ops
from kernels.warm_up import warm_up
from worker.checkpoint import Checkpoint, CheckpointError
from worker.loading_progress import loading
from worker.models.config import DTYPES, ModelConfig
from worker.models.decoder import Decoder
from worker.models.fields import UnsupportedModelError
from worker.models.registry import build_model, checkpoint_tensors, parse_config
from worker.models.weights import Part, Weights
from worker.parallel import ALONE, Group
from worker.random_weights import RandomWeights


class LoadError(Exception):
    """The directory cannot be served; the message is one line that says why."""


class WeightSource(Protocol):
    """A checkpoint, or what stands in for one."""

    def read(self, name: str, part: Part, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """One tensor, or the part of it with one slice per axis, converted and placed."""
        ...

    def update_digest(self, digest: "hashlib.blake2b") -> None:
        """Feeds what changes whenever the weights do."""
        ...


@dataclass(frozen=True)
class LoadedModel:
    """A model and what the rest of the worker must know of it.

    Attributes:
        config: dimensions and constants.
        share: those of what this rank computes.
        model: the weights and the forward pass.
        dtype: number format of weights and KV.
        max_model_len: the longest sequence served, in tokens.
        revision: changes whenever configuration or weights do.
        weight_bytes: memory that the weights occupy.
    """

    config: ModelConfig
    share: ModelConfig
    model: Decoder
    dtype: torch.dtype
    max_model_len: int
    revision: str
    weight_bytes: int


@dataclass(frozen=True)
class OpenedModel:
    """A directory whose configuration and weight-file headers have been checked.

    Attributes:
        path: the directory.
        config: dimensions and constants.
        share: those of what this rank computes.
        group: the ranks that share the model.
        dtype: number format that weights and KV will have.
        max_model_len: the longest sequence served, in tokens.
        device: where the weights will go.
        weights: unread.
        num_tensors: so many are to be read.
    """

    path: Path
    config: ModelConfig
    share: ModelConfig
    group: Group
    dtype: torch.dtype
    max_model_len: int
    device: torch.device
    weights: WeightSource
    num_tensors: int

    def load(self) -> LoadedModel:
        """Reads the weights; returns when every rank has.

        Raises LostRankError.
        """
        kernels = ops.select(self.device, self.dtype)
        with loading(self.path.resolve().name, self.num_tensors) as advance:

            def read(name: str, shape: tuple[int, ...], part: Part) -> torch.Tensor:
                tensor = self.weights.read(name, part, self.dtype, self.device)
                advance()
                return tensor

            model = build_model(self.config, Weights(read, self.group), kernels, self.max_model_len)
        warm_up(kernels, self.device, self.dtype)
        digest = hashlib.blake2b((self.path / "config.json").read_bytes(), digest_size=16)
        digest.update(str(self.dtype).encode())
        self.weights.update_digest(digest)
        self.group.meet()  # the first step waits for seconds, not for a rank that still loads
        return LoadedModel(
            config=self.config,
            share=self.share,
            model=model,
            dtype=self.dtype,
            max_model_len=self.max_model_len,
            revision=digest.hexdigest(),
            weight_bytes=model.weight_bytes,
        )


def open_model(
    path: Path,
    *,
    dtype: str,
    device: torch.device,
    max_model_len: int | None = None,
    load_format: str = "auto",
    group: Group = ALONE,
) -> OpenedModel:
    """Opens a Hugging Face directory.

    Args:
        path: holds config.json and, unless weights are random, safetensors, sharded or not.
        dtype: "auto", "float32", "bfloat16" or "float16"; auto is float32 on a CPU and what the
            checkpoint declares elsewhere.
        device: where the weights go.
        max_model_len: tokens; None for the model's own limit.
        load_format: "auto" reads safetensors, "dummy" makes random weights.
        group: the ranks that share the model; each reads its part.

    Raises:
        LoadError: the directory is missing, incomplete, damaged or not supported.
    """
    try:
        raw = _read_json(path, "config.json")
        config = parse_config(raw)
        share = config.share(group.shard)
        length = _model_length(config, max_model_len)
        shapes = checkpoint_tensors(config)
        weights = (
            RandomWeights(shapes)
            if load_format == "dummy"
            else _checked_checkpoint(path, config, shapes)
        )
    except (UnsupportedModelError, CheckpointError, OSError) as error:
        raise LoadError(f"model {path}: {error}") from error
    weight_dtype = _weight_dtype(config, dtype, device)
    return OpenedModel(
        path, config, share, group, weight_dtype, length, device, weights, len(shapes)
    )


def load_model(
    path: Path,
    *,
    dtype: str,
    device: torch.device,
    max_model_len: int | None = None,
    load_format: str = "auto",
    group: Group = ALONE,
) -> LoadedModel:
    """Opens a Hugging Face directory and reads its weights; see `open_model`."""
    opened = open_model(
        path,
        dtype=dtype,
        device=device,
        max_model_len=max_model_len,
        load_format=load_format,
        group=group,
    )
    return opened.load()


def _checked_checkpoint(
    path: Path, config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]
) -> Checkpoint:
    checkpoint = Checkpoint.open(path)
    checkpoint.check_shapes(shapes, _ignored_tensors(config))
    return checkpoint


def _read_json(path: Path, name: str) -> Mapping[str, Any]:
    if not path.is_dir():
        raise LoadError(f"model {path}: no such directory")
    file = path / name
    if not file.is_file():
        raise LoadError(f"model {path}: no {name} in it")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LoadError(f"model {path}: {name} is not valid JSON: {error}") from error
    if not isinstance(raw, dict):
        raise LoadError(f"model {path}: {name} is not a JSON object")
    return raw


def _model_length(config: ModelConfig, asked: int | None) -> int:
    limit = config.max_position
    length = limit if asked is None else asked
    if not 1 <= length <= limit:
        raise UnsupportedModelError(f"max_model_len is {length}; this model has 1 to {limit}")
    return length


def _weight_dtype(config: ModelConfig, asked: str, device: torch.device) -> torch.dtype:
    if asked != "auto":
        return DTYPES[asked]
    return torch.float32 if device.type == "cpu" else config.dtype


def _ignored_tensors(config: ModelConfig) -> set[str]:
    """Tensors that older checkpoints carry and the model computes or shares."""
    ignored = {
        f"model.layers.{index}.self_attn.rotary_emb.inv_freq" for index in range(config.num_layers)
    }
    return ignored | ({"lm_head.weight"} if config.tied_embeddings else set())
