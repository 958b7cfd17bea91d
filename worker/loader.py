"""From a model directory to a model that can run: whole, or a `LoadError` with one clear line.

Configuration and all weight-file headers are checked before the first weight is read, so nothing is
ever half loaded.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kernels import ops
from kernels.quantized import Matrix
from worker.backends import (
    WITH_TORCH,
    Backend,
    Computed,
    NativeBackend,
    Wishes,
    choose_backend,
)
from worker.checkpoint import Checkpoint, CheckpointError
from worker.executor import Model
from worker.lane import Lane
from worker.loading_progress import loading
from worker.models.config import DTYPES, ModelConfig
from worker.models.decoder import Decoder
from worker.models.fields import UnsupportedModelError
from worker.models.registry import build_model, checkpoint_tensors, parse_config
from worker.models.weights import Pack, Part, ReadTensor, Weights
from worker.packed_cache import PackedCache, Packing, packed_identity
from worker.packed_file import PackedFile, PackedReader
from worker.parallel import ALONE, Group
from worker.plans import Pooling
from worker.pooling import Pooler
from worker.quantization import WeightSource, describe, quantized_as
from worker.random_weights import RandomWeights
from worker.sentences import SentencePooling, read_pooling

log = logging.getLogger(__name__)


class LoadError(Exception):
    """The directory cannot be served; the message is one line that says why."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What the rest of the worker must know of any model.

    Attributes:
        dtype: number format of weights and KV.
        max_model_len: the longest sequence served, in tokens.
        revision: changes whenever configuration or weights do.
        weight_bytes: memory that the weights occupy.
        pooling: how prompts become vectors.
        mapped_bytes: those of them in pages of a file, which other processes may share.
    """

    dtype: torch.dtype
    max_model_len: int
    revision: str
    weight_bytes: int
    pooling: SentencePooling
    mapped_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class LoadedModel(Loaded):
    """A model that generates.

    Attributes:
        config: dimensions and constants.
        share: those of what this rank computes.
        model: the weights and the forward pass.
        backend: what computes it.
    """

    config: ModelConfig
    share: ModelConfig
    model: Model
    backend: Backend

    @property
    def embedding_dim(self) -> int:
        """Numbers in a vector."""
        return self.config.hidden_size

    def pooler(self, max_num_seqs: int, device: torch.device, lane: Lane | None = None) -> Pooler:
        """For so many slots; see `Pooler`."""
        return Pooler(
            self.pooling,
            max_num_seqs=max_num_seqs,
            hidden_size=self.config.hidden_size,
            vocab_size=self.config.vocab_size,
            device=device,
            lane=lane,
        )


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A directory whose configuration and weight-file headers have been checked.

    Attributes:
        path: the directory.
        dtype: number format that weights and KV will have.
        max_model_len: the longest sequence served, in tokens.
        device: where the weights will go.
        weights: unread.
        num_tensors: so many are to be read.
        pooling: how prompts become vectors.
    """

    path: Path
    dtype: torch.dtype
    max_model_len: int
    device: torch.device
    weights: WeightSource
    num_tensors: int
    pooling: SentencePooling

    @property
    def keeps_codes(self) -> bool:
        """Whether matrices are computed with as they are kept; else they are read as floats."""
        return False

    def shape(self, name: str, shape: tuple[int, ...], part: Part) -> Matrix:
        """In place of a tensor one that has its size, and no memory."""
        codes = self.weights.outline(name) if self.keeps_codes else None
        return torch.empty(shape, dtype=self.dtype, device="meta")[part] if codes is None else codes

    def tensor(self, name: str, shape: tuple[int, ...], part: Part) -> Matrix:
        """Reads one, or part of it."""
        codes = self.weights.read_codes(name) if self.keeps_codes else None
        if codes is not None:
            return codes
        return self.weights.read(name, part, self.dtype, self.device)

    @contextmanager
    def reading(self) -> Iterator[ReadTensor]:
        """Reads tensors, and says how far it is."""
        with loading(self.path.resolve().name, self.num_tensors) as advance:

            def read(name: str, shape: tuple[int, ...], part: Part) -> Matrix:
                tensor = self.tensor(name, shape, part)
                advance()
                return tensor

            yield read

    def revision(self) -> str:
        """Changes whenever configuration or weights do."""
        digest = hashlib.blake2b((self.path / "config.json").read_bytes(), digest_size=16)
        digest.update(str(self.dtype).encode())
        self.weights.update_digest(digest)
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class OpenedModel(Opened):
    """That of a model that generates.

    Attributes:
        config: dimensions and constants.
        share: those of what this rank computes.
        group: the ranks that share the model.
        backend: what will compute.
        packed_cache: where packed matrices are kept; None for this process's memory.
        quantization: as it was asked for.
    """

    config: ModelConfig
    share: ModelConfig
    group: Group
    backend: Backend
    packed_cache: PackedCache | None
    quantization: str

    @property
    def keeps_codes(self) -> bool:
        """See `Opened.keeps_codes`."""
        return self.backend.keeps_codes

    @property
    def weight_bytes(self) -> int:
        """Memory that this rank's weights will occupy, but for a tied head's packed copy."""
        weights = self._weights(self.shape, self.backend.pack)
        read = build_model(self.config, weights, ops.REFERENCE, max_model_len=1)
        return self.backend.footprint(read)

    def load(self) -> LoadedModel:
        """Reads the weights; returns when every rank has.

        Raises:
            LoadError: they cannot be read, or not compiled.
            LostRankError: another rank has gone.
        """
        with opening(self.path):
            revision = self.revision()
            packed = self._packed(revision)
            decoder = None if packed is None else self._mapped(packed)
            if decoder is None:
                packed, decoder = None, self._read(self.backend.pack)
            weight_bytes = self.backend.footprint(decoder)
            model = self.backend.compiled(decoder)
        self.group.meet()  # the first step waits for seconds, not for a rank that still loads
        return LoadedModel(
            config=self.config,
            share=self.share,
            model=model,
            backend=self.backend,
            dtype=self.dtype,
            max_model_len=self.max_model_len,
            revision=revision,
            weight_bytes=weight_bytes,
            pooling=self.pooling,
            mapped_bytes=0 if packed is None else packed.num_bytes,
        )

    def _weights(self, read: ReadTensor, pack: Pack) -> Weights:
        packs_embedding = isinstance(self.backend, NativeBackend)
        return Weights(read, self.group, pack=pack, packs_embedding=packs_embedding)

    def _read(self, pack: Pack) -> Decoder:
        with self.reading() as read:
            return self.backend.read(self.config, self._weights(read, pack), self.max_model_len)

    def _packed(self, revision: str) -> PackedFile | None:
        """The matrices in a file; None if they are not kept in one."""
        if self.packed_cache is None or not isinstance(self.backend, NativeBackend):
            return None
        identity = packed_identity(self.path, revision, self.quantization)
        packing = Packing(self.path, identity, self.weight_bytes, self.num_tensors)
        return self.packed_cache.mapped(packing, lambda writer: self._read(writer.pack))

    def _mapped(self, packed: PackedFile) -> Decoder | None:
        """Of the checkpoint only vectors are read. None: the file is of another model."""

        def read(name: str, shape: tuple[int, ...], part: Part) -> Matrix:
            give = self.shape if len(shape) == 2 else self.tensor
            return give(name, shape, part)

        weights = self._weights(read, PackedReader(packed).pack)
        try:
            return self.backend.read(self.config, weights, self.max_model_len)
        except CheckpointError as error:
            log.warning("packed matrices are not used: %s", error)
            return None


def open_model(
    path: Path,
    *,
    dtype: str,
    device: torch.device,
    max_model_len: int | None = None,
    load_format: str = "auto",
    group: Group = ALONE,
    pooling: Pooling | None = None,
    wishes: Wishes = WITH_TORCH,
    packed_cache: PackedCache | None = None,
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
        pooling: of embeddings; None for what the model says.
        wishes: how a step is to be computed.
        packed_cache: where packed matrices are kept, if they are no random ones; None: not at all.

    Raises:
        LoadError: the directory is missing, incomplete, damaged or not supported.
    """
    with opening(path):
        config = parse_config(read_config(path))
        _check_device(config, device)
        how = read_pooling(path, is_encoder=False, asked=pooling)
        share = config.share(group.shard)
        length = model_length(config.max_position, max_model_len)
        shapes = checkpoint_tensors(config)
        found = weight_source(path, shapes, load_format, _ignored_tensors(config))
        weights = quantized_as(wishes.quantization, found, shapes)
        number_format = weight_dtype(config.dtype, dtype, device)
        has_codes = any(weights.outline(name) is not None for name in shapes)
        computed = Computed(has_codes, device, number_format, group.world_size, length)
        backend = choose_backend(wishes, computed)
        if said := describe(weights, shapes, backend.keeps_codes):
            log.info("%s computes %s", backend.name, said)
    return OpenedModel(
        path=path,
        config=config,
        share=share,
        group=group,
        backend=backend,
        packed_cache=None if load_format == "dummy" else packed_cache,
        quantization=wishes.quantization,
        dtype=number_format,
        max_model_len=length,
        device=device,
        weights=weights,
        num_tensors=len(shapes),
        pooling=how,
    )


def load_model(
    path: Path,
    *,
    dtype: str,
    device: torch.device,
    max_model_len: int | None = None,
    load_format: str = "auto",
    group: Group = ALONE,
    pooling: Pooling | None = None,
    wishes: Wishes = WITH_TORCH,
    packed_cache: PackedCache | None = None,
) -> LoadedModel:
    """Opens a Hugging Face directory and reads its weights; see `open_model`."""
    opened = open_model(
        path,
        dtype=dtype,
        device=device,
        max_model_len=max_model_len,
        load_format=load_format,
        group=group,
        pooling=pooling,
        wishes=wishes,
        packed_cache=packed_cache,
    )
    return opened.load()


@contextmanager
def opening(path: Path) -> Iterator[None]:
    """Turns what is wrong with the directory into a `LoadError`."""
    try:
        yield
    except (UnsupportedModelError, CheckpointError, OSError) as error:
        raise LoadError(f"model {path}: {error}") from error


def weight_source(
    path: Path, shapes: Mapping[str, tuple[int, ...]], load_format: str, ignored: set[str]
) -> WeightSource:
    """The checkpoint in a directory, which has the tensors of these shapes; others may be ignored.

    Or random weights, where `load_format` is "dummy". Raises `CheckpointError`.
    """
    if load_format == "dummy":
        return RandomWeights(shapes)
    checkpoint = Checkpoint.open(path)
    if "embed_tokens.weight" in checkpoint.entries:
        # Saved without its head, as models that were trained to embed are.
        checkpoint = checkpoint.under("model.")
    checkpoint.check_shapes(shapes, ignored)
    return checkpoint


def read_config(path: Path) -> Mapping[str, Any]:
    """The object in a directory's config.json. Raises `LoadError`."""
    if not path.is_dir():
        raise LoadError(f"model {path}: no such directory")
    file = path / "config.json"
    if not file.is_file():
        raise LoadError(f"model {path}: no {file.name} in it")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LoadError(f"model {path}: {file.name} is not valid JSON: {error}") from error
    if not isinstance(raw, dict):
        raise LoadError(f"model {path}: {file.name} is not a JSON object")
    return raw


def model_length(limit: int, asked: int | None, usual: int | None = None) -> int:
    """Tokens of the longest sequence served: what was asked for, else the usual, else the limit.

    Raises `UnsupportedModelError` for more than the limit.
    """
    length = min(usual or limit, limit) if asked is None else asked
    if not 1 <= length <= limit:
        raise UnsupportedModelError(f"max_model_len is {length}; this model has 1 to {limit}")
    return length


def weight_dtype(declared: torch.dtype, asked: str, device: torch.device) -> torch.dtype:
    """Number format of the weights: what was asked for; "auto" is float32 on a CPU and what the
    checkpoint declares elsewhere."""
    if asked != "auto":
        return DTYPES[asked]
    return torch.float32 if device.type == "cpu" else declared


def _check_device(config: ModelConfig, device: torch.device) -> None:
    try:
        ops.check_head_dim(device, config.head_dim)
    except ValueError as error:
        raise UnsupportedModelError(f"on {device.type}, {error}") from error


def _ignored_tensors(config: ModelConfig) -> set[str]:
    """Tensors that older checkpoints carry and the model computes or shares."""
    ignored = {
        f"model.layers.{index}.self_attn.rotary_emb.inv_freq" for index in range(config.num_layers)
    }
    return ignored | ({"lm_head.weight"} if config.tied_embeddings else set())
