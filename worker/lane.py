"""How work gets onto the device and its outcome off it, without the host ever waiting in between.

    upload   words → a pinned buffer of a ring → the device        guarded by an event per buffer
    record   a step's launches → one CUDA graph, replayed at the cost of one launch
    fetch    the outcome → (copy stream) → pinned memory           waited for by another thread

`CudaLane` is that. `HostLane` is the same for tensors that the host reaches anyway: everything has
happened when a call returns. The step loop knows only `Lane`.
"""

import gc
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]

RING_BUFFERS = 6
"""More than the plans in flight and the one being packed: a buffer is free when its turn comes."""

RING_WORDS = 1 << 17


class Fetched(Protocol):
    """An outcome on its way to the host."""

    def wait(self) -> list[Array]:
        """The arrays, once they have arrived; lets other threads run while it waits."""
        ...

    def device_us(self) -> tuple[int, int]:
        """After `wait`: µs the device was idle before the step, and µs it took."""
        ...


class Lane(Protocol):
    """One device's queue of work, in order."""

    def active(self) -> AbstractContextManager[object]:
        """Within it, launches go onto this lane."""
        ...

    def upload(self, words: Array, apply: Callable[[torch.Tensor], None]) -> None:
        """Brings [2, count] int32 to the device, in pieces if it is long; `apply` takes each."""
        ...

    def upload_rows(self, rows: Array, apply: Callable[[torch.Tensor], None]) -> None:
        """Brings [count, width] int32 to the device, some whole rows at a time, likewise."""
        ...

    def begin(self) -> None:
        """Marks where a step's work begins."""
        ...

    def fetch(self, outcome: Sequence[torch.Tensor]) -> Fetched:
        """Marks where a step's work ends, and sends these tensors as they are then to the host."""
        ...

    def record(self, launch: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """Makes launches replayable. `launch` must have run before; its result is then static."""
        ...

    def drain(self) -> None:
        """Waits until everything has run, what is not of this lane too."""
        ...

    def peak_bytes(self, work: Callable[[], None]) -> int:
        """Device memory that some work reserved beyond what was reserved before, at most."""
        ...

    def free_bytes(self) -> int:
        """Device memory that could still be had, after giving back what is reserved and unused."""
        ...

    def total_bytes(self) -> int:
        """Memory of the device."""
        ...


class HostLane:
    """For tensors in the host's memory."""

    def active(self) -> AbstractContextManager[object]:
        """Nothing to switch."""
        return nullcontext()

    def upload(self, words: Array, apply: Callable[[torch.Tensor], None]) -> None:
        """`Lane.upload`."""
        if words.shape[1]:
            apply(torch.from_numpy(words))

    def upload_rows(self, rows: Array, apply: Callable[[torch.Tensor], None]) -> None:
        """`Lane.upload_rows`."""
        if len(rows):
            apply(torch.from_numpy(rows))

    def begin(self) -> None:
        """`Lane.begin`."""

    def fetch(self, outcome: Sequence[torch.Tensor]) -> "Fetched":
        """`Lane.fetch`."""
        return _Arrived([tensor.numpy().copy() for tensor in outcome])

    def record(self, launch: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """`Lane.record`."""
        return launch

    def drain(self) -> None:
        """`Lane.drain`."""

    def peak_bytes(self, work: Callable[[], None]) -> int:
        """`Lane.peak_bytes`; the host's memory is not counted."""
        work()
        return 0

    def free_bytes(self) -> int:
        """`Lane.free_bytes`; the host's memory is not counted."""
        return 0

    def total_bytes(self) -> int:
        """`Lane.total_bytes`; the host's memory is not counted."""
        return 0


class _Arrived:
    def __init__(self, arrays: list[Array]) -> None:
        self._arrays = arrays

    def wait(self) -> list[Array]:
        return self._arrays

    def device_us(self) -> tuple[int, int]:
        return 0, 0


class CudaLane:
    """One CUDA device.

    Args:
        device: which.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = _stream(device)
        self._copy_stream = _stream(device)
        self._graph_pool: Any = None
        self._ring = [
            torch.empty(2 * RING_WORDS, dtype=torch.int32, pin_memory=True)
            for _ in range(RING_BUFFERS)
        ]
        self._staged = [
            torch.empty(2 * RING_WORDS, dtype=torch.int32, device=device)
            for _ in range(RING_BUFFERS)
        ]
        self._ring_free = [_event() for _ in range(RING_BUFFERS)]
        self._turn = 0
        self._begun = _event(enable_timing=True)
        self._last_end: torch.cuda.Event | None = None

    def active(self) -> AbstractContextManager[object]:
        """`Lane.active`."""
        context: AbstractContextManager[object] = torch.cuda.stream(self._stream)
        return context

    def upload(self, words: Array, apply: Callable[[torch.Tensor], None]) -> None:
        """`Lane.upload`."""
        for start in range(0, words.shape[1], RING_WORDS):
            self._upload_piece(words[:, start : start + RING_WORDS], apply)

    def upload_rows(self, rows: Array, apply: Callable[[torch.Tensor], None]) -> None:
        """`Lane.upload_rows`."""
        at_once = max(1, 2 * RING_WORDS // rows.shape[1])
        for start in range(0, len(rows), at_once):
            self._upload_piece(rows[start : start + at_once], apply)

    def _upload_piece(self, words: Array, apply: Callable[[torch.Tensor], None]) -> None:
        turn, self._turn = self._turn, (self._turn + 1) % RING_BUFFERS
        self._ring_free[turn].synchronize()  # long past, but for a plan of many pieces
        count = words.size
        pinned, staged = self._ring[turn][:count], self._staged[turn][:count]
        np.copyto(pinned.numpy().reshape(words.shape), words)
        staged.copy_(pinned, non_blocking=True)
        apply(staged.view(words.shape))
        self._ring_free[turn].record(self._stream)

    def begin(self) -> None:
        """`Lane.begin`."""
        self._begun = _event(enable_timing=True)
        self._begun.record(self._stream)

    def fetch(self, outcome: Sequence[torch.Tensor]) -> Fetched:
        """`Lane.fetch`.

        The tensors are copied on the device first: the next step may write over them before the
        copy stream has read them.
        """
        kept = [tensor.clone() for tensor in outcome]
        end = _event(enable_timing=True)
        end.record(self._stream)
        arrived = _event(blocking=True)  # whoever waits sleeps instead of spinning
        with torch.cuda.stream(self._copy_stream):
            self._copy_stream.wait_event(end)
            # torch takes the destination from its pool of pinned memory.
            on_host = [tensor.to("cpu", non_blocking=True) for tensor in kept]
            for tensor in kept:
                tensor.record_stream(self._copy_stream)
            arrived.record(self._copy_stream)
        fetched = _InFlight(on_host, arrived, self._last_end, self._begun, end)
        self._last_end = end
        return fetched

    def record(self, launch: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """`Lane.record`: one CUDA graph; all graphs of a lane share one pool of memory."""
        if self._graph_pool is None:
            self._graph_pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._graph_pool, stream=self._stream):
            result = launch()

        def replay() -> torch.Tensor:
            graph.replay()
            return result

        return replay

    def drain(self) -> None:
        """`Lane.drain`."""
        torch.cuda.synchronize(self._device)

    def peak_bytes(self, work: Callable[[], None]) -> int:
        """`Lane.peak_bytes`."""
        self.free_bytes()
        before = torch.cuda.memory_reserved(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        work()
        self.drain()
        return torch.cuda.max_memory_reserved(self._device) - before

    def free_bytes(self) -> int:
        """`Lane.free_bytes`."""
        self.drain()
        gc.collect()
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(self._device)[0])

    def total_bytes(self) -> int:
        """`Lane.total_bytes`."""
        return int(torch.cuda.mem_get_info(self._device)[1])


class _InFlight:
    def __init__(
        self,
        on_host: list[torch.Tensor],
        arrived: torch.cuda.Event,
        before: torch.cuda.Event | None,
        begun: torch.cuda.Event,
        end: torch.cuda.Event,
    ) -> None:
        self._on_host = on_host
        self._arrived = arrived
        self._before, self._begun, self._end = before, begun, end

    def wait(self) -> list[Array]:
        self._arrived.synchronize()
        return [tensor.numpy() for tensor in self._on_host]

    def device_us(self) -> tuple[int, int]:
        idle = 0.0 if self._before is None else self._before.elapsed_time(self._begun)
        return round(max(0.0, idle) * 1e3), round(self._begun.elapsed_time(self._end) * 1e3)


def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _event(*, enable_timing: bool = False, blocking: bool = False) -> torch.cuda.Event:
    return torch.cuda.Event(  # type: ignore[no-untyped-call]
        enable_timing=enable_timing, blocking=blocking
    )


def make_lane(device: torch.device) -> Lane:
    """The lane of a device."""
    return CudaLane(device) if device.type == "cuda" else HostLane()
