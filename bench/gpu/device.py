"""The device that is measured: what it is, how fast it copies and multiplies, and a stopwatch.

Floors come from these two rates and nothing else: no data sheet, and the same process, the same
minute, the same clocks as what is compared with them.
"""

import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from bench.gpu.scale import Scale
from worker.lane import Lane, make_lane

_ROUNDS = 5
_ROUND_S = 0.01


@dataclass(frozen=True, slots=True)
class Rates:
    """What the device reaches at its two simplest tasks.

    Attributes:
        bytes_per_s: of a large copy on the device, reading and writing both counted.
        flops_per_s: of a large matrix product in the number format of the models.
    """

    bytes_per_s: float
    flops_per_s: float


def find(name: str) -> torch.device:
    """The device that is "auto", "cuda" or "cpu"; raises RuntimeError where there is none such."""
    has_gpu = torch.cuda.is_available()
    if name not in ("auto", "cuda", "cpu"):
        raise RuntimeError(f"device is {name}; it must be auto, cuda or cpu")
    if name == "cuda" and not has_gpu:
        raise RuntimeError("this machine has no CUDA device that torch can use")
    is_gpu = has_gpu if name == "auto" else name == "cuda"
    return torch.device("cuda", 0) if is_gpu else torch.device("cpu")


def facts(device: torch.device) -> dict[str, Any]:
    """What a record says of a device; takes none of its memory."""
    if device.type != "cuda":
        return {"device": "cpu"}
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": properties.name,
        "device_memory_gib": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
        "driver": _driver(),
        "cuda": torch.version.cuda,
    }


class Device:
    """One device, and the lane that work is timed on.

    Attributes:
        torch_device: as torch names it.
        dtype: number format of weights and KV.
        lane: its queue.
    """

    def __init__(self, name: str) -> None:
        """Raises RuntimeError as `find`."""
        self.torch_device = find(name)
        self.is_gpu = self.torch_device.type == "cuda"
        self.dtype = torch.bfloat16 if self.is_gpu else torch.float32
        self.lane: Lane = make_lane(self.torch_device)

    def random(self, *shape: int) -> torch.Tensor:
        """Normally distributed, in the models' number format."""
        return torch.randn(*shape, dtype=self.dtype, device=self.torch_device)

    def seconds(self, work: Callable[[], object]) -> float:
        """How long a launch takes on the device: the median of a few rounds of many.

        A round is one captured graph where the device has such, so that the host's time to launch
        does not count.
        """
        with torch.inference_mode():
            # What was made on other streams is there, and what must be compiled is.
            self.lane.drain()
            with self.lane.active():
                work()
                self.lane.drain()
                once = _elapsed(self.lane, work)
                launches = max(1, min(200, round(_ROUND_S / max(once, 1e-6))))
                replay = self.lane.record(lambda: _repeat(work, launches))
                replay()
                self.lane.drain()
                rounds = [_elapsed(self.lane, replay) for _ in range(_ROUNDS)]
        return statistics.median(rounds) / launches

    def rates(self, scale: Scale) -> Rates:
        """Measured now."""
        found = Rates(self._copied(scale.copy_bytes), self._multiplied(scale.matmul_size))
        self.let_go()
        return found

    def _copied(self, num_bytes: int) -> float:
        source = torch.empty(num_bytes, dtype=torch.uint8, device=self.torch_device)
        target = torch.empty_like(source)
        return 2 * num_bytes / self.seconds(lambda: target.copy_(source))

    def _multiplied(self, size: int) -> float:
        a, b = self.random(size, size), self.random(size, size)
        product = torch.empty_like(a)
        return 2 * size**3 / self.seconds(lambda: torch.mm(a, b, out=product))

    def let_go(self) -> None:
        """Gives back memory that nothing uses: other processes want it."""
        self.lane.free_bytes()


def _repeat(work: Callable[[], object], times: int) -> torch.Tensor:
    for _ in range(times):
        work()
    return torch.empty(0)


def _elapsed(lane: Lane, work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    lane.drain()
    return time.perf_counter() - began


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.split("\n", maxsplit=1)[0].strip()
