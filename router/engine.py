"""Every call in flight, and what happens to it: submit, hear tokens, abort, survive a restart.

The engine hears the scheduler (`router.messages.Listener`) and belongs to the event loop: no method
blocks and none is called from another thread. A sequence is in `_samples` from its submission to
its end, and in `_leaving` from an abort until the scheduler confirms it, so that its id is not
used again too early.

When the scheduler is lost, calls stay; when one is back and has a worker that can hold it, each
unfinished sequence is submitted anew by itself, with all its tokens, and goes on where it was.
Clients see a pause. There is one patience for all: what nobody can compute for so long is ended.
"""

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from gateway.errors import RequestError, invalid, quote
from gateway.model import Model
from gateway.output import FinishReason, PromptLogprobs, SampleOutput, TokenLogprob
from gateway.request import GenerateRequest
from router.call_costs import CallCosts
from router.caller import NOBODY, Caller
from router.generation import Generation, PromptScores, Sample
from router.known_cell import KnownCell, draining, unavailable
from router.messages import CellStatus, Finished, Refusal, ServedModel, Submission, Uplink
from router.metrics import Metrics
from router.outcomes import checked, failure, no_scheduler_survives, timed_out, too_slow
from router.refusals import refusal_error

MAX_UNREAD_TOKENS = 4096
"""A sequence this far ahead of its reader is ended."""
RETRY_S = 0.25
"""Between two attempts to submit anew what an overloaded scheduler refused."""
ALARM_S = 0.25
"""For so long after a deadline the scheduler, which ends what has passed it, may say so first."""
LEAST_TIMEOUT_S = 0.001
MAX_VAIN_SCHEDULERS = 6
"""Lost in a row with a call that none of them brought forward: it may be why they are lost."""

_SEQUENCE_IDS = 1 << 32


class Engine:
    """Implements `router.messages.Listener`; `uplink` is set before anything is started."""

    uplink: Uplink

    def __init__(self, model: Model, metrics: Metrics, *, scheduler_timeout_s: float) -> None:
        """`scheduler_timeout_s`: how long calls in flight wait for a lost scheduler or worker."""
        self.model = model
        self.metrics = metrics
        self._costs = CallCosts(metrics)
        self.cell = KnownCell(model)
        self.leaving = False
        """It is to end: nobody new shall come, and who is here shall ask elsewhere from now on."""
        self.draining = False
        """Who asks is refused."""
        self.over: RequestError | None = None
        """Why nothing goes on any more; None while it does."""
        self.on_change = asyncio.Event()
        """Set whenever the cell's state is heard of; for whoever watches readiness."""
        self._scheduler_timeout_s = scheduler_timeout_s
        self._samples: dict[int, Sample] = {}
        self._leaving: set[int] = set()
        self._next_id = 1
        self._patience: asyncio.TimerHandle | None = None
        self._retry: asyncio.TimerHandle | None = None

    @property
    def num_samples(self) -> int:
        """Sequences in flight."""
        return len(self._samples)

    @property
    def patience_s(self) -> float:
        """How long calls in flight wait for a lost scheduler or worker."""
        return self._scheduler_timeout_s

    # What callers ask.

    def check_serving(self) -> ServedModel:
        """What is served, if a request would be computed now, and whoever comes shall come here.
        Raises RequestError otherwise."""
        if self.leaving:
            raise _draining()
        return self.cell.check_available()

    def _check_accepts(self) -> ServedModel:
        """What is served, if a request can be accepted now. Raises RequestError otherwise."""
        if self.draining:
            raise _draining()
        return self.cell.check_accepts()

    def check_available(self) -> int:
        """`max_model_len`, if a request to generate can be accepted now. Raises RequestError
        otherwise."""
        served = self._check_accepts()
        if served.is_encoder:
            name = quote(served.name)
            raise invalid("model", f"model {name} only embeds; use /v1/embeddings")
        return served.max_model_len

    def check_embeds(self) -> ServedModel:
        """What is served, if a prompt can be embedded now. Raises RequestError otherwise."""
        served = self._check_accepts()
        if not served.embedding_dim:
            raise invalid("model", f"model {quote(served.name)} is not served for embeddings")
        return served

    @contextmanager
    def generate(
        self,
        requests: Sequence[GenerateRequest],
        arrived_at: float,
        caller: Caller = NOBODY,
        *,
        counted: bool = True,
        probe: bool = False,
    ) -> Iterator[Generation]:
        """Starts a call; leaving the context aborts what has not ended. What was accepted is begun
        while the server drains, too: whoever accepts asks `check_available` first. While the cell
        is away for a moment, it waits like what is in flight.

        Args:
            requests: of one call.
            arrived_at: when it came, on the monotonic clock.
            caller: who asks, and how long they wait.
            counted: whether it is a request of a client in our metrics.
            probe: whether it asks on the router's own behalf, and is one in nobody's metrics.

        Raises RequestError when nobody can serve it now, or its time is over.
        """
        if self.over is not None:
            raise self.over
        self.cell.check_accepts()
        deadline = caller.deadline(requests, arrived_at)
        if deadline is not None and deadline.left_s() <= 0:
            raise deadline.passed(has_begun=False)
        generation = Generation(
            arrived_at,
            counted=counted and not probe,
            probe=probe,
            tenant=caller.tenant,
            deadline=deadline,
        )
        generation.open(self._samples_of(generation, requests), self._stopped)
        try:
            self._start(generation)
            yield generation
        finally:
            self._close(generation)

    def _samples_of(
        self, generation: Generation, requests: Sequence[GenerateRequest]
    ) -> list[Sample]:
        samples: list[Sample] = []
        for request in requests:
            first = self._unused_ids(request.n)
            scores = None
            if request.sampling.num_prompt_logprobs is not None:
                scores = PromptScores(len(request.prompt_token_ids))
            for number in range(request.n):
                output = SampleOutput(request, self.model.tokenizer)
                sample = Sample(
                    first + number, len(samples), number, request, output, generation, scores
                )
                samples.append(sample)
        return samples

    def _start(self, generation: Generation) -> None:
        """Submits it, or lets it wait for the cell, like what is in flight."""
        is_here = self.cell.is_available
        for sample in generation.samples:
            self._samples[sample.sequence_id] = sample
            sample.submitted = sample.was_submitted = is_here
            if is_here and sample.number == 0:
                request = sample.request
                whole = Submission(sample.sequence_id, request, 0, request.n, ())
                self._submit(generation, whole)
        if (deadline := generation.deadline) is not None:
            generation.alarm = asyncio.get_running_loop().call_later(
                deadline.left_s() + ALARM_S, self._time_out, generation
            )
        if not is_here:
            self._mind_patience()

    def end_all(self, message: str) -> None:
        """Ends every call in flight with an error; none goes on from here."""
        self.over = unavailable(message)
        for generation in {sample.generation for sample in self._samples.values()}:
            self._fail(generation, self.over)

    # What the link tells (Listener).

    def welcomed(self, incarnation: int) -> None:
        """See `Listener`."""
        self.cell.welcomed(incarnation)
        self.on_change.set()

    def lost(self) -> None:
        """See `Listener`."""
        self.cell.lost()
        self._leaving.clear()
        for sample in list(self._samples.values()):
            if sample.sequence_id not in self._samples:
                continue  # its call has just failed with another
            if sample.submitted and sample.lost_in_vain() >= MAX_VAIN_SCHEDULERS:
                self._fail(sample.generation, no_scheduler_survives(MAX_VAIN_SCHEDULERS))
                continue
            sample.submitted = False
            if (finished := sample.complete()) is not None:
                self._end(sample, finished)
        self._mind_patience()
        self.on_change.set()

    def status(self, status: CellStatus) -> None:
        """See `Listener`."""
        self.cell.heard(status)
        if status.draining:
            self._refuse_waiting()
        if self._retry is None:
            self._resubmit()
        self._mind_patience()
        self.on_change.set()

    def tokens(
        self,
        sequence_ids: Sequence[int],
        token_ids: Sequence[int],
        logprobs: Mapping[int, TokenLogprob],
    ) -> None:
        """See `Listener`."""
        now = time.monotonic()
        samples = self._samples
        for row, sequence_id in enumerate(sequence_ids):
            sample = samples.get(sequence_id)
            if sample is None:
                continue  # it left; what was on its way is dropped
            sample.tokens.append(token_ids[row])
            if logprobs and (logprob := logprobs.get(row)) is not None:
                sample.logprobs.append(logprob)
            self._costs.token_came(sample, now)
            sample.generation.heard(sample)
            if len(sample.tokens) - sample.num_taken > MAX_UNREAD_TOKENS:
                self._fail(sample.generation, too_slow(MAX_UNREAD_TOKENS))

    def scored(self, sequence_id: int, logprobs: PromptLogprobs) -> None:
        """See `Listener`."""
        sample = self._samples.get(sequence_id)
        if sample is None or sample.scores is None:
            return
        sample.scores.add(logprobs)
        if sample.scores.is_complete:
            for sibling in sample.generation.samples:
                if sibling.scores is sample.scores and (sibling.tokens or sibling.finished):
                    sibling.generation.heard(sibling)

    def finished(self, sequence_id: int, finished: Finished) -> None:
        """See `Listener`."""
        self._leaving.discard(sequence_id)
        sample = self._samples.get(sequence_id)
        if sample is not None:
            self._end(sample, finished)

    def refused(self, sequence_id: int, refusal: Refusal) -> None:
        """See `Listener`."""
        self._leaving.discard(sequence_id)
        sample = self._samples.get(sequence_id)
        if sample is None:
            return
        together = [
            other
            for other in sample.generation.samples
            if other is sample or (other.request is sample.request and not sample.resubmitted)
        ]
        if refusal.retry and self.cell.is_draining:
            self._refuse(sample.generation, together, draining())
            return
        if refusal.retry and (sample.resubmitted or not self.cell.is_available):
            for refused in together:  # a scheduler that leaves: the next one gets it
                refused.submitted = False
            if self._retry is None:
                self._retry = asyncio.get_running_loop().call_later(RETRY_S, self._retry_now)
            return
        self._refuse(sample.generation, together, refusal_error(refusal, sample.request))

    def _refuse_waiting(self) -> None:
        """Who waits to be let in waits for nobody: the cell is given up."""
        for sample in list(self._samples.values()):
            if not sample.was_submitted:
                self._refuse(sample.generation, [sample], draining())

    def _refuse(
        self, generation: Generation, refused: Sequence[Sample], error: RequestError
    ) -> None:
        """The scheduler has nothing of these samples of a call; it ends."""
        if not any(sample.resubmitted for sample in refused):
            generation.counted = False  # it was never accepted
        for sample in refused:
            self._samples.pop(sample.sequence_id, None)
        self._fail(generation, error)

    # What happens to calls.

    def _stopped(self, sample: Sample, num_tokens: int) -> None:
        """A stop string matched; the sample ends when the scheduler confirms it."""
        if isinstance(sample.output.stop_reason, str) and sample.submitted:
            self.uplink.finish(sample.sequence_id, num_tokens)
        elif not sample.submitted:
            self._end(sample, Finished(FinishReason.STOP))

    def _end(self, sample: Sample, finished: Finished) -> None:
        del self._samples[sample.sequence_id]
        sample.finished = checked(sample, finished)
        self._costs.sample_ended(sample)
        if (error := failure(sample)) is not None:
            self._fail(sample.generation, error)
        else:
            sample.generation.heard(sample)

    def _time_out(self, generation: Generation) -> None:
        """Nobody has ended in time what is open: it waits for a worker, or for the scheduler."""
        for sample in generation.samples:
            if sample.sequence_id in self._samples:
                sample.finished = Finished(FinishReason.TIMEOUT)
                self._costs.sample_ended(sample)
        self._fail(generation, timed_out(generation))

    def _fail(self, generation: Generation, error: RequestError) -> None:
        self._abort(generation)
        generation.fail(error)

    def _close(self, generation: Generation) -> None:
        """The consumer is gone, or has all it wanted."""
        if generation.alarm is not None:
            generation.alarm.cancel()
        self._abort(generation)
        self._costs.call_over(generation)

    def _abort(self, generation: Generation) -> None:
        """Withdraws what has not ended; harmless when all has."""
        open_samples = [
            sample
            for sample in generation.samples
            if self._samples.pop(sample.sequence_id, None) is not None
        ]
        withdrawn = [sample.sequence_id for sample in open_samples if sample.submitted]
        if withdrawn:
            self._leaving.update(withdrawn)
            self.uplink.abort(withdrawn)

    def _resubmit(self) -> None:
        """Whatever the scheduler of this connection does not know yet and has a worker for, also
        one that drains: it was accepted before."""
        if not self.cell.is_available and not self.cell.is_draining:
            return
        for sample in list(self._samples.values()):
            if sample.submitted or not self.cell.can_hold(sample.max_num_tokens):
                continue
            sample.submitted = sample.was_submitted = True
            sample.resubmitted = True
            sample.num_known = len(sample.tokens)
            self.metrics.resubmitted += sample.generation.counted
            sequence_id, request, number = sample.sequence_id, sample.request, sample.number
            score_from = len(request.prompt_token_ids)
            if sample.scores is not None and number == 0:
                score_from = sample.scores.next_token
            self._submit(
                sample.generation,
                Submission(
                    sequence_id, request, number, 1, sample.tokens, score_from, resubmitted=True
                ),
            )

    def _submit(self, generation: Generation, submission: Submission) -> None:
        """On its caller's behalf, with what is left of its time."""
        left_s = 0.0
        if generation.deadline is not None:
            left_s = max(LEAST_TIMEOUT_S, generation.deadline.left_s())
        self.uplink.submit(
            replace(submission, probe=generation.probe, tenant=generation.tenant, timeout_s=left_s)
        )

    def _retry_now(self) -> None:
        self._retry = None
        self._resubmit()

    def _is_stranded(self, sample: Sample) -> bool:
        """Whether nobody is there to compute it."""
        return not sample.submitted or not self.cell.can_hold(sample.max_num_tokens)

    def _mind_patience(self) -> None:
        """It runs while something is stranded."""
        stranded = any(map(self._is_stranded, self._samples.values()))
        if stranded and self._patience is None:
            self._patience = asyncio.get_running_loop().call_later(
                self._scheduler_timeout_s, self._give_up
            )
        elif not stranded and self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self) -> None:
        """Nobody came back in time."""
        self._patience = None
        lost = "scheduler" if self.cell.incarnation is None else "worker"
        error = unavailable(f"the {lost} was lost, and none came back in time to go on; try again")
        for sample in list(self._samples.values()):
            if self._is_stranded(sample):
                self._fail(sample.generation, error)

    def _unused_ids(self, count: int) -> int:
        """First of `count` consecutive ids that nothing in flight has."""
        while True:
            first = self._next_id
            if first + count > _SEQUENCE_IDS:
                first = 1
            self._next_id = first + count
            ids = range(first, first + count)
            if not any(i in self._samples or i in self._leaving for i in ids):
                return first


def _draining() -> RequestError:
    return unavailable("the server is draining and accepts no new requests")
