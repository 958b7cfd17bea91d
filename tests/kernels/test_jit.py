"""Compiled kernels: nowhere to cache, no OpenMP, and what fast sums may not lose."""

import math
import sys
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import torch

from kernels import jit as compiling
from kernels.jit import inner, jit, set_threads


def total(x: np.ndarray) -> np.float32:
    result = np.float32(0)
    for i in range(x.shape[0]):
        result += x[i]
    return result


def test_a_kernel_compiles_where_nothing_can_be_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = []

    def no_place_to_cache(cache: bool = False, **options: Any) -> Any:
        if cache:
            refused.append(options)
            raise RuntimeError("cannot cache function: no locator available")
        return numba.njit(**options)

    monkeypatch.setattr(compiling, "njit", no_place_to_cache)
    kernel = jit()(total)
    assert refused
    assert kernel(np.arange(5, dtype=np.float32)) == 10.0


def test_fast_sums_keep_nan_and_infinity() -> None:
    kernel = inner()(total)
    assert math.isnan(kernel(np.array([1.0, np.nan, 2.0] * 20, np.float32)))
    assert kernel(np.array([1.0, np.inf] * 20, np.float32)) == np.inf


def test_without_openmp_numba_stays_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    torch_threads, numba_threads = torch.get_num_threads(), numba.get_num_threads()
    asked: list[int] = []
    monkeypatch.setattr(compiling, "set_num_threads", asked.append)
    monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", 8)
    try:
        set_threads(4)
        monkeypatch.setitem(sys.modules, "numba.np.ufunc.omppool", None)
        set_threads(4)
    finally:
        torch.set_num_threads(torch_threads)
    assert asked == [4, 1]
    assert numba.get_num_threads() == numba_threads


@pytest.mark.parametrize("chosen", ["", "/somewhere/else"])
def test_the_cache_follows_every_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str
) -> None:
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text("x = 1")
    monkeypatch.setattr(compiling, "__file__", str(tmp_path / "a.py"))
    before = compiling._cache_dir(chosen)
    assert compiling._cache_dir(chosen) == before
    assert before.is_relative_to(chosen or tmp_path)
    (tmp_path / "b.py").write_text("x = 2")
    assert compiling._cache_dir(chosen) != before
