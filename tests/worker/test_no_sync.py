"""Between two plans nothing waits for the device: the host launches and never asks for a value.

One rule, three checks. On tensors that have no values, whoever asks for one fails: so runs the loop
with all that it hands to kernels, no GPU needed. In the source, every call that could wait is known
by name. On a GPU, torch itself refuses to wait.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernels import ops
from kernels.batch import AttentionBatch
from tests.worker import runners
from tests.worker.builders import VOCAB_SIZE, write_tiny_llama
from tests.worker.churn import churn
from tests.worker.hot_path import Call, waiting_calls, waiting_calls_in
from tests.worker.runners import NUM_SLOTS, make_device_runner
from worker.device_runner import DeviceRunner
from worker.executor import Model
from worker.kv_cache import KVCache
from worker.lane import Array, Fetched, HostLane
from worker.loader import LoadedModel, load_model

BUCKETS = (2, 8)

Ask = Callable[[torch.Tensor], object]
# What someone may write in a model or a runner without a thought.
ASKS: dict[str, Ask] = {
    "item": lambda logits: logits[0, 0].item(),
    "tolist": lambda logits: logits[0].tolist(),
    "cpu": lambda logits: logits.cpu(),
    "bool": lambda logits: bool(logits.isnan().any()),
    "int": lambda logits: int(logits.argmax()),
    "nonzero": lambda logits: logits.nonzero(),
    "a mask as an index": lambda logits: logits[logits > 0],
    "unique": lambda logits: logits.unique(),  # type: ignore[no-untyped-call]
    "repeats": lambda logits: torch.repeat_interleave(logits.argmax(dim=1)),
    "an index from the host": lambda logits: logits[torch.tensor([0])],
    "a copy from the host": lambda logits: torch.zeros(3).to(logits.device),
}


class Asking:
    """A model whose every pass ends with a question about its logits."""

    def __init__(self, model: Model, ask: Ask) -> None:
        self._model = model
        self._ask = ask

    def forward(
        self, batch: AttentionBatch, kv: KVCache, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        logits = self._model.forward(batch, kv, out)
        self._ask(logits)
        return logits

    def hidden(self, batch: AttentionBatch, kv: KVCache) -> torch.Tensor:
        return self._model.hidden(batch, kv)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._model.logits(hidden)


# --- without a GPU: tensors without values ----------------------------------------------------

META = torch.device("meta")


class ValuelessLane(HostLane):
    """Of a device that shows no values: zeros arrive in their place."""

    def upload(self, words: Array, apply: Callable[[torch.Tensor], None]) -> None:
        """`Lane.upload`."""
        if words.shape[1]:
            apply(torch.empty(words.shape, dtype=torch.int32, device=META))

    def fetch(self, outcome: Sequence[torch.Tensor]) -> Fetched:
        """`Lane.fetch`."""
        types = [torch.empty(0, dtype=tensor.dtype).numpy().dtype for tensor in outcome]
        shapes = [tuple(tensor.shape) for tensor in outcome]
        return Zeros([np.zeros(*each) for each in zip(shapes, types, strict=True)])


class Zeros:
    """What `ValuelessLane` fetches."""

    def __init__(self, arrays: list[Array]) -> None:
        self._arrays = arrays

    def wait(self) -> list[Array]:
        """`Fetched.wait`."""
        return self._arrays

    def device_us(self) -> tuple[int, int]:
        """`Fetched.device_us`."""
        return 0, 0


class OneDevice(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses operations on tensors of the host and of the device at once: one would be copied.

    A single number of the host's is no copy: it travels as an argument of the launch.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs it and looks at what went in and what came out."""
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if torch.is_tensor(leaf)]
        is_copy = "copy" in func.name()
        devices = {tensor.device for tensor in tensors if tensor.dim() or is_copy}
        if len(devices) > 1:
            raise RuntimeError(f"{func.name()} brings a tensor from one device to another")
        return out


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of kernels that are launched, onto nothing."""
    pytest.importorskip("triton")
    from kernels.gpu import attention_kernels, tiling

    names: set[str] = set()

    def run(kernel: Any, *_: object, **__: object) -> None:
        names.add(kernel.fn.__name__)

    monkeypatch.setattr(type(attention_kernels.attend_chunks_kernel), "run", run)
    monkeypatch.setattr(tiling, "gpu_of", lambda _: tiling.HOPPER)
    return names


@pytest.fixture
def valueless_model(
    tmp_path: Path, launched: set[str], monkeypatch: pytest.MonkeyPatch
) -> LoadedModel:
    """On the ops of a GPU."""
    gpu_ops = ops.select(torch.device("cuda"), torch.bfloat16)
    monkeypatch.setattr(ops, "select", lambda device, dtype: gpu_ops)
    return load_model(write_tiny_llama(tmp_path / "tiny"), dtype="bfloat16", device=META)


def valueless_runner(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, model: Model | None = None
) -> DeviceRunner:
    """As a GPU's worker makes it, in bfloat16 and on Triton's host functions."""
    from kernels.gpu import sampler, step
    from kernels.gpu.sampler_tiles import Tiles

    monkeypatch.setattr(runners, "make_lane", lambda _: ValuelessLane())
    tiles = Tiles.empty(NUM_SLOTS, VOCAB_SIZE, META)
    step_ops = ops.DeviceStepOps(
        apply_writes=step.apply_writes,
        decode_inputs=step.decode_inputs,
        chunk_inputs=step.chunk_inputs,
        sample_and_commit=partial(sampler.sample_and_commit, tiles=tiles),
    )
    return make_device_runner(loaded, model, buckets=BUCKETS, step_ops=step_ops, device=META)


def test_the_loop_runs_without_a_value_in_sight(
    valueless_model: LoadedModel, launched: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = valueless_runner(valueless_model, monkeypatch)
    with OneDevice():  # type: ignore[no-untyped-call]
        results = churn(runner)
    assert sum(len(result.slot) for result in results) > 50
    assert any(result.logprobs is not None for result in results)
    assert launched >= {
        "apply_writes_kernel",
        "attend_chunks_kernel",
        "attend_decodes_kernel",
        "chunk_inputs_kernel",
        "decode_inputs_kernel",
        "gated_kernel",
        "rms_norm_kernel",
        "rope_and_store_kernel",
        "scan_kernel",
        "settle_kernel",
        "weigh_kernel",
    }


@pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS.keys())
def test_whoever_asks_for_a_value_is_found(
    ask: Ask, valueless_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = valueless_runner(valueless_model, monkeypatch)
    asking = Asking(valueless_model.model, ask)
    with OneDevice():  # type: ignore[no-untyped-call]
        churn(quiet)
        with pytest.raises((RuntimeError, NotImplementedError)):
            churn(valueless_runner(valueless_model, monkeypatch, asking))


# --- the source -------------------------------------------------------------------------------

NUMPY = "numpy's, from the plan's columns or the host's counts"
START = "before the first plan, or after the last"
ELSEWHERE = "on the thread that waits for results"
RING = "of a buffer used several plans ago: guards pinned memory, and is long past"
HOST = "the device is the host"
GRAMMAR = "while the forward pass runs, and only with sequences whose masks follow their tokens"
ALLOWED: dict[Call, str] = {
    ("kernels/batch.py", "AttentionBatch.chunks", "tolist"): "the CPU's ops ask, no kernel does",
    ("worker/device_runner.py", "DeviceRunner.__init__", "drain"): START,
    ("worker/device_runner.py", "DeviceRunner._launch_mixed", "int"): NUMPY,
    ("worker/device_runner.py", "DeviceRunner._launch_mixed", "tolist"): NUMPY,
    ("worker/device_masks.py", "DeviceMasks.refresh", "wait"): GRAMMAR,
    ("worker/step_outputs.py", "StepOutputs.fetch", "int"): NUMPY,
    ("worker/decode_steps.py", "DecodeSteps.capture", "drain"): START,
    ("worker/device_runner.py", "DeviceRunner.reset", "drain"): START,
    ("worker/completion.py", "Completion._result", "wait"): ELSEWHERE,
    ("worker/completion.py", "Completion.drain", "wait"): START,
    ("worker/lane.py", "CudaLane._upload_piece", "numpy"): "of pinned memory",
    ("worker/lane.py", "CudaLane._upload_piece", "synchronize"): RING,
    ("worker/lane.py", "CudaLane.drain", "synchronize"): START,
    ("worker/lane.py", "CudaLane.free_bytes", "drain"): START,
    ("worker/lane.py", "CudaLane.free_bytes", "int"): START,
    ("worker/lane.py", "CudaLane.peak_bytes", "drain"): START,
    ("worker/lane.py", "CudaLane.total_bytes", "int"): START,
    ("worker/lane.py", "HostLane.fetch", "numpy"): HOST,
    ("worker/lane.py", "HostLane.upload", "from_numpy"): HOST,
    ("worker/lane.py", "HostLane.upload_rows", "from_numpy"): HOST,
    ("worker/lane.py", "_InFlight.wait", "numpy"): ELSEWHERE,
    ("worker/lane.py", "_InFlight.wait", "synchronize"): ELSEWHERE,
    ("worker/models/vocabulary.py", "Embedding.read", "item"): START,
    ("worker/models/vocabulary.py", "Embedding.read", "tensor"): START,
}


def test_every_call_that_could_wait_is_known() -> None:
    found = waiting_calls()
    assert found - ALLOWED.keys() == set(), "new on the hot path: may they wait for the device?"
    assert ALLOWED.keys() - found == set(), "no longer there: take them off the list"


def test_a_call_that_could_wait_is_seen() -> None:
    source = """
class Runner:
    def launch(self, logits):
        def inner():
            return [logits.argmax().item()]
        torch.cuda.synchronize()
        return int(logits.max()), [row.tolist() for row in logits.cpu()]

@triton.jit
def kernel(x):
    return int(x)
"""
    assert waiting_calls_in(source, "file") == {
        ("file", "Runner.launch", "cpu"),
        ("file", "Runner.launch", "int"),
        ("file", "Runner.launch", "synchronize"),
        ("file", "Runner.launch", "tolist"),
        ("file", "Runner.launch.inner", "item"),
    }


# --- on a GPU ---------------------------------------------------------------------------------


@contextmanager
def waits_refused() -> Iterator[None]:
    """Within it torch raises where it would wait for the device."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it does not see everything yet
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def gpu_runner(directory: Path, buckets: Sequence[int], ask: Ask | None = None) -> DeviceRunner:
    """As a worker makes it, in bfloat16."""
    device = torch.device("cuda", 0)
    loaded = load_model(
        write_tiny_llama(directory / "tiny", head_dim=64), dtype="bfloat16", device=device
    )
    step_ops = ops.select_step(device, NUM_SLOTS, VOCAB_SIZE)
    assert step_ops is not None
    model = None if ask is None else Asking(loaded.model, ask)
    return make_device_runner(loaded, model, buckets=buckets, step_ops=step_ops, device=device)


@pytest.mark.gpu
@pytest.mark.parametrize("buckets", [(), BUCKETS])
def test_a_gpu_s_loop_waits_for_nothing(tmp_path: Path, buckets: Sequence[int]) -> None:
    runner = gpu_runner(tmp_path, buckets)
    churn(runner)  # what is to be compiled is
    runner.reset()
    with waits_refused():
        results = churn(runner)
    assert sum(len(result.slot) for result in results) > 50
    runner.close()


@pytest.mark.gpu
def test_torch_refuses_to_wait(tmp_path: Path) -> None:
    runner = gpu_runner(tmp_path, (), ASKS["item"])
    churn(runner)
    runner.reset()
    with waits_refused(), pytest.raises(RuntimeError, match="synchronizing"):
        churn(runner)
    runner.reset()
    runner.close()
