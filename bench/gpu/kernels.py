"""Kernels alone: how near each comes to what the device can copy or multiply.

    python -m bench.gpu.kernels                       on the GPU
    python -m bench.gpu.kernels --device cpu --tiny   that it runs

A kernel that moves data is compared with a large copy, one that multiplies with a large matrix
product, both measured here. What a kernel reads twice counts once: the floor is the task's.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from bench.gpu.device import Device, Rates
from bench.gpu.scale import Scale
from bench.gpu.sheet import Outcome, Sheet
from bench.gpu.suite import Suite, run_suite
from bench.recording import Target
from kernels.batch import AttentionBatch, RopeTable, Scoring, StepTensors
from kernels.ops import DEVICE_STEP_REFERENCE, select, select_step
from worker.device_tables import DeviceTables, Layout
from worker.models.registry import parse_config

BLOCK_SIZE = 16


class Kernels:
    """The ops of one device, with tensors of the large model's sizes."""

    def __init__(self, device: Device, scale: Scale, rates: Rates) -> None:
        self._device, self._scale, self._rates = device, scale, rates
        self._config = parse_config(scale.large.config)
        self._ops = select(device.torch_device, device.dtype)

    def decode_attention(self) -> Outcome:
        """One token for each row, long contexts."""
        rows, context = self._scale.few_rows, self._scale.kernel_context
        step = self._step([1] * rows, [context] * rows)
        figures = self._moved(self._attention(step), 2 * rows * context * self._kv_row_bytes)
        target = Target(
            f"decode attention, batch {rows} × {context}: share of copy bandwidth",
            figures["of_copy"],
            0.85,
            at_least=True,
        )
        return figures, [target]

    def prefill_attention(self) -> Outcome:
        """One long prompt from its beginning."""
        config, tokens = self._config, self._scale.prompt
        pairs = tokens * (tokens + 1) // 2
        flops = 4 * config.num_heads * config.head_dim * pairs
        took = self._device.seconds(self._attention(self._step([tokens], [tokens])))
        of_matmul = flops / took / self._rates.flops_per_s
        figures = {"us": 1e6 * took, "tflops": flops / took / 1e12, "of_matmul": of_matmul}
        target = Target(
            f"prefill attention, {tokens} tokens: share of the matrix rate",
            of_matmul,
            0.60,
            at_least=True,
        )
        return figures, [target]

    def elementwise(self) -> Outcome:
        """What stands between the matrix products, for a full step of prompts and of decodes."""
        figures = {}
        for tokens in (self._scale.prompt, self._scale.few_rows):
            bytes_each = tokens * self._device.dtype.itemsize
            hidden, inner = self._config.hidden_size, self._config.intermediate_size
            figures[f"{tokens} tokens"] = {
                "add_rms_norm": self._moved(self._norm(tokens), 4 * hidden * bytes_each),
                "rope_and_store": self._moved(self._rope(tokens), 2 * self._qkv_size * bytes_each),
                "silu_mul": self._moved(self._silu(tokens), 3 * inner * bytes_each),
            }
        return figures, []

    def sampling(self) -> Outcome:
        """A token for each row of full slots, and of few."""
        choices = {
            "greedy": {},
            "temperature": {"temperature": 0.8},
            "top-p": {"temperature": 0.8, "top_p": 0.9},
            "top-k and top-p": {"temperature": 0.8, "top_k": 50, "top_p": 0.9},
        }
        figures: dict[str, Any] = {}
        for rows in (self._scale.many_rows, self._scale.few_rows):
            logits = 3 * self._device.random(rows, self._config.vocab_size)
            figures[f"{rows} rows"] = {
                name: self._moved(self._sampler(logits, changes), logits.nbytes)
                for name, changes in choices.items()
            }
        return figures, []

    # --- one launch each -------------------------------------------------------------------------

    def _moved(self, work: Callable[[], object], num_bytes: int) -> dict[str, float]:
        took = self._device.seconds(work)
        rate = num_bytes / took
        return {
            "us": 1e6 * took,
            "gb_per_s": rate / 1e9,
            "of_copy": rate / self._rates.bytes_per_s,
        }

    @property
    def _kv_row_bytes(self) -> int:
        """Of one token's keys, or its values, in one layer."""
        config = self._config
        return config.num_kv_heads * config.head_dim * self._device.dtype.itemsize

    @property
    def _qkv_size(self) -> int:
        config = self._config
        return (config.num_heads + 2 * config.num_kv_heads) * config.head_dim

    def _attention(self, step: StepTensors) -> Callable[[], object]:
        config = self._config
        query = self._device.random(step.batch.num_tokens, config.num_heads, config.head_dim)
        keys, values = self._cache(step), self._cache(step)
        scoring = Scoring(config.head_dim**-0.5)
        return partial(self._ops.paged_attention, query, keys, values, step, scoring)

    def _norm(self, tokens: int) -> Callable[[], object]:
        x, residual = (self._device.random(tokens, self._config.hidden_size) for _ in range(2))
        return partial(self._ops.add_rms_norm, x, residual, torch.ones_like(x[0]), 1e-5)

    def _rope(self, tokens: int) -> Callable[[], object]:
        qkv = self._device.random(tokens, self._qkv_size)
        is_decode = tokens == self._scale.few_rows
        rows = [1] * tokens if is_decode else [tokens]
        step = self._step(rows, rows)
        keys, values = self._cache(step), self._cache(step)
        return partial(self._ops.rope_and_store, qkv, step, keys, values, None)

    def _silu(self, tokens: int) -> Callable[[], object]:
        gate_up = self._device.random(tokens, 2 * self._config.intermediate_size)
        return partial(self._ops.silu_mul, gate_up)

    def _sampler(self, logits: torch.Tensor, changes: dict[str, float]) -> Callable[[], object]:
        device, (rows, vocab_size) = self._device.torch_device, logits.shape
        tables = _sampling_tables(rows, vocab_size, device)
        for name, value in changes.items():
            getattr(tables.sampling, name).fill_(value)
        step_ops = select_step(device, rows, vocab_size) or DEVICE_STEP_REFERENCE
        slot = torch.arange(rows, dtype=torch.int32, device=device)
        token_id, finish = torch.empty_like(slot), torch.empty_like(slot)
        return partial(
            step_ops.sample_and_commit,
            logits,
            slot,
            torch.ones_like(slot),
            tables.sampling,
            tables.slots,
            token_id,
            finish,
        )

    def _step(self, counts: Sequence[int], contexts: Sequence[int]) -> StepTensors:
        """Rows whose blocks are scattered over the cache, as a worker's are."""
        device, config = self._device.torch_device, self._config
        width = -(-max(contexts) // BLOCK_SIZE)
        blocks = torch.randperm(len(counts) * width, device=device) + 1
        tables = torch.zeros(len(counts) + 1, width, dtype=torch.int32, device=device)
        tables[:-1] = blocks.view(len(counts), width)
        bounds = torch.tensor([0, *counts]).cumsum(0)
        positions = [torch.arange(n - new, n) for new, n in zip(counts, contexts, strict=True)]
        batch = AttentionBatch(
            token_ids=torch.zeros(sum(counts), dtype=torch.int32, device=device),
            positions=torch.cat(positions).int().to(device),
            cu_seqlens=bounds.int().to(device),
            seq_lens=torch.tensor(contexts).int().to(device),
            block_table=tables,
            num_decodes=len(counts) if max(counts) == 1 else 0,
            sample_index=torch.zeros(1, dtype=torch.int64, device=device),
            host_cu_seqlens=tuple(bounds.tolist()),
            host_seq_lens=tuple(contexts),
            row_slot=torch.arange(len(counts), dtype=torch.int32, device=device),
        )
        angles = torch.ones(config.head_dim // 2, device=device)
        return StepTensors(batch, BLOCK_SIZE, RopeTable.build(angles, max(contexts)))

    def _cache(self, step: StepTensors) -> torch.Tensor:
        num_blocks = step.batch.num_rows * step.batch.block_table.shape[1] + 1
        config = self._config
        return self._device.random(num_blocks, config.num_kv_heads, BLOCK_SIZE, config.head_dim)


def _sampling_tables(rows: int, vocab_size: int, device: torch.device) -> DeviceTables:
    """Greedy sequences that never end."""
    layout = Layout(
        max_num_seqs=rows,
        max_model_len=8,
        max_blocks=1,
        max_num_batched_tokens=rows,
        vocab_size=vocab_size,
    )
    tables = DeviceTables(layout, device, vocab_size)
    sampling = tables.sampling
    for ones in (sampling.top_p, sampling.repetition):
        ones.fill_(1.0)
    for no_tokens in (sampling.stop_ids, sampling.bias_ids):
        no_tokens.fill_(-1)
    sampling.limit.fill_(8)
    sampling.seed.copy_(torch.arange(rows + 1, device=device))
    return tables


def measure(sheet: Sheet, suite: Suite) -> None:
    """All parts; the one that most depends on comes first."""
    rates = suite.device.rates(suite.scale)
    sheet.part(
        "rates",
        lambda: (
            {"copy_gb_per_s": rates.bytes_per_s / 1e9, "matmul_tflops": rates.flops_per_s / 1e12},
            [],
        ),
    )
    kernels = Kernels(suite.device, suite.scale, rates)
    sheet.part("decode attention", kernels.decode_attention)
    sheet.part("prefill attention", kernels.prefill_attention)
    sheet.part("sampling", kernels.sampling)
    sheet.part("elementwise", kernels.elementwise)


if __name__ == "__main__":
    run_suite(measure)
