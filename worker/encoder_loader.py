"""From an encoder's directory to a model that can run, as `worker.loader` does for decoders."""

from dataclasses import dataclass
from pathlib import Path

import torch

from worker.checkpoint import CheckpointError
from worker.loader import (
    LoadError,
    checked_checkpoint,
    model_length,
    read_config,
    revision_of,
    weight_dtype,
)
from worker.loading_progress import loading
from worker.models.encoder import Encoder, EncoderConfig, encoder_tensors, is_encoder, parse_encoder
from worker.models.fields import UnsupportedModelError
from worker.models.weights import Part, Weights
from worker.plans import Pooling
from worker.random_weights import RandomWeights
from worker.sentences import SentencePooling, read_pooling, sentence_length

_UNUSED = {
    # What a checkpoint may have besides; the pooler is the head of another task.
    "embeddings.position_ids",
    "embeddings.token_type_ids",
    "pooler.dense.weight",
    "pooler.dense.bias",
}


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder and what the rest of the worker must know of it.

    Attributes:
        config: dimensions and constants.
        model: the weights and the forward pass.
        dtype: number format of the weights.
        max_model_len: the longest prompt served, in tokens.
        revision: changes whenever configuration or weights do.
        weight_bytes: memory that the weights occupy.
        pooling: how prompts become vectors.
    """

    config: EncoderConfig
    model: Encoder
    dtype: torch.dtype
    max_model_len: int
    revision: str
    weight_bytes: int
    pooling: SentencePooling

    @property
    def embedding_dim(self) -> int:
        """Numbers in a vector."""
        return self.config.hidden_size


def holds_encoder(path: Path) -> bool:
    """Whether the directory is an encoder's. Raises `LoadError`."""
    return is_encoder(read_config(path))


def load_encoder(
    path: Path,
    *,
    dtype: str,
    device: torch.device,
    max_model_len: int | None = None,
    load_format: str = "auto",
    pooling: Pooling | None = None,
) -> LoadedEncoder:
    """Checks a Hugging Face directory's configuration and weight headers, then reads the weights.

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
    try:
        config = parse_encoder(read_config(path))
        how = read_pooling(path, is_encoder=True, asked=pooling)
        length = model_length(config.max_position, max_model_len, sentence_length(path))
        shapes = encoder_tensors(config)
        weights = (
            RandomWeights(shapes)
            if load_format == "dummy"
            else checked_checkpoint(path, shapes, _UNUSED)
        )
    except (UnsupportedModelError, CheckpointError, OSError) as error:
        raise LoadError(f"model {path}: {error}") from error
    number_format = weight_dtype(config.dtype, dtype, device)
    with loading(path.resolve().name, len(shapes)) as advance:

        def read(name: str, shape: tuple[int, ...], part: Part) -> torch.Tensor:
            tensor = weights.read(name, part, number_format, device)
            advance()
            return tensor

        model = Encoder(config, Weights(read))
    return LoadedEncoder(
        config=config,
        model=model,
        dtype=number_format,
        max_model_len=length,
        revision=revision_of(path, number_format, weights),
        weight_bytes=model.weight_bytes,
        pooling=how,
    )
