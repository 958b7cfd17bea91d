"""RMSNorm as it is launched."""

import triton

from kernels.gpu.norm import num_warps, rms_norm_kernel
from tests.kernels.gpu.compiler import AMPERE, HOPPER, CompileSpec

VECTORS = ("ld.global.v4", "st.global.v4")


def spec(hidden: int, kind: str, weight: str, add: bool) -> CompileSpec:
    """One row size and type, with or without the addition."""
    pointers = {"x": f"*{kind}", "weight": f"*{weight}", "out": f"*{kind}"}
    return CompileSpec(
        name=f"{'add_' if add else ''}rms_norm-{kind}-{hidden}-weight-{weight}",
        kernel=rms_norm_kernel,
        signature=pointers | {"eps": "fp32"} | ({"residual": f"*{kind}"} if add else {}),
        constexprs={"HIDDEN": hidden, "WIDTH": triton.next_power_of_2(hidden)}
        | ({} if add else {"residual": None}),
        num_warps=num_warps(hidden),
        contains={AMPERE: VECTORS, HOPPER: VECTORS},
    )


SPECS = [
    *(spec(hidden, "bf16", "bf16", add=True) for hidden in (576, 1024, 3584, 4096, 8192, 16384)),
    spec(4096, "bf16", "bf16", add=False),
    spec(4096, "fp16", "fp16", add=True),
    spec(2304, "bf16", "fp32", add=True),
    spec(4096, "fp32", "fp32", add=True),
]
