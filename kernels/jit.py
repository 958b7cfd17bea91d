"""Compiling CPU kernels with numba: the options they share, and the threads they run on.

Machine code is cached on disk, in NUMBA_CACHE_DIR or beside the sources or, where those are
read-only, under the user's cache directory; with neither writable a kernel is compiled again in
each process. Two habits of numba's cache are worked around. It notices a change of the file that a
kernel is in, but not of what the kernel calls: so the cache's place is named after all sources. And
a function that comes from the cache cannot be inlined into its caller: so only what Python calls is
cached (`jit`), and what kernels call is compiled with them (`inner`).
"""

import contextlib
import fcntl
import hashlib
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar, cast

# Before numba loads its OpenMP layer, which then binds to the OpenMP library that torch brought:
# both share one pool of threads, instead of two that spin against each other.
import torch
from llvmlite import ir
from numba import config, njit, set_num_threads, types
from numba.core import cgutils
from numba.extending import intrinsic

Kernel = TypeVar("Kernel", bound=Callable[..., Any])

# Sums may be reordered and fused, which makes them vectors; NaN and infinity keep their meaning.
_FAST = {"reassoc", "contract", "arcp", "nsz", "afn"}


def _cache_dir(chosen: str) -> Path:
    """A directory for exactly these sources, in the one that the user chose or else beside them."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    digest = hashlib.blake2b(b"".join(path.read_bytes() for path in sources), digest_size=8)
    home = Path(chosen) if chosen else Path(__file__).parent / "__pycache__"
    return home / f"numba-{digest.hexdigest()}"


# Where this cannot be written numba goes on to the user's cache directory by itself.
config.CACHE_DIR = str(_cache_dir(chosen=config.CACHE_DIR))

_ALONE_WAIT_S = 300.0
"""More than compiling everything takes on a slow core: who holds the lock for longer is stuck."""


@contextlib.contextmanager
def one_compiles() -> Iterator[None]:
    """Waits while another process of this machine compiles, whose results are then in the cache.

    It keeps nobody from anything: without a cache to write to, or after minutes, it goes on.
    """
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):
            Path(config.CACHE_DIR).mkdir(parents=True, exist_ok=True)
            lock = held.enter_context((Path(config.CACHE_DIR) / "lock").open("w"))
            _lock(lock.fileno(), time.monotonic() + _ALONE_WAIT_S)
        yield


def _lock(fd: int, until: float) -> None:
    """Until then at the latest; the end of the file's owner gives it back."""
    while time.monotonic() < until:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.1)
        else:
            return


def jit(*, parallel: bool = False, fast: bool = True) -> Callable[[Kernel], Kernel]:
    """Compiles a function that Python calls, on its first call for each set of argument types.

    Args:
        parallel: `numba.prange` loops run on several threads; otherwise they are plain loops.
        fast: sums may be reordered.
    """

    def compile_kernel(function: Kernel) -> Kernel:
        options = {"parallel": parallel, **_options(fast)}
        try:
            return cast(Kernel, njit(cache=True, **options)(function))
        except RuntimeError:
            # numba found no directory that it may write to.
            return cast(Kernel, njit(**options)(function))

    return compile_kernel


def inner(*, fast: bool = True, inlined: bool = False) -> Callable[[Kernel], Kernel]:
    """Compiles a function that only kernels call, with each of them.

    Args:
        fast: sums may be reordered.
        inlined: it becomes part of its callers at once. LLVM does so by itself in the end, but too
            late for a loop around the call to become vectors.
    """

    def compile_kernel(function: Kernel) -> Kernel:
        inline = "always" if inlined else "never"
        return cast(Kernel, njit(inline=inline, **_options(fast))(function))

    return compile_kernel


def _options(fast: bool) -> dict[str, Any]:
    return {
        "nogil": True,
        "fastmath": _FAST if fast else False,
        "error_model": "numpy",  # division by zero gives infinity, and no branch
    }


def set_threads(count: int) -> None:
    """Lets torch and numba use so many threads in this process.

    Without an OpenMP library on the machine numba would start a pool of its own, which costs more
    than it brings: its kernels then run on one thread.

    Args:
        count: at least 1.
    """
    torch.set_num_threads(count)
    try:
        import_module("numba.np.ufunc.omppool")  # loads only where OpenMP is
    except ImportError:
        count = 1
    else:
        config.THREADING_LAYER = "omp"
    set_num_threads(min(count, config.NUMBA_NUM_THREADS))


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(typing_context: Any, array: Any, index: Any) -> Any:
    """prefetch(array, index): asks for the cache line of a contiguous array's element early.

    A context's blocks lie anywhere in memory, so the processor cannot guess the next one; the
    block table knows it.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        line = builder.bitcast(builder.gep(data, [args[1]]), cgutils.voidptr_t)
        word = ir.IntType(32)
        read, keep_near, data_cache = word(0), word(3), word(1)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, word, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [line, read, keep_near, data_cache])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate
