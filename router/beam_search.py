"""Beam search, over requests for one token each.

A step asks for the likeliest continuations of every running beam: one greedy request per beam, with
its tokens as prompt, of which the prefix cache holds all but the last block. The search itself is
transformers' (`generate` with `num_beams`), so that the same beams win:

    candidates   the best of all beams' continuations, by the sum of their logprobs
    ended        of the first `width` of them, those that end, by sum / length ** length_penalty
    running      the first `width` that do not end

A step is a function of the beams, so one that cannot be served just now is asked for again. The
scheduler counts each of these requests, since it computes each; the router counts the search.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from gateway.beams import BeamOptions
from gateway.errors import Fault, RequestError
from gateway.output import Finish, FinishReason, Piece, SampleOutput, TokenLogprob
from gateway.request import GenerateRequest
from router.caller import NOBODY, Caller
from router.engine import RETRY_S, Engine
from router.generation import Generation

_LATER = (Fault.UNAVAILABLE, Fault.OVERLOADED)


@dataclass(frozen=True, slots=True)
class Beam:
    """One continuation of the prompt."""

    score: float
    """The sum of its logprobs; of one that has ended, with the length penalty."""
    tokens: tuple[TokenLogprob, ...]


class BeamSearch:
    """The search through one prompt's continuations; a pure function of what it is told."""

    def __init__(self, options: BeamOptions, max_tokens: int, ends: frozenset[int]) -> None:
        """`ends` are the tokens that end a beam, `max_tokens` ends every one."""
        self._options = options
        self._max_tokens = max_tokens
        self._ends = ends
        self._num_tokens = 0
        self.running = [Beam(0.0, ())]
        """Likeliest first."""
        self.ended: list[Beam] = []
        """Best first, at most `width`."""
        self.is_over = False

    def step(self, continuations: Sequence[Sequence[TokenLogprob]]) -> None:
        """Takes the likeliest next tokens of each running beam, `num_candidates` or more."""
        candidates = sorted(
            (
                Beam(beam.score + token.logprob, (*beam.tokens, token))
                for beam, tokens in zip(self.running, continuations, strict=True)
                for token in tokens
            ),
            key=lambda beam: -beam.score,
        )[: self._options.num_candidates(len(self._ends))]
        self._num_tokens += 1
        width = self._options.width
        ended = [self._penalized(beam) for beam in candidates[:width] if self._ends_with(beam)]
        self.ended = sorted([*self.ended, *ended], key=lambda beam: -beam.score)[:width]
        self.running = [beam for beam in candidates if not self._ends_with(beam)][:width]
        self.is_over = not self.running or not self._may_improve()

    def _ends_with(self, beam: Beam) -> bool:
        return self._num_tokens == self._max_tokens or beam.tokens[-1].token_id in self._ends

    def _penalized(self, beam: Beam) -> Beam:
        return replace(beam, score=beam.score / self._num_tokens**self._options.length_penalty)

    def _may_improve(self) -> bool:
        """Whether the best running beam could still be among those that have ended."""
        if len(self.ended) < self._options.width:
            return True
        if self._options.early_stopping is True:
            return False
        penalty = self._options.length_penalty
        lasts = self._options.early_stopping == "never" and penalty > 0
        length = self._max_tokens if lasts else self._num_tokens
        return bool(self.running[0].score / length**penalty > self.ended[-1].score)


class BeamGeneration:
    """The answers of a call, found by search; stands where a `Generation` does."""

    def __init__(
        self,
        engine: Engine,
        requests: Sequence[GenerateRequest],
        arrived_at: float,
        caller: Caller = NOBODY,
    ) -> None:
        self._engine = engine
        self._requests = requests
        self._arrived_at = arrived_at
        self._caller = caller
        self._num_accepted = 0
        self._num_found = 0
        self._step: Generation | None = None
        self._error: RequestError | None = None
        self.samples: tuple[()] = ()

    def fail(self, error: RequestError) -> None:
        """Ends the call."""
        self._error = self._error or error
        if self._step is not None:
            self._step.fail(error)

    async def wholes(self) -> AsyncIterator[Piece]:
        """Every answer, when its search is over. Raises RequestError."""
        index = 0
        for request in self._requests:
            assert request.beams is not None, "a search is asked for"
            ends = request.eos_token_ids | request.stop_token_ids
            [first] = await self._step_from(request, [Beam(0.0, ())])
            self._num_accepted += 1
            assert first.finish is not None, "a step is asked for as a whole"
            num_cached = first.finish.num_cached_tokens
            search = BeamSearch(request.beams, request.max_tokens, ends)
            search.step([_continuations(first)])
            while not search.is_over:
                pieces = await self._step_from(request, search.running)
                search.step([_continuations(piece) for piece in pieces])
            pieces = [
                self._piece(index + number, request, beam, num_cached)
                for number, beam in enumerate(search.ended[: request.n])
            ]
            index += len(pieces)
            self._count(request, pieces)
            for piece in pieces:
                yield piece

    def close(self) -> None:
        """What was not found has been given up."""
        reason = FinishReason.ABORT
        if self._error is None or self._error.fault is Fault.INTERNAL:
            reason = FinishReason.ERROR
        elif self._error.fault is Fault.TIMED_OUT:
            reason = FinishReason.TIMEOUT
        self._engine.metrics.finished[reason] += self._num_accepted - self._num_found

    def _count(self, request: GenerateRequest, pieces: Sequence[Piece]) -> None:
        """One request of a client, whatever it took."""
        self._num_found += 1
        metrics = self._engine.metrics
        num_prompt = len(request.prompt_token_ids)
        num_output = sum(len(piece.token_ids) for piece in pieces)
        metrics.prompt_tokens += num_prompt
        metrics.generation_tokens += num_output
        metrics.count_for(
            self._caller.tenant, prompt_tokens=num_prompt, generation_tokens=num_output
        )
        finish = pieces[0].finish
        assert finish is not None, "an answer is whole"
        metrics.finished[finish.reason] += 1
        metrics.e2e_request_latency.observe(time.monotonic() - self._arrived_at)

    async def _step_from(self, request: GenerateRequest, beams: Sequence[Beam]) -> Sequence[Piece]:
        """One step, a piece for each beam. It is asked for again while nobody can serve it, for as
        long as others wait, too."""
        deadline = time.monotonic() + self._engine.patience_s
        requests = [_one_token(request, beam) for beam in beams]
        while True:
            try:
                return await self._ask(requests)
            except RequestError as error:
                if error.fault is Fault.TIMED_OUT:
                    self.fail(error)
                is_first = len(beams[0].tokens) == 0
                is_final = error.fault not in _LATER or self._engine.over is not None
                if is_first or is_final or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(RETRY_S)

    async def _ask(self, requests: Sequence[GenerateRequest]) -> Sequence[Piece]:
        if self._error is not None:
            raise self._error
        # To the scheduler a request like any other; to our metrics a part of one.
        with self._engine.generate(requests, self._arrived_at, self._caller, counted=False) as step:
            self._step = step
            try:
                pieces = [piece async for piece in step.wholes()]
            finally:
                self._step = None
        return sorted(pieces, key=lambda piece: piece.index)

    def _piece(
        self, index: int, request: GenerateRequest, beam: Beam, num_cached_tokens: int
    ) -> Piece:
        output = SampleOutput(request, self._engine.model.tokenizer)
        token_ids = [token.token_id for token in beam.tokens]
        text, _ = output.feed(token_ids)
        return Piece(
            index=index,
            text=text + output.close(),
            token_ids=token_ids,
            logprobs=_shown(request, beam),
            finish=Finish(
                reason=FinishReason.STOP if output.stopped else FinishReason.LENGTH,
                stop_reason=output.stop_reason,
                num_prompt_tokens=len(request.prompt_token_ids),
                num_output_tokens=len(token_ids),
                num_cached_tokens=num_cached_tokens,
            ),
        )


@contextmanager
def beam_search(
    engine: Engine,
    requests: Sequence[GenerateRequest],
    arrived_at: float,
    caller: Caller = NOBODY,
) -> Iterator[BeamGeneration]:
    """Starts a search; leaving the context ends it. Raises RequestError: nobody can serve it."""
    engine.check_available()
    search = BeamGeneration(engine, requests, arrived_at, caller)
    try:
        yield search
    finally:
        search.close()


def _one_token(request: GenerateRequest, beam: Beam) -> GenerateRequest:
    """The request for what may follow a beam."""
    assert request.beams is not None, "a search is asked for"
    num_ends = len(request.eos_token_ids | request.stop_token_ids)
    tokens = np.array([token.token_id for token in beam.tokens], np.int32)
    return replace(
        request,
        prompt_token_ids=np.concatenate((request.prompt_token_ids, tokens)),
        n=1,
        max_tokens=1,
        sampling=replace(
            request.sampling,
            temperature=0.0,
            num_logprobs=request.beams.num_candidates(num_ends),
        ),
        eos_token_ids=frozenset(),
        stop_token_ids=frozenset(),
    )


def _continuations(piece: Piece) -> Sequence[TokenLogprob]:
    """What may follow a beam, out of what was said of its next token; likeliest first."""
    assert piece.logprobs, "one token, with its logprobs"
    top = piece.logprobs[0].top
    return [TokenLogprob(token, logprob, rank, top) for rank, (token, logprob) in enumerate(top, 1)]


def _shown(request: GenerateRequest, beam: Beam) -> list[TokenLogprob] | None:
    count = request.sampling.num_logprobs
    if count is None:
        return None
    return [replace(token, top=token.top[:count]) for token in beam.tokens]
