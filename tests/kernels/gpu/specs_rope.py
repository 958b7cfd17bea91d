"""Rotation and cache writes as they are launched."""

import triton

from kernels.gpu.rope import NUM_WARPS, heads_per_program, rope_and_store_kernel
from tests.kernels.gpu.compiler import AMPERE, HOPPER, MI300, CompileSpec

VECTORS = ("ld.global.v4", "st.global.v4")
# Too large a value becomes the largest one, not NaN.
FLOAT8 = "cvt.rn.satfinite.e4m3x2.f32"


def spec(
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    kind: str = "bf16",
    cache: str | None = None,
    weight: str | None = None,
) -> CompileSpec:
    """One model's heads; a cache of its own type, and head norms, where they are named."""
    indices = ("positions", "cu_seqlens", "row_slot", "tables")
    signature = {
        "qkv": f"*{kind}",
        **dict.fromkeys(indices, "*i32"),
        **dict.fromkeys(("cos", "sin"), "*fp32"),
        "query": f"*{kind}",
        **dict.fromkeys(("keys", "values"), f"*{cache or kind}"),
        "eps": "fp32",
        **dict.fromkeys(("num_decodes", "num_rows", "table_stride"), "i32"),
    }
    constexprs = {
        "NUM_HEADS": num_heads,
        "NUM_KV_HEADS": num_kv_heads,
        "BLOCK_SIZE": 16,
        "HALF": head_dim // 2,
        "HEADS": heads_per_program(head_dim),
        "WIDTH": triton.next_power_of_2(head_dim // 2),
    }
    weights = ("query_weight", "key_weight")
    if weight is None:
        constexprs |= dict.fromkeys(weights)
    else:
        signature |= dict.fromkeys(weights, f"*{weight}")
    return CompileSpec(
        name=f"rope_and_store-{kind}-{num_heads}-{num_kv_heads}-{head_dim}-{cache}-{weight}",
        kernel=rope_and_store_kernel,
        signature=signature,
        constexprs=constexprs,
        num_warps=NUM_WARPS,
        architectures=(HOPPER,) if cache == "fp8e4nv" else (AMPERE, HOPPER, MI300),
        contains={AMPERE: VECTORS, HOPPER: (*VECTORS, *([FLOAT8] if cache == "fp8e4nv" else []))},
    )


SPECS = [
    spec(32, 8, 128),
    spec(16, 8, 128, weight="bf16"),
    spec(9, 3, 64),
    spec(32, 32, 96),
    spec(8, 4, 256, weight="fp32"),
    spec(32, 8, 128, kind="fp16"),
    spec(9, 3, 64, kind="fp32"),
    spec(32, 8, 128, cache="fp8e4nv"),
]
