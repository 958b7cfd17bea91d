"""Copies of whole KV blocks as they are launched."""

from kernels.gpu.block_copy import NUM_WARPS, WIDTH, copy_blocks_kernel
from tests.kernels.gpu.compiler import AMPERE, HOPPER, CompileSpec

VECTORS = ("ld.global.v4", "st.global.v4")

SPECS = [
    CompileSpec(
        name=f"copy_blocks-{words}-{index}",
        kernel=copy_blocks_kernel,
        signature={
            "storage": "*i32",
            "sources": f"*{index}",
            "destinations": f"*{index}",
            "layer_stride": "i32:16",
        },
        constexprs={"WORDS": words, "WIDTH": WIDTH},
        num_warps=NUM_WARPS,
        contains={AMPERE: VECTORS, HOPPER: VECTORS},
    )
    for words, index in (
        (8 * 16 * 128 // 2, "i32"),
        (8 * 16 * 128 // 2, "i64"),
        (3 * 16 * 64, "i32"),
    )
]
