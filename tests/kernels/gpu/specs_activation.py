"""The activations, as they are launched."""

from kernels.gpu.activation import WIDTH, silu_mul_kernel
from tests.kernels.gpu.compiler import AMPERE, HOPPER, CompileSpec

SPECS = [
    CompileSpec(
        name=f"silu_mul-{kind}",
        kernel=silu_mul_kernel,
        signature={"gate_up": f"*{kind}", "out": f"*{kind}", "intermediate": "i32:16"},
        constexprs={"WIDTH": WIDTH},
        contains={AMPERE: ("ld.global.v4",), HOPPER: ("ld.global.v4",)},
    )
    for kind in ("bf16", "fp16", "fp32")
]
