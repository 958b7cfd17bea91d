"""Whole steps on the device: models of well-known shapes with random weights, no serving around.

    python -m bench.gpu.steps                       on the GPU
    python -m bench.gpu.steps --device cpu --tiny   that it runs

Each is compared with its floor: what reading weights and KV, and multiplying, would take at the
rates of a large copy and a large matrix product.
"""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from bench.gpu.device import Rates
from bench.gpu.floors import Floors
from bench.gpu.loop import BLOCK_SIZE, Loop, load_shape
from bench.gpu.shapes import Shape, write_model
from bench.gpu.sheet import Outcome, Sheet
from bench.gpu.suite import Suite, run_suite
from bench.recording import Target

_SPARE_TOKENS = 16


class Model:
    """One model on the device, made when it is first asked for.

    Args:
        suite: what to measure with.
        rates: the device's.
        shape: which model.
        batches: numbers of decode rows that get a captured step.
        prompt: tokens of the longest chunk.
    """

    def __init__(
        self, suite: Suite, rates: Rates, shape: Shape, batches: tuple[int, ...], prompt: int
    ) -> None:
        self._suite, self._rates = suite, rates
        self._shape, self._batches, self._prompt = shape, batches, prompt
        self._running: tuple[Loop, Floors] | None = None

    def decodes(self, rows: int, *, limit_ms: float | None, limit_idle_us: float | None) -> Outcome:
        """Decode steps of so many rows, captured and kernel by kernel."""
        loop, floors = self._started()
        scale = self._suite.scale
        floor_s = floors.decode_s(rows, scale.context)
        figures: dict[str, Any] = {"floor_ms": 1e3 * floor_s}
        for name, captured in (("captured", True), ("eager", False)):
            steps = loop.decodes(rows, scale.context, scale.num_steps, captured=captured)
            figures[name] = {
                "step_ms": 1e3 * steps.step_s,
                "of_floor": floor_s / steps.step_s,
                "tokens_per_s": rows / steps.step_s,
                "device_busy_p50_us": steps.busy_us,
                "device_idle_p50_us": steps.idle_us,
            }
        reached, what = figures["captured"], f"{self._shape.name}, batch {rows} at {scale.context}"
        targets = []
        if limit_ms is not None:
            targets.append(Target(f"{what}: ms per step", reached["step_ms"], limit_ms))
        if limit_idle_us is not None:
            idle_us = reached["device_idle_p50_us"]
            targets.append(Target(f"{what}: device idle between steps, µs", idle_us, limit_idle_us))
        return figures, targets

    def prefill(self) -> Outcome:
        """A long prompt, in one chunk and in chunks of the usual budget."""
        loop, floors = self._started()
        scale = self._suite.scale
        floor = scale.prompt / floors.prefill_s(scale.prompt)
        figures: dict[str, Any] = {"floor_tokens_per_s": floor}
        for chunk in (scale.prompt, scale.chunk):
            loop.prompt_s(scale.prompt, chunk)  # what is to be compiled is
            took = min(loop.prompt_s(scale.prompt, chunk) for _ in range(3))
            figures[f"chunks of {chunk}"] = {
                "ms": 1e3 * took,
                "tokens_per_s": scale.prompt / took,
                "of_floor": scale.prompt / took / floor,
            }
        reached = figures[f"chunks of {scale.prompt}"]["tokens_per_s"]
        what = f"{self._shape.name}, prompt of {scale.prompt}: tokens/s"
        return figures, [Target(what, reached, 32_000, at_least=True)]

    def close(self) -> None:
        """Lets its memory go."""
        if self._running is not None:
            self._running[0].close()
        self._running = None
        self._suite.device.let_go()

    def _started(self) -> tuple[Loop, Floors]:
        if self._running is None:
            self._running = self._start()
        return self._running

    def _start(self) -> tuple[Loop, Floors]:
        scale, device, rows = self._suite.scale, self._suite.device, max(self._batches)
        total = scale.context + scale.num_steps + _SPARE_TOKENS
        max_model_len = max(total, self._prompt + _SPARE_TOKENS)
        with tempfile.TemporaryDirectory(prefix="quire-bench-") as directory:
            loaded = load_shape(write_model(Path(directory), self._shape), device, max_model_len)
        each, longest = -(-total // BLOCK_SIZE), -(-max_model_len // BLOCK_SIZE)
        loop = Loop(
            loaded,
            device,
            max_num_seqs=rows,
            max_num_batched_tokens=max(self._prompt, rows),
            num_blocks=max(rows * each, longest),
        )
        loop.runner.capture(self._batches)
        return loop, Floors.of(loaded, self._rates)


def measure(sheet: Sheet, suite: Suite) -> None:
    """All parts, in order of importance within a model: each is loaded once."""
    scale, rates = suite.scale, suite.device.rates(suite.scale)
    few, many = scale.few_rows, scale.many_rows
    limits_ms = {1: 4.6, few: 7.5, many: 17.0}
    large = Model(suite, rates, scale.large, (1, few, many), scale.prompt)
    for rows in (1, few, many):
        part = partial(
            large.decodes,
            rows,
            limit_ms=limits_ms[rows],
            limit_idle_us=50.0 if rows == few else None,
        )
        sheet.part(f"{scale.large.name}, batch {rows}", part)
    sheet.part(f"{scale.large.name}, prompt", large.prefill)
    large.close()
    small = Model(suite, rates, scale.small, (1,), scale.chunk)
    sheet.part(
        f"{scale.small.name}, batch 1",
        partial(small.decodes, 1, limit_ms=0.75, limit_idle_us=None),
    )
    small.close()
    middle = Model(suite, rates, scale.middle, (1, few), scale.chunk)
    for rows in (1, few):
        part = partial(middle.decodes, rows, limit_ms=None, limit_idle_us=None)
        sheet.part(f"{scale.middle.name}, batch {rows}", part)
    middle.close()


if __name__ == "__main__":
    run_suite(measure)
