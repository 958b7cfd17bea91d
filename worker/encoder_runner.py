"""Plans of an encoder: each chunk is a whole prompt, and each step ends with the vectors of all.

There is nothing to keep between steps but the prompts of slots that were admitted, so there is no
mirror on the device, no KV, and no graph. A step has happened when its launch returns.
"""

import logging
import time

import numpy as np
import torch

from worker.encoder_loader import LoadedEncoder
from worker.executor import DirectRunner
from worker.models.encoder import PromptRows
from worker.plans import Admission, BatchPlan, Int32Column, PlanError, Sampling, StepResult, Timing
from worker.pooling import Pooler
from worker.sizes import Sizes

log = logging.getLogger(__name__)

_NONE = np.empty(0, np.int32)


class EncoderRunner(DirectRunner):
    """Executes plans; implements `worker.executor.Runner`.

    Args:
        loaded: the model.
        sizes: how large its steps may get.
    """

    def __init__(self, loaded: LoadedEncoder, sizes: Sizes) -> None:
        self._model = loaded.model
        self._vocab_size = loaded.config.vocab_size
        self._max_model_len = loaded.max_model_len
        self._max_num_seqs = sizes.max_num_seqs
        self._pooler = Pooler(
            loaded.pooling,
            max_num_seqs=sizes.max_num_seqs,
            hidden_size=loaded.config.hidden_size,
            vocab_size=loaded.config.vocab_size,
            device=loaded.model.device,
        )
        self._prompts: dict[int, Int32Column] = {}
        self._waiting: set[int] = set()

    @property
    def num_live(self) -> int:
        """Sequences that hold a slot and have no vector yet."""
        return len(self._waiting)

    def reset(self) -> None:
        """Forgets every sequence."""
        self._prompts.clear()
        self._waiting.clear()

    @torch.inference_mode()
    def step(self, plan: BatchPlan, wait_us: int = 0) -> StepResult:
        """Runs one plan; raises `PlanError` when it contradicts what was admitted.

        Args:
            plan: the next one, in order.
            wait_us: for the result's timing: how long the device waited for this plan.
        """
        started = time.perf_counter_ns()
        self._apply(plan)
        prepared = forwarded = time.perf_counter_ns()
        vectors = None
        if len(plan.chunk_slot):
            rows = self._rows(plan)
            prepared = time.perf_counter_ns()
            hidden = self._model.hidden(rows)
            forwarded = time.perf_counter_ns()
            pooled = self._pooler.pool(plan, hidden)
            assert pooled is not None, "each chunk is a whole prompt"
            vectors = pooled.vectors(pooled.value.cpu().numpy())
            self._waiting.difference_update(plan.chunk_slot.tolist())
        return StepResult(
            epoch=plan.epoch,
            step_id=plan.step_id,
            slot=_NONE,
            generation=_NONE,
            token_id=_NONE,
            finish=np.empty(0, np.uint8),
            logprobs=None,
            timing=Timing(
                wait_us=wait_us,
                prepare_us=(prepared - started) // 1000,
                forward_us=(forwarded - prepared) // 1000,
                sample_us=(time.perf_counter_ns() - forwarded) // 1000,
            ),
            vectors=vectors,
        )

    def _apply(self, plan: BatchPlan) -> None:
        for slot in plan.retire.tolist():
            if self._prompts.pop(slot, None) is None:
                raise PlanError(f"slot {slot} is retired, but it holds no sequence")
            self._waiting.discard(slot)
        for admission in plan.admit:
            self._admit(admission)
        if len(plan.append_slot) or (plan.decode is not None and len(plan.decode)):
            raise PlanError("an encoder has neither blocks nor a decode set")

    def _admit(self, admission: Admission) -> None:
        slot, tokens = admission.slot, admission.token_ids
        if not 0 <= slot < self._max_num_seqs or slot in self._prompts:
            raise PlanError(f"slot {slot} is admitted, but it is not free")
        if not admission.wants_vector or admission.num_computed or len(admission.blocks):
            raise PlanError(f"slot {slot} is admitted for more than the vector of its prompt")
        if not 1 <= len(tokens) <= self._max_model_len:
            raise PlanError(
                f"slot {slot} is admitted with {len(tokens)} tokens; "
                f"this worker holds 1 to {self._max_model_len}"
            )
        self._pooler.admit(admission)
        # A token that the model does not have ends the one sequence, not the worker.
        valid = (tokens >= 0) & (tokens < self._vocab_size)
        self._prompts[slot] = np.where(valid, tokens, 0)
        self._waiting.add(slot)

    def _rows(self, plan: BatchPlan) -> PromptRows:
        prompts = []
        columns = (plan.chunk_slot, plan.chunk_start, plan.chunk_length)
        for slot, start, length in zip(*(column.tolist() for column in columns), strict=True):
            prompt = self._prompts.get(slot)
            if prompt is None or slot not in self._waiting:
                raise PlanError(f"chunk_slot names slot {slot}, which wants no vector")
            if start or length != len(prompt):
                raise PlanError(f"slot {slot} is computed in parts; an encoder needs it whole")
            prompts.append(torch.from_numpy(prompt.astype(np.int64)))
        return PromptRows.of(prompts, self._model.device)


def start_encoder(loaded: LoadedEncoder, sizes: Sizes) -> EncoderRunner:
    """A runner that has computed already."""
    runner = EncoderRunner(loaded, sizes)
    length = min(8, loaded.max_model_len, sizes.max_num_batched_tokens)
    one = np.zeros(1, np.int32)
    admission = Admission(
        slot=0,
        generation=0,
        token_ids=np.zeros(length, np.int32),
        num_prompt_tokens=length,
        max_total_tokens=length,
        blocks=_NONE,
        num_computed=0,
        seed=0,
        sampling=Sampling(),
    )
    runner.step(
        BatchPlan(
            epoch=0,
            step_id=1,
            retire=_NONE,
            admit=(admission,),
            append_slot=_NONE,
            append_index=_NONE,
            append_block=_NONE,
            decode=None,
            chunk_slot=one,
            chunk_start=one,
            chunk_length=one + length,
        )
    )
    runner.reset()
    log.info("memory: weights    %11s", f"{loaded.weight_bytes / 2**20:.2f} MiB")
    return runner
