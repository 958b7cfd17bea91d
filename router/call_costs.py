"""What calls cost and how long they take, as the metrics have it."""

import time
from collections.abc import Sequence
from itertools import groupby

from gateway.output import FinishReason
from router.generation import Generation, Sample
from router.metrics import Metrics

_GRAVEST_FIRST = tuple(reversed(FinishReason))


class CallCosts:
    """Kept of the calls that count; see `Generation.counted`."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def token_came(self, sample: Sample, now: float) -> None:
        """One more of a sample, at this time of the monotonic clock."""
        generation = sample.generation
        if not generation.counted:
            return
        metrics = self._metrics
        metrics.generation_tokens += 1
        if sample.last_token_at is not None:
            metrics.inter_token_latency.observe(now - sample.last_token_at)
        else:
            sample.first_token_at = now
            if sample.number == 0:
                metrics.time_to_first_token.observe(now - generation.arrived_at)
                metrics.prompt_tokens += len(sample.request.prompt_token_ids)
        sample.last_token_at = now

    def sample_ended(self, sample: Sample) -> None:
        """Nothing more comes of it."""
        if not sample.generation.counted:
            return
        if sample.wants_vector:
            self._metrics.prompt_tokens += len(sample.request.prompt_token_ids)
        if len(sample.tokens) > 1:
            assert sample.first_token_at is not None
            assert sample.last_token_at is not None
            span_s = sample.last_token_at - sample.first_token_at
            self._metrics.time_per_output_token.observe(span_s / (len(sample.tokens) - 1))

    def call_over(self, generation: Generation) -> None:
        """Its consumer has all it wanted, or is gone."""
        if not generation.counted:
            return
        elapsed_s = time.monotonic() - generation.arrived_at
        for _, group in groupby(generation.samples, key=lambda s: s.index - s.number):
            samples = list(group)
            reason = min(map(_reason, samples), key=_GRAVEST_FIRST.index)
            self._metrics.finished[reason] += 1
            self._metrics.count_for(
                generation.tenant,
                prompt_tokens=_num_prompt_tokens(samples),
                generation_tokens=sum(len(sample.tokens) for sample in samples),
            )
            if reason in (FinishReason.STOP, FinishReason.LENGTH):
                self._metrics.e2e_request_latency.observe(elapsed_s)


def _reason(sample: Sample) -> FinishReason:
    """Why it has ended; what is withdrawn has been aborted."""
    if sample.finished is None:
        return FinishReason.ABORT
    return FinishReason.STOP if sample.output.stopped else sample.finished.reason


def _num_prompt_tokens(samples: Sequence[Sample]) -> int:
    """That one request's samples have cost: none, if nothing was ever computed for it."""
    first = samples[0]
    computed = any(sample.tokens for sample in samples) or (
        first.wants_vector and first.finished is not None
    )
    return len(first.request.prompt_token_ids) if computed else 0
