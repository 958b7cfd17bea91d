"""What a decode step cannot be faster than: its bytes over the memory's bandwidth, and its
multiplications over the best rate of large matrices, both measured here.

    python -m bench.compare_cpu.limits --model DIR --threads 2     # prints them as JSON
"""

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.compare_cpu.loads import Case

_BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "int4": 0.5}
"""Of a weight, without scales."""
_KV_BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "int4": 1.0}
"""Of a key's or value's element: the least that an engine of that kind keeps."""
_BUFFER_FLOATS = 1 << 26
_GEMM_SIDE = 2048
EACH_S = 2.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one model on one machine.

    Attributes:
        bytes_per_s: the better of copying (read and written bytes) and reading.
        flops_per_s: by precision.
        num_weights: that a step multiplies with.
        kv_elements: of one token, keys and values of all layers.
    """

    bytes_per_s: float
    flops_per_s: Mapping[str, float]
    num_weights: int
    kv_elements: int

    def step_ms(self, case: Case, precision: str) -> float:
        """A decode step of the whole case in flight, half of each answer made.

        What all prompts begin with is read once. Whatever is narrower than float32 is given the
        best rate that anything has.
        """
        own = case.input_len - case.shared_len + case.output_len / 2
        kv = (case.shared_len + case.concurrency * own) * self.kv_elements * _KV_BYTES[precision]
        read_s = (self.num_weights * _BYTES[precision] + kv) / self.bytes_per_s
        rates = self.flops_per_s
        rate = rates[precision] if precision == "float32" else max(rates.values())
        return 1e3 * max(read_s, 2 * case.concurrency * self.num_weights / rate)

    @classmethod
    def measured(cls, model: Path, threads: int, each_s: float = EACH_S) -> "Limits":
        """In a process of its own, whose memory is gone afterwards; each rate so long."""
        arguments = ("--model", str(model), "--threads", str(threads), "--each-s", str(each_s))
        done = subprocess.run(
            [sys.executable, "-m", "bench.compare_cpu.limits", *arguments],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        return cls(**json.loads(done.stdout))


def _best_s(work: Callable[[], object], each_s: float) -> float:
    work()
    best, ends_at = math.inf, time.monotonic() + each_s
    while True:
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
        if time.monotonic() >= ends_at:
            return best


def _bytes_per_s(each_s: float) -> float:
    import torch

    source = torch.ones(_BUFFER_FLOATS)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / _best_s(lambda: target.copy_(source), each_s)
    return max(copied, source.nbytes / _best_s(source.sum, each_s))


def _flops_per_s(each_s: float) -> dict[str, float]:
    import torch

    floats = torch.randn(_GEMM_SIDE, _GEMM_SIDE)
    halves = floats.bfloat16()
    codes = torch.randint(-100, 100, floats.shape, dtype=torch.int8)
    products: dict[str, Callable[[], Any]] = {
        "float32": lambda: floats @ floats,
        "bfloat16": lambda: halves @ halves,
        "int8": lambda: torch._int_mm(codes, codes),
    }
    flops = 2 * _GEMM_SIDE**3
    return {name: flops / _best_s(product, each_s) for name, product in products.items()}


def _shape(model: Path) -> dict[str, int]:
    from worker.models.registry import checkpoint_tensors, parse_config

    config = parse_config(json.loads((model / "config.json").read_text()))
    weights = sum(map(math.prod, checkpoint_tensors(config).values()))
    if not config.tied_embeddings:  # then the embedding is only looked up
        weights -= config.vocab_size * config.hidden_size
    kv = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    return {"num_weights": weights, "kv_elements": kv}


def main(
    model: Annotated[Path, typer.Option(help="Model directory.")],
    threads: Annotated[int, typer.Option(min=1)] = 2,
    each_s: Annotated[float, typer.Option(help="Seconds for each rate.")] = EACH_S,
) -> None:
    """Measures, and prints one line of JSON."""
    import torch

    torch.set_num_threads(threads)
    limits = Limits(_bytes_per_s(each_s), _flops_per_s(each_s), **_shape(model))
    print(json.dumps(asdict(limits)))


if __name__ == "__main__":
    typer.run(main)
