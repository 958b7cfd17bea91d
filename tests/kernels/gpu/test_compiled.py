"""Every kernel compiles for the GPUs we name, and becomes there what its spec says.

The tables are the files specs_*.py here, one for each file of kernels/gpu that launches kernels.
"""

import importlib
import json
import re
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
SLOW = ("specs_attention_groups",)


@pytest.mark.parametrize(
    "table",
    [pytest.param(table, marks=[pytest.mark.slow] * (table in SLOW)) for table in TABLES],
)
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


def test_no_kernel_is_left_out() -> None:
    sources = Path(__file__).parents[3].glob("kernels/gpu/*.py")
    launched = {name for path in sources for name in re.findall(r"(\w+)\[", path.read_text())}
    specs = (importlib.import_module(f"tests.kernels.gpu.{table}").SPECS for table in TABLES)
    compiled = {spec.kernel.fn.__name__ for table in specs for spec in table}
    assert {name for name in launched if name.endswith("_kernel")} == compiled


def test_the_gate_sees_spills_shared_memory_and_missing_instructions() -> None:
    spec = CompileSpec("name", None, {}, {})
    good = Compiled(registers=255, spilled=0, shared_bytes=163 * 1024, counts={"wgmma": 1})
    assert violations(spec, HOPPER, good) == []
    bad = Compiled(registers=255, spilled=8, shared_bytes=228 * 1024, counts={"wgmma": 0})
    assert len(violations(spec, HOPPER, bad)) == 3
    assert len(violations(spec, AMPERE, bad)) == 2
