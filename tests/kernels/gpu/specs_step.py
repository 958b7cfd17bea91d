"""A step's writes and inputs as they are launched."""

from kernels.gpu.step import (
    ROWS_PER_PROGRAM,
    TOKENS_PER_PROGRAM,
    WRITES_PER_PROGRAM,
    apply_writes_kernel,
    chunk_inputs_kernel,
    decode_inputs_kernel,
)
from tests.kernels.gpu.compiler import CompileSpec

_TABLES = ("order", "tokens", "position", "done", "cu_seqlens")
_INPUTS = ("token_ids", "positions", "seq_lens", "row_slot", "new_position")


def _signature(kernel_arguments: list[str]) -> dict[str, str]:
    pointers = {*_TABLES, *_INPUTS, "arena", "writes"}
    return {
        name: "*i32" if name in pointers else "i32"
        for name in kernel_arguments
        if not name.isupper()
    }


SPECS = [
    CompileSpec(
        name=kernel.__name__,
        kernel=kernel,
        signature=_signature(kernel.arg_names),
        constexprs={"BLOCK": block},
        num_warps=4,
    )
    for kernel, block in (
        (apply_writes_kernel, WRITES_PER_PROGRAM),
        (decode_inputs_kernel, ROWS_PER_PROGRAM),
        (chunk_inputs_kernel, TOKENS_PER_PROGRAM),
    )
]
