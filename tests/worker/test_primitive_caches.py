"""A worker's memory has a bound, however many numbers of rows its steps have had."""

import os
import subprocess
import sys

import pytest
import torch

from kernels.linear import can_pack
from worker.primitive_caches import NUM_KEPT, bound_primitive_caches

NAMES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
NUM_ROW_COUNTS = 600
MOST_MIB_EACH = 1.2
"""Of a primitive, which has 0.8; without a bound as many as there are here are kept."""

GROWTH = f"""
from worker.primitive_caches import bound_primitive_caches
bound_primitive_caches()
import psutil, torch
from kernels.linear import linear, pack_weight
torch.set_num_threads(1)
matrices = [pack_weight(torch.zeros(256, 64)), pack_weight(torch.zeros(96, 64))]
before = psutil.Process().memory_full_info().uss
with torch.inference_mode():
    for rows in range(1, {NUM_ROW_COUNTS} + 1):
        for matrix in matrices:
            linear(torch.zeros(rows, 64), matrix)
print(psutil.Process().memory_full_info().uss - before)
"""


@pytest.mark.skipif(not can_pack(torch.zeros(1, 1)), reason="no blocked layout on this machine")
def test_primitives_are_kept_but_not_without_end() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    output = subprocess.run(
        [sys.executable, "-c", GROWTH],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    ).stdout
    grown_mib = int(output) / 2**20
    print(f"\n{grown_mib:.0f} MiB after {NUM_ROW_COUNTS} numbers of rows")
    assert grown_mib < MOST_MIB_EACH * NUM_KEPT


def test_what_the_operator_says_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, "7")
    monkeypatch.delenv(NAMES[0])
    bound_primitive_caches()
    assert [os.environ[name] for name in NAMES] == [str(NUM_KEPT), "7"]
    monkeypatch.setenv(NAMES[0], "7")  # so that monkeypatch takes away what was set
