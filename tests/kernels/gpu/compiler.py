"""Compiles kernels for GPUs that are not here, and says what became of them.

Triton decides once per process whether it interprets or compiles, and the tests interpret. So the
gate starts this file as a process of its own, one per table of specs:

    python -m tests.kernels.gpu.compiler tests.kernels.gpu.specs_norm

It writes one JSON object: {spec name: {architecture: outcome}}, see `compile_all`.
"""

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

AMPERE, HOPPER, MI300 = "sm_80", "sm_90", "gfx942"
TARGETS = {
    AMPERE: GPUTarget("cuda", 80, 32),
    HOPPER: GPUTarget("cuda", 90, 32),
    MI300: GPUTarget("hip", "gfx942", 64),
}
# What one program may use at most.
SHARED_BYTES = {AMPERE: 163 * 1024, HOPPER: 227 * 1024, MI300: 64 * 1024}

Outcomes = dict[str, dict[str, dict[str, Any]]]


@dataclass(frozen=True)
class CompileSpec:
    """A kernel as it is launched, and what must become of it.

    Attributes:
        name: unique in its table.
        kernel: the `@triton.jit` function.
        signature: type of every argument that is not a constexpr: "*bf16", "*i32", "i32", "fp32".
            Pointers are taken to be multiples of 16 bytes, as torch allocates; ":1" denies it. Of
            integers ":16" claims it (Triton's launcher looks at the value: strides mostly are). For
            a named tuple: the same tuple, of such types.
        constexprs: value of every constexpr.
        num_warps: as launched.
        num_stages: as launched.
        architectures: that it is launched on with these constexprs.
        contains: for an architecture, what its assembly must contain, like "wgmma.mma_async",
            "cp.async.cg", "mma.sync", "ld.global.v4", "v_mfma".
        may_spill: architectures where registers may spill.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str | tuple[Any, ...]]
    constexprs: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    architectures: tuple[str, ...] = (AMPERE, HOPPER, MI300)
    contains: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    may_spill: tuple[str, ...] = (AMPERE, MI300)


@dataclass(frozen=True)
class Compiled:
    """What became of a kernel on one architecture.

    Attributes:
        registers: per thread; vector registers on AMD.
        spilled: bytes per thread on the stack; spilled vector registers on AMD.
        shared_bytes: shared memory per program.
        counts: how often each sought string occurs in the assembly.
    """

    registers: int
    spilled: int
    shared_bytes: int
    counts: dict[str, int]


def source(spec: CompileSpec) -> ASTSource:
    """The spec in Triton's own terms."""
    signature: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for position, name in enumerate(spec.kernel.arg_names):
        if name in spec.constexprs:
            signature[name] = "constexpr"
            continue
        kinds = spec.signature[name]
        if isinstance(kinds, str):
            signature[name] = _kind(kinds, (position,), attributes)
        else:
            each = (_kind(kind, (position, i), attributes) for i, kind in enumerate(kinds))
            signature[name] = type(kinds)(*each)
    unknown = {*spec.signature, *spec.constexprs} - set(spec.kernel.arg_names)
    assert not unknown, f"{spec.name}: no arguments of the kernel: {sorted(unknown)}"
    constants = {(spec.kernel.arg_names.index(name),): v for name, v in spec.constexprs.items()}
    return ASTSource(spec.kernel, signature, constants, attributes)


def _kind(
    text: str, place: tuple[int, ...], attributes: dict[tuple[int, ...], list[list[Any]]]
) -> str:
    """The type alone; what else the text says of the argument goes to the attributes."""
    kind, _, multiple = text.partition(":")
    if multiple == "16" or (kind.startswith("*") and not multiple):
        attributes[place] = [["tt.divisibility", 16]]
    return kind


def compile_for(spec: CompileSpec, architecture: str) -> Compiled:
    """Compiles for one architecture; what the compiler raises is the caller's."""
    options = {"num_warps": spec.num_warps, "num_stages": spec.num_stages}
    kernel = triton.compile(source(spec), target=TARGETS[architecture], options=options)
    assembly = kernel.asm["ptx" if "ptx" in kernel.asm else "amdgcn"]
    registers, spilled = _usage(kernel)
    return Compiled(
        registers=registers,
        spilled=spilled,
        shared_bytes=kernel.metadata.shared,
        counts={text: assembly.count(text) for text in spec.contains.get(architecture, ())},
    )


def _usage(kernel: CompiledKernel) -> tuple[int, int]:
    """Registers and what of them spilled."""
    if "cubin" not in kernel.asm:
        assembly = kernel.asm["amdgcn"]
        return _number(r"\.vgpr_count: +(\d+)", assembly), _number(
            r"\.vgpr_spill_count: +(\d+)", assembly
        )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(kernel.asm["cubin"])
        cubin.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", cubin.name]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return _number(r"REG:(\d+)", usage), _number(r"STACK:(\d+)", usage)


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found is not None, f"no {pattern} in {text}"
    return int(found[1])


def violations(spec: CompileSpec, architecture: str, compiled: Compiled) -> list[str]:
    """Where this is not what the spec and the architecture demand."""
    found = []
    if compiled.spilled and architecture not in spec.may_spill:
        found.append(f"{compiled.spilled} bytes of registers are spilled")
    if compiled.shared_bytes > SHARED_BYTES[architecture]:
        limit = SHARED_BYTES[architecture]
        found.append(f"shared memory is {compiled.shared_bytes} bytes; there are {limit}")
    found.extend(f"has no {text}" for text, count in compiled.counts.items() if not count)
    return found


def compile_all(module: str) -> Outcomes:
    """Every spec of a module's SPECS, on each of its architectures.

    Returns:
        {spec name: {architecture: outcome}}; an outcome has the fields of `Compiled`, unless it
        failed to compile, and "violations", sentences.
    """
    outcomes: Outcomes = {}
    for spec in importlib.import_module(module).SPECS:
        assert spec.name not in outcomes, f"two specs are called {spec.name}"
        outcomes[spec.name] = {}
        for architecture in spec.architectures:
            try:
                compiled = compile_for(spec, architecture)
            except Exception as error:  # Whatever it is, the gate reports it with its spec.
                outcome: dict[str, Any] = {"violations": [f"{type(error).__name__}: {error}"]}
            else:
                outcome = {**vars(compiled), "violations": violations(spec, architecture, compiled)}
            outcomes[spec.name][architecture] = outcome
    return outcomes


def compile_in_process(module: str, cache: Path) -> Outcomes:
    """`compile_all` in a process that does not interpret.

    Args:
        module: like "tests.kernels.gpu.specs_norm".
        cache: directory of compiled kernels; a second run with the same one takes no time.
    """
    environment = os.environ | {"TRITON_CACHE_DIR": str(cache), "TRITON_INTERPRET": "0"}
    finished = subprocess.run(
        [sys.executable, "-m", "tests.kernels.gpu.compiler", module],
        cwd=Path(__file__).parents[3],
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    outcomes: Outcomes = json.loads(finished.stdout)
    return outcomes


if __name__ == "__main__":
    json.dump(compile_all(sys.argv[1]), sys.stdout)
