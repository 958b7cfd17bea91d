"""Plans on a device that works while the host goes on: launches, and nothing that waits.

    plan ─▶ counts (host) ─▶ writes ─▶ upload ─▶ inputs ─▶ forward ─▶ sample ─▶ fetch ─▶ completion
                                       └─ two CUDA graphs per bucket ──┘

Values feed the next step on the device: tokens, positions and ends are in `DeviceTables`. The host
knows the shape of every step from the plans alone. What a step yields reaches it later, on a thread
that waits for the copy and sends the result; results come in plan order.

Only rules that follow the output make the host wait, while a forward pass runs
(`worker.device_masks`).
"""

import time
from collections.abc import Sequence

import numpy as np
import torch

from kernels.batch import AttentionBatch
from kernels.ops import DeviceStepOps
from kernels.step_sampling import count_known_tokens
from worker.completion import Completion, Launched
from worker.constraints import Constraints
from worker.decode_steps import DecodeSteps
from worker.device_masks import DeviceMasks
from worker.device_tables import DeviceTables, Writes
from worker.executor import Deliver, Fail, Model
from worker.kv_cache import KVCache
from worker.lane import Fetched, Lane
from worker.plans import BatchPlan, PlanError
from worker.pooling import PooledRows, Pooler
from worker.prompt_scores import TILE_ROWS, PromptScores, score
from worker.slot_counts import Int64Column, SlotCounts
from worker.step_outputs import StepOutputs


class DeviceRunner:
    """Executes plans through the tables on a device.

    Args:
        model: the forward pass; its ops are those of the device.
        kv: the paged cache.
        counts: the host's.
        tables: the device's; rows for as many slots.
        lane: the device's queue.
        step_ops: the step's ends: inputs and sampling.
        constraints: what may come next in each slot.
        pooler: who wants a vector.
        max_num_seqs: slots, the null slot not counted.
    """

    def __init__(
        self,
        model: Model,
        kv: KVCache,
        counts: SlotCounts,
        tables: DeviceTables,
        lane: Lane,
        step_ops: DeviceStepOps,
        constraints: Constraints,
        pooler: Pooler,
        max_num_seqs: int,
    ) -> None:
        self._model = model
        self._kv = kv
        self._counts = counts
        self._tables = tables
        self._lane = lane
        self._ops = step_ops
        self._masks = DeviceMasks(constraints, tables.masks.allowed, lane)
        self._outputs = StepOutputs(tables, lane, step_ops, max_num_seqs)
        self._pooler = pooler
        device = tables.arena.device
        self._row_bounds = torch.arange(max_num_seqs + 1, dtype=torch.int32, device=device)
        self._scores = PromptScores(max_num_seqs)
        self._score_tile = min(TILE_ROWS, max_num_seqs)
        self._steps = DecodeSteps(self.decode, self.sample_decodes)
        self._num_ordered = 0
        self._completion = Completion(counts)
        lane.drain()  # weights, cache and tables were not made on the lane

    @property
    def num_live(self) -> int:
        """Sequences that hold a slot and have not ended, as far as the host has heard."""
        return self._counts.num_live

    @property
    def graph_buckets(self) -> tuple[int, ...]:
        """Numbers of decode rows that a graph was captured for, ascending."""
        return self._steps.buckets

    @property
    def max_draft_tokens(self) -> int:
        """None: what a slot supposes would have to be looked up on the device."""
        return 0

    def reset(self) -> None:
        """Forgets every sequence, once all that was launched has been delivered."""
        self._lane.drain()
        self._completion.drain()
        self._counts.reset()
        self._masks.reset()
        self._num_ordered = 0

    def watch(self, fail: Fail) -> None:
        """`Runner.watch`; to be called before anything that may fail is launched."""
        self._completion.watch(fail)

    def close(self) -> None:
        """`Runner.close`: the captured steps go, and the thread that delivers ends."""
        self.reset()
        self._steps.clear()
        self._completion.close()

    def capture(self, buckets: Sequence[int]) -> None:
        """Records a decode step for each number of rows; the largest first, so that they share.

        The slots' tables must hold no live sequence: recording runs steps of null rows.
        """

        def order_null_rows(num_rows: int) -> None:
            writes = Writes()
            self._tables.set_order(writes, np.empty(0, np.int64), num_rows)
            self._upload(writes)

        with torch.inference_mode(), self._lane.active():
            self._steps.capture(buckets, self._lane, order_null_rows)
        self._num_ordered = 0

    @torch.inference_mode()
    def launch(self, plan: BatchPlan, wait_us: int, deliver: Deliver) -> None:
        """Starts one plan; `deliver` gets its result later, on another thread, in plan order.

        Raises `PlanError` when the plan contradicts the counts; nothing was launched then.

        Args:
            plan: the next one, in order.
            wait_us: how long the host waited for it. Reported is how long the device was idle.
            deliver: takes the result.
        """
        started = time.perf_counter_ns()
        writes = Writes()
        if len(plan.draft_slot):
            raise PlanError("a slot may draft; this worker has said that it drafts nothing")
        had_work = self._counts.num_live > 0
        self._counts.apply(plan)
        self._masks.apply(plan)
        positions = self._admit(writes, plan)
        self._tables.append(writes, plan.append_slot, plan.append_index, plan.append_block)
        pooled = None
        with self._lane.active():
            for admission in plan.admit:
                self._pooler.admit(admission)
            if len(plan.chunk_slot):
                slots, fetched, pooled = self._launch_mixed(writes, plan, positions)
            else:
                slots, fetched = self._launch_decodes(writes, plan, positions)
        generation = self._counts.generation[slots]
        self._masks.follow(slots, generation, fetched)
        launched = Launched(
            plan=plan,
            slots=slots,
            generation=generation,
            logprob_rows=self._outputs.logprob_rows(slots),
            num_top=self._outputs.num_top(slots),
            fetched=fetched,
            pooled=pooled,
            had_work=had_work,
            prepare_us=(time.perf_counter_ns() - started) // 1000,
            deliver=deliver,
            score_runs=self._scores.runs(plan, len(self._counts.decode_slots)),
        )
        self._completion.put(launched)

    def _admit(self, writes: Writes, plan: BatchPlan) -> dict[int, int]:
        for admission in plan.admit:
            self._tables.admit(writes, admission)
            self._scores.admit(admission)
            self._outputs.admit(admission)
        return {admission.slot: admission.num_computed for admission in plan.admit}

    # --- decode rows alone -----------------------------------------------------------------------

    def _launch_decodes(
        self, writes: Writes, plan: BatchPlan, positions: dict[int, int]
    ) -> tuple[Int64Column, Fetched]:
        self._counts.advance_decodes()
        slots = self._counts.decode_slots
        graph = self._steps.captured(plan.graph_bucket)
        num_rows = plan.graph_bucket if graph is not None else len(slots)
        if num_rows < len(slots):
            raise PlanError(f"graph_bucket is {num_rows}; the plan decodes {len(slots)} slots")
        if plan.decode is not None or num_rows != self._num_ordered:
            self._tables.set_order(writes, slots, num_rows)
            self._num_ordered = num_rows
        self._tables.set_positions(writes, positions)
        self._tables.set_logprob_rows(writes, self._outputs.logprob_rows(slots))
        self._lane.begin()
        self._upload(writes)
        self._count_known_tokens(plan)
        if not len(slots):
            return slots, self._lane.fetch(())
        step = graph or self._steps.step(num_rows)
        logits = step.forward()
        self._masks.refresh(slots)
        step.sample()
        return slots, self._outputs.fetch(logits, slots)

    def decode(self, num_rows: int, logits: torch.Tensor | None = None) -> torch.Tensor:
        """The launches of a decode step; no size in them depends on anything but `num_rows`.

        Args:
            num_rows: that many.
            logits: where they go; None for a tensor of their own.
        """
        tables = self._tables
        inputs = tables.inputs
        self._ops.decode_inputs(tables.order[:num_rows], tables.slots, inputs)
        batch = AttentionBatch(
            token_ids=inputs.token_ids[:num_rows],
            positions=inputs.positions[:num_rows],
            cu_seqlens=self._row_bounds[: num_rows + 1],
            seq_lens=inputs.seq_lens[:num_rows],
            block_table=tables.slots.blocks,
            num_decodes=num_rows,
            sample_index=self._row_bounds[:num_rows],
            row_slot=inputs.row_slot[:num_rows],
        )
        return self._model.forward(batch, self._kv, logits)

    def sample_decodes(self, logits: torch.Tensor, num_rows: int) -> torch.Tensor:
        """What follows `decode`: the tokens of its rows."""
        return self._outputs.sample(logits, self._tables.order[:num_rows])

    # --- chunks among them -----------------------------------------------------------------------

    def _launch_mixed(
        self, writes: Writes, plan: BatchPlan, positions: dict[int, int]
    ) -> tuple[Int64Column, Fetched, PooledRows | None]:
        decode = self._counts.decode_slots
        computed = self._counts.advance_decodes()
        chunks = self._counts.advance_chunks(plan)
        num_decodes, tables = len(decode), self._tables
        first = np.cumsum(chunks.length) - chunks.length + num_decodes
        num_tokens = int(chunks.length.sum()) + num_decodes
        self._check_fits(num_decodes + len(chunks.slots), num_tokens)
        cu_seqlens = np.concatenate((np.arange(num_decodes), first, [num_tokens]))
        last = np.flatnonzero(chunks.samples)
        slots = np.concatenate((decode, chunks.slots[last]))
        positions.update(zip(chunks.slots.tolist(), chunks.end.tolist(), strict=True))
        tables.set_order(writes, decode, num_decodes)
        self._num_ordered = num_decodes
        tables.set_positions(writes, positions)
        tables.set_rows(
            writes, cu_seqlens=cu_seqlens, chunk_slots=chunks.slots, chunk_ends=chunks.end
        )
        index = np.concatenate((np.arange(num_decodes), (first + chunks.length - 1)[last]))
        tables.set_sampled(
            writes,
            index=index,
            slots=slots,
            first_chunk=num_decodes,
            new_positions=chunks.end[last],
        )
        tables.set_logprob_rows(writes, self._outputs.logprob_rows(slots))
        self._lane.begin()
        self._upload(writes)
        self._count_known_tokens(plan)
        batch = self._mixed_batch(
            num_decodes,
            num_rows=num_decodes + len(chunks.slots),
            num_tokens=num_tokens,
            num_sampled=len(slots),
            max_chunk=int(chunks.length.max()),
            host_cu_seqlens=tuple(cu_seqlens.tolist()),
            host_seq_lens=tuple((computed + 1).tolist() + chunks.end.tolist()),
        )
        logits, pooled, scores = self._forward(plan, batch)
        if len(slots):
            self._masks.refresh(slots)
            self._outputs.sample(logits, tables.sample_slot[: len(slots)])
        extra = scores if pooled is None else (pooled.value, *scores)
        return slots, self._outputs.fetch(logits, slots, extra), pooled

    def _forward(
        self, plan: BatchPlan, batch: AttentionBatch
    ) -> tuple[torch.Tensor, PooledRows | None, tuple[torch.Tensor, ...]]:
        """Logits of the rows that sample, the prompts that have their vector by now, and the scores
        of those that want them."""
        runs, pools = self._scores.runs(plan, batch.num_decodes), self._pooler.wants(plan)
        if not runs and not pools:
            return self._model.forward(batch, self._kv), None, ()
        hidden = self._model.hidden(batch, self._kv)
        scores: tuple[torch.Tensor, ...] = ()
        if runs:
            tokens = self._tables.slots.tokens
            scores = score(self._model, hidden, tokens, runs, self._score_tile)
        logits = self._model.logits(hidden[batch.sample_index])
        return logits, self._pooler.pool(plan, hidden) if pools else None, scores

    def _check_fits(self, num_rows: int, num_tokens: int) -> None:
        """Raises `PlanError` for a step that would be written past the ends of its buffers."""
        inputs = self._tables.inputs
        for found, name, limit in (
            (num_rows, "rows", len(inputs.seq_lens)),
            (num_tokens, "tokens", len(inputs.token_ids)),
        ):
            if found > limit:
                raise PlanError(f"a step has {found} {name}; this worker computes at most {limit}")

    def _mixed_batch(
        self,
        num_decodes: int,
        *,
        num_rows: int,
        num_tokens: int,
        num_sampled: int,
        max_chunk: int,
        host_cu_seqlens: tuple[int, ...],
        host_seq_lens: tuple[int, ...],
    ) -> AttentionBatch:
        tables = self._tables
        inputs = tables.inputs.of(num_rows, num_tokens)
        if num_decodes:
            self._ops.decode_inputs(tables.order[:num_decodes], tables.slots, inputs)
        self._ops.chunk_inputs(num_decodes, max_chunk, tables.slots, inputs)
        return AttentionBatch(
            token_ids=inputs.token_ids,
            positions=inputs.positions,
            cu_seqlens=inputs.cu_seqlens,
            seq_lens=inputs.seq_lens,
            block_table=tables.slots.blocks,
            num_decodes=num_decodes,
            sample_index=tables.sample_index[:num_sampled],
            host_cu_seqlens=host_cu_seqlens,
            host_seq_lens=host_seq_lens,
            row_slot=inputs.row_slot,
        )

    # --- before every step -----------------------------------------------------------------------

    def _upload(self, writes: Writes) -> None:
        arena = self._tables.arena
        self._lane.upload(writes.columns(), lambda columns: self._ops.apply_writes(arena, columns))

    def _count_known_tokens(self, plan: BatchPlan) -> None:
        """On the device, where the tokens are: the host would have to send a whole vocabulary."""
        tables = self._tables
        for admission in plan.admit:
            if admission.sampling.is_penalized:
                known = tables.slots.tokens[admission.slot, : len(admission.token_ids)].long()
                count_known_tokens(
                    tables.sampling, admission.slot, known, admission.num_prompt_tokens
                )
