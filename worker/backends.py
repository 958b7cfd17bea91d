"""What computes the forward pass of a decoder: torch with the device's kernels, or OpenVINO."""

import importlib.util
import logging
import platform
from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from kernels import ops
from kernels.jit import one_compiles
from kernels.quantized import Stacked
from kernels.warm_up import warm_up
from worker.executor import Model
from worker.loading_progress import unless_quick
from worker.models.config import ModelConfig
from worker.models.fields import UnsupportedModelError
from worker.models.registry import build_model
from worker.models.weights import ReadTensor, Weights
from worker.parallel import Group

BLOCK_SIZE = 16
"""Tokens of a block, unless the operator says something else."""

OPENVINO_BLOCK_SIZE = 32
"""The only size that its attention takes."""

log = logging.getLogger(__name__)


class BuiltModel(Model, Protocol):
    """A model with its weights."""

    @property
    def weight_bytes(self) -> int:
        """Bytes that the weights occupy."""
        ...


class Backend(Protocol):
    """Makes a forward pass of a model's weights."""

    @property
    def block_size(self) -> int:
        """Tokens of a block."""
        ...

    @property
    def keeps_codes(self) -> bool:
        """Whether it computes with matrices in codes; else they are read as floats."""
        ...

    def __str__(self) -> str:
        """For people: what computes."""
        ...

    def build(
        self, config: ModelConfig, read: ReadTensor, group: Group, max_model_len: int
    ) -> BuiltModel:
        """Reads every weight once.

        Args:
            config: dimensions and constants.
            read: gives the tensors.
            group: the ranks that share the model.
            max_model_len: the longest sequence it will see, in tokens.
        """
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

    keeps_codes: ClassVar[bool] = False

    def __str__(self) -> str:
        return "torch"

    def build(
        self, config: ModelConfig, read: ReadTensor, group: Group, max_model_len: int
    ) -> BuiltModel:
        """`Backend.build`."""
        kernels = ops.select(self.device, self.dtype)
        model = build_model(config, Weights(read, group), kernels, max_model_len)
        if ops.compiles_ahead(self.device):
            _compile(kernels, self.device, self.dtype)
        return model


def _compile(kernels: ops.Ops, device: torch.device, dtype: torch.dtype) -> None:
    with ExitStack() as alone:
        with unless_quick("another process compiles the CPU's kernels; waiting for it"):
            alone.enter_context(one_compiles())
        with unless_quick("compiling the CPU's kernels, once on this machine"):
            warm_up(kernels, device, dtype)


@dataclass(frozen=True)
class OpenVINOBackend:
    """Compiles the whole pass for this CPU.

    Attributes:
        num_threads: that compute a step.
        block_size: tokens of a block.
    """

    num_threads: int
    block_size: int = OPENVINO_BLOCK_SIZE

    keeps_codes: ClassVar[bool] = True

    def __str__(self) -> str:
        return "OpenVINO"

    def build(
        self, config: ModelConfig, read: ReadTensor, group: Group, max_model_len: int
    ) -> BuiltModel:
        """`Backend.build`."""
        from worker.openvino.decoder import CompiledDecoder

        weights = Weights(read, group, pack=Stacked.of)
        return CompiledDecoder(build_model(config, weights, ops.REFERENCE, 1), self.num_threads)


@dataclass(frozen=True)
class Wishes:
    """What the operator says of how a step is computed.

    Attributes:
        cpu_backend: "torch", "openvino", or "auto" for OpenVINO where it can.
        num_threads: compute threads of a CPU.
        block_size: tokens of a block; None: the backend's own choice.
        quantization: "auto", "none", "int8" or "int4": what matrices are computed with.
    """

    cpu_backend: str = "torch"
    num_threads: int = 1
    block_size: int | None = None
    quantization: str = "auto"


WITH_TORCH = Wishes()


def choose_backend(
    wishes: Wishes,
    config: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    world_size: int,
) -> Backend:
    """What will compute the model.

    Raises UnsupportedModelError if OpenVINO was asked for by its name and cannot.
    """
    torch_backend = TorchBackend(device, dtype, wishes.block_size or BLOCK_SIZE)
    if wishes.cpu_backend == "torch":
        return torch_backend
    reason = _why_not_openvino(config, device, dtype, world_size, wishes.block_size)
    if not reason:
        return OpenVINOBackend(wishes.num_threads)
    if wishes.cpu_backend == "openvino":
        raise UnsupportedModelError(f"--cpu-backend is openvino; {reason}")
    if device.type == "cpu":
        log.info("torch computes, not OpenVINO: %s", reason)
    return torch_backend


def _why_not_openvino(
    config: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    world_size: int,
    block_size: int | None,
) -> str:
    """In words that follow a semicolon; empty if it can."""
    if device.type != "cpu":
        return f"the model runs on {device.type}"
    if importlib.util.find_spec("openvino") is None:
        return "the package openvino is not installed"
    if platform.machine() not in ("x86_64", "AMD64"):
        return f"its attention has not been tried on {platform.machine()}"
    if dtype != torch.float32:
        return f"--dtype is {str(dtype).removeprefix('torch.')}; it computes in float32"
    if world_size > 1:
        return f"--tensor-parallel-size is {world_size}; it runs on one rank"
    if block_size not in (None, OPENVINO_BLOCK_SIZE):
        return f"--block-size is {block_size}; its attention takes {OPENVINO_BLOCK_SIZE}"
    if config.attention_softcap is not None:
        return "the model caps its attention scores"
    return ""
