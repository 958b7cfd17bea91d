"""The sampler's launches."""

from collections.abc import Mapping
from typing import Any

from kernels.gpu.adjust import Rules
from kernels.gpu.sampler import TILE_WARPS, scan_kernel, settle_kernel, weigh_kernel
from kernels.gpu.sampler_filters import CHUNK, CHUNK_WARPS
from kernels.gpu.sampler_tiles import TILE, Tiles
from tests.kernels.gpu.compiler import AMPERE, HOPPER, CompileSpec

REALS = {"temperature", "top_p", "min_p", "repetition", "presence", "frequency", "bias"}
REALS |= {"top", "score", "drawn_logit", "next_score", "next_z"}
# Columns of a step's rows begin anywhere in their buffers.
COLUMNS = {"slots", "positions", "token_ids", "finish"}
WHOLE = {"max_stops", "max_biased"}
LONG = {"seed", "total", "mass_before"}


def kind(name: str) -> Any:
    """The type of a field of `Rules` or `Tiles`."""
    if name in WHOLE:
        return "i32"
    return "*i64" if name in LONG else "*fp32" if name in REALS else "*i32"


RULES = Rules(**{name: kind(name) for name in Rules._fields})
TILES = Tiles(**{name: kind(name) for name in Tiles._fields})
# Of 262,144 tokens, as Gemma has.
NUM_TILES_POWER = 128


def signature(logits: str, kernel: Any) -> Mapping[str, Any]:
    kinds = {"logits": f"*{logits}", "rules": RULES, "tiles": TILES}
    integers = {"vocab_size": "i32:16", "row_stride": "i32:16", "null_slot": "i32:16"}
    integers |= {"num_tiles": "i32", "tokens_stride": "i32"}
    return {
        name: (kinds | integers).get(name, "*i32:1" if name in COLUMNS else "*i32")
        for name in kernel.arg_names
        if not name.isupper()
    }


SPECS = [
    CompileSpec(
        name=f"{kernel.__name__}-{kind}{'-grammar' * grammar}",
        kernel=kernel,
        signature=signature(kind, kernel),
        constexprs={"GRAMMAR": grammar} | constexprs,
        num_warps=warps,
        contains={AMPERE: ("ld.global.v4",), HOPPER: ("ld.global.v4",)},
    )
    for kernel, constexprs, warps in (
        (scan_kernel, {"TILE": TILE}, TILE_WARPS),
        (weigh_kernel, {"TILE": TILE, "TILES": NUM_TILES_POWER}, TILE_WARPS),
        (settle_kernel, {"CHUNK": CHUNK, "TILES": NUM_TILES_POWER}, CHUNK_WARPS),
    )
    for kind, grammar in (("bf16", False), ("fp32", True))
]
