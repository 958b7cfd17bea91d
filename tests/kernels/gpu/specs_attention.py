"""Paged attention as it is launched; `specs_attention_groups` has what is left out here."""

from collections.abc import Iterator
from typing import Any

import torch
from triton import next_power_of_2

from kernels.gpu import tiling
from kernels.gpu.attention import JOIN_WARPS
from kernels.gpu.attention_kernels import (
    attend_chunks_kernel,
    attend_decodes_kernel,
    join_splits_kernel,
)
from kernels.gpu.tiling import Gpu
from tests.kernels.gpu.compiler import AMPERE, HOPPER, MI300, CompileSpec

GPUS = {HOPPER: tiling.HOPPER, AMPERE: tiling.AMPERE, MI300: tiling.MI300}
NUM_KV_HEADS, GROUP, BLOCK_SIZE = 8, 4, 16
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Prompts in one chunk that make Q-blocks as tall as they get, half so and as low.
LONG, MIDDLE, SHORT = 8192, 300, 17


class Layer:
    """What of a model decides how its attention is compiled."""

    def __init__(
        self,
        head_dim: int,
        kind: str = "bf16",
        cache: str | None = None,
        window: int | None = None,
        softcap: bool = False,
        group: int = GROUP,
    ) -> None:
        """The cache holds the type `kind` of queries if it holds no other."""
        self.head_dim, self.kind, self.cache = head_dim, kind, cache or kind
        self.window, self.softcap, self.group = window, softcap, group
        self.name = "-".join(
            [str(head_dim), kind]
            + ([cache] if cache else [])
            + ([f"window{window}"] if window else [])
            + (["softcap"] if softcap else [])
            + ([f"group{group}"] if group != GROUP else [])
        )

    @property
    def signature(self) -> dict[str, str]:
        """Of the arguments that both kernels have."""
        return {
            "query": f"*{self.kind}",
            "keys": f"*{self.cache}",
            "values": f"*{self.cache}",
            "tables": "*i32",
            "row_slot": "*i32",
            "seq_lens": "*i32",
            "stride_block": "i32:16",
            "stride_table": "i32",
            "factor": "fp32",
            "value_scale": "fp32",
        } | ({"squash": "fp32"} if self.softcap else {})

    @property
    def constexprs(self) -> dict[str, Any]:
        """Likewise."""
        return {
            "GROUP": self.group,
            "BLOCK_SIZE": BLOCK_SIZE,
            "HEAD_DIM": self.head_dim,
            "WINDOW": self.window,
            "WIDTH": next_power_of_2(self.head_dim),
        } | ({} if self.softcap else {"squash": None})


def instructions(block_m: int, kind: str) -> dict[str, tuple[str, ...]]:
    """That copy tiles while others are worked on, and that multiply matrices."""
    if kind == "fp32":
        return {HOPPER: ("cp.async.cg",), AMPERE: ("cp.async.cg",)}
    warp_wide = ("cp.async.cg", "mma.sync")
    wide = ("cp.async.cg", "wgmma.mma_async") if block_m >= 64 else warp_wide
    return {HOPPER: wide, AMPERE: warp_wide, MI300: ("v_mfma",)}


def decodes(architecture: str, layer: Layer, split: bool = False) -> CompileSpec:
    """Decodes of whole contexts, or of parts of them."""
    gpu: Gpu = GPUS[architecture]
    chosen = tiling.decode_tiling(gpu, layer.group, layer.head_dim, DTYPES[layer.kind])
    out = {"out": "*fp32", "logsums": "*fp32"} if split else {"out": f"*{layer.kind}"}
    return CompileSpec(
        name=f"decodes-{layer.name}{'-split' * split}-{architecture}",
        kernel=attend_decodes_kernel,
        signature=layer.signature | out,
        constexprs=layer.constexprs
        | {"BLOCK_M": chosen.block_m, "TILE": chosen.tile}
        | ({} if split else {"logsums": None}),
        num_warps=chosen.num_warps,
        num_stages=chosen.num_stages,
        architectures=(architecture,),
        contains=instructions(chosen.block_m, layer.kind),
        may_spill=(MI300,),
    )


def chunk(architecture: str, layer: Layer, num_tokens: int) -> CompileSpec:
    """One prompt of so many tokens."""
    num_heads, dtype = NUM_KV_HEADS * layer.group, DTYPES[layer.kind]
    chosen = tiling.chunk_tiling(
        GPUS[architecture], num_tokens, 1, num_heads, layer.group, layer.head_dim, dtype
    )
    return CompileSpec(
        name=f"chunk-{layer.name}-tokens{num_tokens}-{architecture}",
        kernel=attend_chunks_kernel,
        signature=layer.signature
        | {"cu_seqlens": "*i32", "out": f"*{layer.kind}", "first_row": "i32", "num_rows": "i32"},
        constexprs=layer.constexprs | {"BLOCK_M": chosen.block_m, "TILE": chosen.tile},
        num_warps=chosen.num_warps,
        num_stages=chosen.num_stages,
        architectures=(architecture,),
        contains=instructions(chosen.block_m, layer.kind),
        may_spill=(MI300,),
    )


def specs() -> Iterator[CompileSpec]:
    """Head sizes and types on Hopper; elsewhere what differs there, the sizes of tiles."""
    for head_dim in (64, 96, 128, 256):
        for num_tokens in (LONG, SHORT) if head_dim == 256 else (LONG, MIDDLE, SHORT):
            yield chunk(HOPPER, Layer(head_dim), num_tokens)
        yield decodes(HOPPER, Layer(head_dim))
        yield decodes(AMPERE, Layer(head_dim))
        yield chunk(AMPERE, Layer(head_dim), LONG)
    others = (
        Layer(128, "fp16"),
        Layer(64, "fp32"),
        Layer(128, cache="fp8e4nv"),
        Layer(128, window=4096),
        Layer(256, window=1024, softcap=True),
    )
    for layer in others:
        yield decodes(HOPPER, layer)
        yield chunk(HOPPER, layer, LONG)
    for head_dim in (64, 256):
        yield chunk(HOPPER, Layer(head_dim, cache="fp8e4nv"), LONG)
    for group in (1, 3, 5, 7, 8, 16):
        yield chunk(HOPPER, Layer(64, group=group), SHORT)
        yield chunk(HOPPER, Layer(128, group=group), LONG)
        yield decodes(HOPPER, Layer(128, group=group))
    yield chunk(HOPPER, Layer(128, "fp16", window=4096, group=7), MIDDLE)
    yield chunk(AMPERE, Layer(64, group=1), SHORT)
    for architecture in (HOPPER, AMPERE, MI300):
        yield decodes(architecture, Layer(128), split=True)
    yield chunk(AMPERE, Layer(128), MIDDLE)
    yield chunk(AMPERE, Layer(128), SHORT)
    for num_tokens in (LONG, MIDDLE, SHORT):
        yield chunk(MI300, Layer(128), num_tokens)
    yield chunk(MI300, Layer(256, cache="fp8e4nv"), LONG)
    yield CompileSpec(
        name="join_splits",
        kernel=join_splits_kernel,
        signature={"parts": "*fp32", "logsums": "*fp32", "out": "*bf16", "splits": "i32"},
        constexprs={"HEAD_DIM": 128, "MAX_SPLITS": tiling.MAX_SPLITS, "WIDTH": 128},
        num_warps=JOIN_WARPS,
        contains={HOPPER: ("ld.global.v4",), AMPERE: ("ld.global.v4",)},
    )


SPECS = list(specs())
