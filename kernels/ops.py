"""The one place that picks a version of each op: by device and number format."""

from kernels.linear import linear, pack_weight
from kernels.reference import (
    add_rms_norm,
    paged_attention,
    rms_norm,
    rope_and_store,
    rope_angles,
    silu_mul,
    slot_mapping,
)

__all__ = [
    "add_rms_norm",
    "linear",
    "pack_weight",
    "paged_attention",
    "rms_norm",
    "rope_and_store",
    "rope_angles",
    "silu_mul",
    "slot_mapping",
]
