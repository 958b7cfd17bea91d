"""From an encoder's directory to a model that can run, as `worker.loader` does for decoders."""

from dataclasses import dataclass
from pathlib import Path

import torch

from worker.loader import (
    Loaded,
    Opened,
    model_length,
    opening,
    read_config,
    weight_dtype,
    weight_source,
)
from worker.models.encoder import Encoder, EncoderConfig, encoder_tensors, is_encoder, parse_encoder
from worker.models.weights import Weights
from worker.plans import Pooling
from worker.sentences import read_pooling, sentence_length

_UNUSED = {
    # What a checkpoint may have besides; the pooler is the head of another task.
    "embeddings.position_ids",
    "embeddings.token_type_ids",
    "pooler.dense.weight",
    "pooler.dense.bias",
}


@dataclass(frozen=True, kw_only=True)
class LoadedEncoder(Loaded):
    """An encoder.

    Attributes:
        config: dimensions and constants.
        model: the weights and the forward pass.
    """

    config: EncoderConfig
    model: Encoder

    @property
    def embedding_dim(self) -> int:
        """Numbers in a vector."""
        return self.config.hidden_size


@dataclass(frozen=True, kw_only=True)
class OpenedEncoder(Opened):
    """That of an encoder.

    Attributes:
        config: dimensions and constants.
    """

    config: EncoderConfig

    @property
    def weight_bytes(self) -> int:
        """Memory that the weights will occupy."""
        return Encoder(self.config, Weights(self.shape)).weight_bytes

    def load(self) -> LoadedEncoder:
        """Reads the weights."""
        with self.reading() as read:
            model = Encoder(self.config, Weights(read))
        return LoadedEncoder(
            config=self.config,
            model=model,
            dtype=self.dtype,
            max_model_len=self.max_model_len,
            revision=self.revision(),
            weight_bytes=model.weight_bytes,
            pooling=self.pooling,
        )


def holds_encoder(path: Path) -> bool:
    """Whether the directory is an encoder's. Raises `LoadError`."""
    return is_encoder(read_config(path))


def open_encoder(
    path: Path,
    *,
    dtype: str,
    device: torch.device,
    max_model_len: int | None = None,
    load_format: str = "auto",
    pooling: Pooling | None = None,
) -> OpenedEncoder:
    """Opens a Hugging Face directory: its configuration and weight headers are right.

    Args:
        path: holds config.json and, unless weights are random, safetensors.
        dtype: as of `worker.loader.open_model`.
        device: where the weights go.
        max_model_len: tokens; None for what sentence-transformers truncates at, else the model's.
        load_format: "auto" reads safetensors, "dummy" makes random weights.
        pooling: None for what the model says.

    Raises:
        LoadError: the directory is missing, incomplete, damaged or not supported.
    """
    with opening(path):
        config = parse_encoder(read_config(path))
        how = read_pooling(path, is_encoder=True, asked=pooling)
        length = model_length(config.max_position, max_model_len, sentence_length(path))
        shapes = encoder_tensors(config)
        weights = weight_source(path, shapes, load_format, _UNUSED)
    return OpenedEncoder(
        path=path,
        config=config,
        dtype=weight_dtype(config.dtype, dtype, device),
        max_model_len=length,
        device=device,
        weights=weights,
        num_tensors=len(shapes),
        pooling=how,
    )
