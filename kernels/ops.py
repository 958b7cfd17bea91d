"""The one place that picks a version of each op: by device and number format."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from kernels import reference, step_sampling, step_tables
from kernels.batch import HeadNorms, Scoring, StepTensors
from kernels.step_sampling import GrammarMasks
from kernels.step_tables import SlotSampling, SlotTables, StepInputs

Tensor = torch.Tensor


@dataclass(frozen=True)
class Ops:
    """One version of every op; `kernels.reference` says what each means.

    Attributes:
        rms_norm: (x, weight, eps) to the norm.
        add_rms_norm: (x, residual, weight, eps) to the norm; the residual is updated in place.
        rope_and_store: (qkv, step, keys, values, head norms) to the queries; the cache is written.
        paged_attention: (query, keys, values, step, scoring) to the attended heads.
        silu_mul: (gate_up) to the gated product.
        gelu_tanh_mul: likewise.
    """

    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    rope_and_store: Callable[[Tensor, StepTensors, Tensor, Tensor, HeadNorms | None], Tensor]
    paged_attention: Callable[[Tensor, Tensor, Tensor, StepTensors, Scoring], Tensor]
    silu_mul: Callable[[Tensor], Tensor]
    gelu_tanh_mul: Callable[[Tensor], Tensor]


class SampleAndCommit(Protocol):
    """`kernels.step_sampling.sample_and_commit`."""

    def __call__(
        self,
        logits: Tensor,
        slot: Tensor,
        new_position: Tensor,
        sampling: SlotSampling,
        slots: SlotTables,
        token_id: Tensor,
        finish: Tensor,
        *,
        grammar: GrammarMasks | None = None,
    ) -> None:
        """One token for each row, stored where the next step finds it."""


@dataclass(frozen=True)
class DeviceStepOps:
    """What begins and ends a step on a device that works while the host goes on.

    `kernels.step_tables` says what the first three mean, `kernels.step_sampling` the last.
    """

    apply_writes: Callable[[Tensor, Tensor], None]
    decode_inputs: Callable[[Tensor, SlotTables, StepInputs], None]
    chunk_inputs: Callable[[int, int, SlotTables, StepInputs], None]
    sample_and_commit: SampleAndCommit


DEVICE_STEP_REFERENCE = DeviceStepOps(
    apply_writes=step_tables.apply_writes,
    decode_inputs=step_tables.decode_inputs,
    chunk_inputs=step_tables.chunk_inputs,
    sample_and_commit=step_sampling.sample_and_commit,
)


REFERENCE = Ops(
    rms_norm=reference.rms_norm,
    add_rms_norm=reference.add_rms_norm,
    rope_and_store=reference.rope_and_store,
    paged_attention=reference.paged_attention,
    silu_mul=reference.silu_mul,
    gelu_tanh_mul=reference.gelu_tanh_mul,
)


def select(device: torch.device, dtype: torch.dtype) -> Ops:
    """The fastest version there is: Triton's on a GPU, numba's for float32 on a CPU, else torch's.

    What a device does not need is not imported: it would compile, or ask for what is not there.
    """
    if device.type == "cuda":
        from kernels.gpu import activation, attention, norm, rope

        return Ops(
            rms_norm=norm.rms_norm,
            add_rms_norm=norm.add_rms_norm,
            rope_and_store=rope.rope_and_store,
            paged_attention=attention.paged_attention,
            silu_mul=activation.silu_mul,
            gelu_tanh_mul=activation.gelu_tanh_mul,
        )
    if device.type == "cpu" and dtype == torch.float32:
        from kernels import attention_cpu, elementwise_cpu

        return Ops(
            rms_norm=elementwise_cpu.rms_norm,
            add_rms_norm=elementwise_cpu.add_rms_norm,
            rope_and_store=elementwise_cpu.rope_and_store,
            paged_attention=attention_cpu.paged_attention,
            silu_mul=elementwise_cpu.silu_mul,
            gelu_tanh_mul=elementwise_cpu.gelu_tanh_mul,
        )
    return REFERENCE


def compiles_ahead(device: torch.device) -> bool:
    """Whether toy tensors are enough for its kernels to be compiled (`kernels.warm_up`).

    On a CPU the sizes of a model do not matter to what is compiled. On a GPU they do: what is
    compiled there is compiled when the model itself runs first.
    """
    return device.type == "cpu"


def check_head_dim(device: torch.device, head_dim: int) -> None:
    """Raises ValueError unless the device's attention takes heads of this size."""
    if device.type == "cuda":
        from kernels.gpu import attention

        attention.check_head_dim(head_dim)


def select_step(device: torch.device, max_rows: int, vocab_size: int) -> DeviceStepOps | None:
    """The ends of a step on a device that works on its own; None where that is the host itself.

    Args:
        device: where the tables are.
        max_rows: rows of a step, at most.
        vocab_size: columns of the logits.
    """
    if device.type != "cuda":
        return None
    from kernels.gpu import sampler, step
    from kernels.gpu.sampler_tiles import Tiles

    tiles = Tiles.empty(max_rows, vocab_size, device)
    return DeviceStepOps(
        apply_writes=step.apply_writes,
        decode_inputs=step.decode_inputs,
        chunk_inputs=step.chunk_inputs,
        sample_and_commit=partial(sampler.sample_and_commit, tiles=tiles),
    )
