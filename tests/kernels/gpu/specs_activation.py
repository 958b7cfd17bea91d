"""The gated activations as they are launched."""

from kernels.gpu.activation import NUM_WARPS, WIDTH, gated_kernel
from tests.kernels.gpu.compiler import AMPERE, HOPPER, CompileSpec

VECTORS = ("ld.global.v4", "st.global.v4")

SPECS = [
    CompileSpec(
        name=f"{'gelu_tanh' if gelu else 'silu'}_mul-{kind}-{intermediate}",
        kernel=gated_kernel,
        signature={"gate_up": f"*{kind}", "out": f"*{kind}"},
        constexprs={"INTERMEDIATE": intermediate, "GELU": gelu, "WIDTH": WIDTH},
        num_warps=NUM_WARPS,
        contains={AMPERE: VECTORS, HOPPER: VECTORS},
    )
    for kind, intermediate, gelu in (
        ("bf16", 14336, False),
        ("bf16", 3072, False),
        ("bf16", 1536, False),
        ("fp16", 14336, False),
        ("fp32", 1536, False),
        ("bf16", 9216, True),
    )
]
