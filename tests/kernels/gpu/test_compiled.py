"""Every kernel compiles for the GPUs we name, and becomes there what its spec says.

The tables are the files specs_*.py here, one for each file of kernels/gpu that launches kernels.
"""

import json
from pathlib import Path

import pytest

from tests.kernels.gpu.compiler import (
    AMPERE,
    HOPPER,
    Compiled,
    CompileSpec,
    compile_in_process,
    violations,
)

TABLES = sorted(path.stem for path in Path(__file__).parent.glob("specs_*.py"))


@pytest.mark.parametrize("table", TABLES)
def test_kernels_compile_as_specified(table: str, pytestconfig: pytest.Config) -> None:
    assert pytestconfig.cache is not None
    cache = pytestconfig.cache.mkdir("triton")
    outcomes = compile_in_process(f"tests.kernels.gpu.{table}", cache)
    print(json.dumps(outcomes, indent=1))
    assert outcomes, "the table is empty"
    broken = [
        f"{name} on {architecture}: {violation}"
        for name, architectures in outcomes.items()
        for architecture, outcome in architectures.items()
        for violation in outcome["violations"]
    ]
    assert not broken, "\n".join(broken)


def test_the_gate_sees_spills_shared_memory_and_missing_instructions() -> None:
    spec = CompileSpec("name", None, {}, {})
    good = Compiled(registers=255, spilled=0, shared_bytes=163 * 1024, counts={"wgmma": 1})
    assert violations(spec, HOPPER, good) == []
    bad = Compiled(registers=255, spilled=8, shared_bytes=228 * 1024, counts={"wgmma": 0})
    assert len(violations(spec, HOPPER, bad)) == 3
    assert len(violations(spec, AMPERE, bad)) == 2
