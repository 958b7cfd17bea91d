"""Plans where host and device are one: each step has happened when its launch returns."""

import time

import torch

from kernels.batch import AttentionBatch
from protos.limits import MAX_DRAFT_TOKENS
from worker.constraints import Constraints
from worker.executor import DirectRunner, Model
from worker.kv_cache import KVCache
from worker.plans import BatchPlan, Scores, StepResult, Timing, Vectors
from worker.pooling import Pooler
from worker.prompt_scores import TILE_ROWS, PromptScores, score, score_columns
from worker.sampler import RowMasks, Sampler, logprob_columns
from worker.step_state import SampledColumns, SampledRows, StepState


class HostRunner(DirectRunner):
    """Executes plans: the mirror, the model and the sampler joined into one step."""

    def __init__(
        self,
        model: Model,
        kv: KVCache,
        state: StepState,
        sampler: Sampler,
        constraints: Constraints,
        pooler: Pooler,
    ) -> None:
        self._model = model
        self._kv = kv
        self._state = state
        self._sampler = sampler
        self._constraints = constraints
        self._pooler = pooler
        self._scores = PromptScores(len(state.tokens))

    @property
    def num_live(self) -> int:
        """Sequences that hold a slot and have not ended."""
        return self._state.num_live

    @property
    def max_draft_tokens(self) -> int:
        """What a slot may draft in a step."""
        return MAX_DRAFT_TOKENS

    def reset(self) -> None:
        """Forgets every sequence."""
        self._state.reset()
        self._constraints.reset()

    @torch.inference_mode()
    def step(self, plan: BatchPlan, wait_us: int = 0) -> StepResult:
        """Runs one plan; raises `PlanError` when it contradicts the mirror.

        Args:
            plan: the next one, in order.
            wait_us: for the result's timing: how long the device waited for this plan.
        """
        started = time.perf_counter_ns()
        self._state.apply(plan)
        self._constraints.apply(plan)
        for admission in plan.admit:
            self._sampler.admit(admission)
            self._pooler.admit(admission)
            self._scores.admit(admission)
        batch, rows = self._state.next_batch(plan)
        prepared = forwarded = time.perf_counter_ns()
        columns, logprobs = SampledColumns.none(), None
        vectors, scores = None, None
        if batch.num_tokens:
            logits, vectors, scores = self._forward(plan, batch)
            forwarded = time.perf_counter_ns()
            if len(rows.slots):
                sampled = self._sampler.sample(logits.float(), rows, self._masks(rows))
                columns = self._state.commit(rows, sampled.token_id, sampled.failed)
                self._constraints.advance(
                    columns.slot, columns.generation, columns.token_id, columns.finish
                )
                if sampled.logprobs is not None:
                    logprobs = logprob_columns(sampled.logprobs, columns)
        return StepResult(
            epoch=plan.epoch,
            step_id=plan.step_id,
            slot=columns.slot,
            generation=columns.generation,
            token_id=columns.token_id,
            finish=columns.finish,
            logprobs=logprobs,
            timing=Timing(
                wait_us=wait_us,
                prepare_us=(prepared - started) // 1000,
                forward_us=(forwarded - prepared) // 1000,
                sample_us=(time.perf_counter_ns() - forwarded) // 1000,
            ),
            vectors=vectors,
            scores=scores,
            drafted=rows.drafted,
        )

    def _forward(
        self, plan: BatchPlan, batch: AttentionBatch
    ) -> tuple[torch.Tensor, Vectors | None, Scores | None]:
        """Logits of the rows that sample, and vectors and scores of the prompts that want them."""
        runs, pools = self._scores.runs(plan, batch.num_decodes), self._pooler.wants(plan)
        if not runs and not pools:
            return self._model.forward(batch, self._kv), None, None
        hidden = self._model.hidden(batch, self._kv)
        pooled = self._pooler.pool(plan, hidden) if pools else None
        vectors = None
        if pooled is not None:
            vectors = pooled.vectors(pooled.value.cpu().numpy())
            self._state.end(vectors)
        scores = None
        if runs:
            values = score(self._model, hidden, self._state.tokens, runs, TILE_ROWS)
            scores = score_columns(runs, [value.cpu().numpy() for value in values])
        return self._model.logits(hidden[batch.sample_index]), vectors, scores

    def _masks(self, rows: SampledRows) -> RowMasks | None:
        """What may come in the rows that have rules; a grammar may still have to be compiled."""
        constrained = self._constraints.among(rows.slots)
        if not len(constrained):
            return None
        slots = rows.slots[constrained]
        self._constraints.refresh(slots)
        return RowMasks(constrained, self._constraints.masks[slots])
