"""What computes the forward pass of a decoder: torch with a device's kernels, or native ones."""

import ctypes
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from kernels import ops
from kernels.jit import one_compiles
from kernels.linear import pack_parts
from kernels.native import library
from kernels.native.build import Instructions, NativeUnavailableError, built, choose
from kernels.native.outline import outline
from kernels.native.packing import LANES, PackedLinear
from kernels.quantized import Matrix
from kernels.warm_up import warm_up
from protos.blocks import BLOCK_SIZE
from worker.executor import Model
from worker.kv_cache import KVCache
from worker.loading_progress import unless_quick
from worker.models.config import ModelConfig
from worker.models.decoder import Decoder
from worker.models.fields import UnsupportedModelError
from worker.models.registry import build_model
from worker.models.weights import Weights
from worker.native import NativeDecoder, fastest_threads

log = logging.getLogger(__name__)


class Backend(Protocol):
    """Makes a forward pass of a model's weights."""

    @property
    def name(self) -> str:
        """For people."""
        ...

    @property
    def block_size(self) -> int:
        """Tokens of a block."""
        ...

    @property
    def kv_dtype(self) -> torch.dtype:
        """Number format of keys and values."""
        ...

    def pack(self, matrices: Sequence[Matrix]) -> torch.Tensor | PackedLinear:
        """Lays out the matrices of a linear map, which are one above the other."""
        ...

    @property
    def keeps_codes(self) -> bool:
        """Whether it computes with matrices in codes; else they are read as floats."""
        ...

    def read(self, config: ModelConfig, weights: Weights, max_model_len: int) -> Decoder:
        """Reads every weight once.

        Args:
            config: dimensions and constants.
            weights: gives the tensors, and packs them as `pack` does.
            max_model_len: the longest sequence it will see, in tokens.
        """
        ...

    def footprint(self, decoder: Decoder) -> int:
        """Bytes that the weights take once they are compiled."""
        ...

    def compiled(self, decoder: Decoder) -> Model:
        """What computes. Raises UnsupportedModelError if it cannot be made."""
        ...


@dataclass(frozen=True)
class TorchBackend:
    """Runs op by op: the kernels of `kernels.ops`, torch's matrix products.

    Attributes:
        device: where the weights are.
        dtype: their number format.
        block_size: tokens of a block.
    """

    device: torch.device
    dtype: torch.dtype
    block_size: int = BLOCK_SIZE

    name: ClassVar[str] = "torch"
    keeps_codes: ClassVar[bool] = False

    @property
    def kv_dtype(self) -> torch.dtype:
        """`Backend.kv_dtype`: as the weights."""
        return self.dtype

    def pack(self, matrices: Sequence[Matrix]) -> torch.Tensor | PackedLinear:
        """`Backend.pack`."""
        return pack_parts(matrices)

    def read(self, config: ModelConfig, weights: Weights, max_model_len: int) -> Decoder:
        """`Backend.read`."""
        kernels = ops.select(self.device, self.dtype)
        return build_model(config, weights, kernels, max_model_len)

    def footprint(self, decoder: Decoder) -> int:
        """`Backend.footprint`."""
        return decoder.weight_bytes

    def compiled(self, decoder: Decoder) -> Model:
        """`Backend.compiled`: the decoder itself."""
        if ops.compiles_ahead(self.device):
            _compile(ops.select(self.device, self.dtype), self.device, self.dtype)
        return decoder


def _compile(kernels: ops.Ops, device: torch.device, dtype: torch.dtype) -> None:
    with ExitStack() as alone:
        with unless_quick("another process compiles the CPU's kernels; waiting for it"):
            alone.enter_context(one_compiles())
        with unless_quick("compiling the CPU's kernels, once on this machine"):
            warm_up(kernels, device, dtype)


@dataclass(frozen=True)
class NativeBackend:
    """The kernels of `kernels.native`: a whole step in two calls, matrices in floats or in codes.

    Attributes:
        instructions: of the processor that they use.
        num_threads: that compute a step, at most.
        max_model_len: the longest sequence, in tokens.
        kv_dtype: float32 or float16.
        block_size: tokens of a block.
        measures_threads: whether fewer may compute, if that is faster.
    """

    instructions: Instructions
    num_threads: int
    max_model_len: int
    kv_dtype: torch.dtype = torch.float32
    block_size: int = BLOCK_SIZE
    measures_threads: bool = False

    keeps_codes: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """`Backend.name`."""
        return f"native {self.instructions.name}"

    def pack(self, matrices: Sequence[Matrix]) -> PackedLinear:
        """`Backend.pack`."""
        return outline(matrices) if matrices[0].is_meta else PackedLinear.of(matrices)

    def read(self, config: ModelConfig, weights: Weights, max_model_len: int) -> Decoder:
        """`Backend.read`; a matrix is packed as it comes."""
        return build_model(config, weights, ops.REFERENCE, max_model_len=1)

    def footprint(self, decoder: Decoder) -> int:
        """`Backend.footprint`: a tied head's matrix is the embedding's, too."""
        spared = decoder.embedding_bytes if decoder.config.tied_embeddings else 0
        return decoder.weight_bytes - spared

    def compiled(self, decoder: Decoder) -> Model:
        """`Backend.compiled`."""
        model = NativeDecoder(
            decoder,
            _native_kernels(self.instructions),
            num_threads=self.num_threads,
            max_model_len=self.max_model_len,
            block_size=self.block_size,
        )
        if self.measures_threads and self.num_threads > 1:
            kv = KVCache(decoder.config, 0, self.block_size, self.kv_dtype, torch.device("cpu"))
            seconds = fastest_threads(model, kv, self.num_threads)
            each = ", ".join(f"{count}: {took * 1e3:.1f} ms" for count, took in seconds.items())
            log.info("%d threads compute; a token takes with %s", model.num_threads, each)
        return model


def _native_kernels(instructions: Instructions) -> ctypes.CDLL:
    if built(instructions) is not None:
        return library.load(instructions.name)
    with unless_quick("compiling the CPU's kernels, once on this machine"):
        return library.load(instructions.name)


@dataclass(frozen=True)
class Wishes:
    """What the operator says of how a step is computed.

    Attributes:
        cpu_backend: "torch", "native", or "auto" for native where it can.
        num_threads: compute threads of a CPU.
        block_size: tokens of a block; None: the backend's own choice.
        quantization: "auto", "none", "int8" or "int4": what matrices are computed with.
        kv_cache_dtype: "auto", "float32" or "float16".
        cpu_isa: which instructions native kernels may use; "auto": whatever there is.
        measures_threads: whether fewer may compute, if that is faster.
    """

    cpu_backend: str = "torch"
    num_threads: int = 1
    block_size: int | None = None
    quantization: str = "auto"
    kv_cache_dtype: str = "auto"
    cpu_isa: str = "auto"
    measures_threads: bool = False


WITH_TORCH = Wishes()


@dataclass(frozen=True)
class Computed:
    """What is to be computed.

    Attributes:
        has_codes: whether matrices are in codes.
        device: where the weights go.
        dtype: number format of weights in floats.
        world_size: ranks that share the model.
        max_model_len: the longest sequence, in tokens.
    """

    has_codes: bool
    device: torch.device
    dtype: torch.dtype
    world_size: int
    max_model_len: int


def choose_backend(wishes: Wishes, computed: Computed) -> Backend:
    """What will compute the model.

    Raises UnsupportedModelError if what was asked for by its name cannot.
    """
    if wishes.cpu_backend != "torch":
        reason = _why_not_native(wishes, computed)
        if reason is None:
            return NativeBackend(
                choose(wishes.cpu_isa),
                wishes.num_threads,
                computed.max_model_len,
                _native_kv_dtype(wishes, computed),
                wishes.block_size or BLOCK_SIZE,
                wishes.measures_threads,
            )
        if wishes.cpu_backend == "native":
            raise UnsupportedModelError(f"--cpu-backend is native; {reason}")
        if computed.device.type == "cpu":
            log.info("torch computes: %s", reason)
    if wishes.kv_cache_dtype not in ("auto", _name(computed.dtype)):
        raise UnsupportedModelError(
            f"--kv-cache-dtype is {wishes.kv_cache_dtype}; torch keeps KV as it keeps weights, "
            f"in {_name(computed.dtype)}"
        )
    return TorchBackend(computed.device, computed.dtype, wishes.block_size or BLOCK_SIZE)


def _native_kv_dtype(wishes: Wishes, computed: Computed) -> torch.dtype:
    """Matrices in codes have lost more than sixteen bits of keys and values will."""
    usual = "float16" if computed.has_codes else "float32"
    asked = usual if wishes.kv_cache_dtype == "auto" else wishes.kv_cache_dtype
    return torch.float16 if asked == "float16" else torch.float32


def _why_not_native(wishes: Wishes, computed: Computed) -> str | None:
    """In words that follow a semicolon; None if it can."""
    if computed.device.type != "cpu":
        return f"the model runs on {computed.device.type}"
    if computed.dtype != torch.float32:
        return f"--dtype is {_name(computed.dtype)}; native kernels compute in float32"
    if computed.world_size > 1:
        return f"--tensor-parallel-size is {computed.world_size}; native kernels run on one rank"
    if wishes.block_size is not None and wishes.block_size % LANES:
        return f"--block-size is {wishes.block_size}; native kernels take multiples of {LANES}"
    if wishes.kv_cache_dtype == "bfloat16":
        return "--kv-cache-dtype is bfloat16; native kernels keep KV in float32 or float16"
    try:
        _native_kernels(choose(wishes.cpu_isa))
    except NativeUnavailableError as error:
        return str(error)
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
