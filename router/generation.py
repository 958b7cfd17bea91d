"""One call in flight: its sequences, what has arrived, and what the client has been given.

The link appends tokens as they arrive and wakes the consumer; the consumer takes whatever is there,
so tokens coalesce by themselves when it is slower. One that wants whole samples is woken only now
and then. Detokenizing happens here, in the consumer's own task. All tokens of a sequence are kept
to its end: they are what is submitted anew when the scheduler is lost.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from gateway.errors import RequestError
from gateway.output import (
    Finish,
    FinishReason,
    Piece,
    PromptLogprobs,
    SampleOutput,
    TokenLogprob,
    joined,
)
from gateway.request import GenerateRequest
from router.caller import Deadline
from router.messages import Finished

COALESCED_TOKENS = 256
"""So many are taken together when nobody waits for them: a moment's work."""


@dataclass(slots=True, eq=False)
class PromptScores:
    """The logprobs of one request's prompt; its samples share them, and its first one gets them."""

    num_prompt_tokens: int
    parts: list[PromptLogprobs] = field(default_factory=list)
    next_token: int = 1
    """The first whose logprob is missing; the very first token has none."""

    def add(self, part: PromptLogprobs) -> None:
        """What comes next; anything else was told before."""
        if part.start == self.next_token:
            self.parts.append(part)
            self.next_token += len(part.logprob)

    @property
    def is_complete(self) -> bool:
        """Whether nothing is missing."""
        return self.next_token >= self.num_prompt_tokens


@dataclass(slots=True, eq=False)
class Sample:
    """One sequence as the router sees it."""

    sequence_id: int
    index: int
    """Of the sample, over all requests of the call."""
    number: int
    """Of the sample, within its request."""
    request: GenerateRequest
    output: SampleOutput
    generation: "Generation"
    scores: PromptScores | None = None
    """None: nobody asked for the prompt's logprobs."""
    tokens: list[int] = field(default_factory=list)
    num_taken: int = 0
    """Tokens the consumer has seen."""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    """Of the tokens it has not seen."""
    finished: Finished | None = None
    submitted: bool = False
    """The scheduler of this connection knows it."""
    was_submitted: bool = False
    """To this scheduler or one before: it waits no longer to be let in."""
    resubmitted: bool = False
    """It was accepted before, so it may not be refused now."""
    num_known: int = 0
    """Tokens that it was last submitted with."""
    num_vain: int = 0
    """Schedulers lost in a row that had it and told nothing of it."""
    has_news: bool = False
    has_spoken: bool = False
    """Its first piece has been taken."""
    first_token_at: float | None = None
    last_token_at: float | None = None

    @property
    def max_num_tokens(self) -> int:
        """Prompt and output, at most; a vector counts as an output token, which needs no KV."""
        return len(self.request.prompt_token_ids) + max(1, self.request.max_tokens)

    @property
    def wants_vector(self) -> bool:
        """Nothing is generated: the answer is the prompt's vector."""
        return self.request.max_tokens == 0

    @property
    def is_pressing(self) -> bool:
        """Whether its news cannot wait: it ended, may be about to, or there is a lot."""
        num_new = len(self.tokens) - self.num_taken
        return self.finished is not None or bool(self.request.stop) or num_new >= COALESCED_TOKENS

    def lost_in_vain(self) -> int:
        """The scheduler that had it is lost; returns how many were, in a row, for nothing."""
        self.num_vain = self.num_vain + 1 if len(self.tokens) == self.num_known else 0
        return self.num_vain

    def complete(self) -> Finished | None:
        """Its end, if the tokens at hand are all there will be whatever the scheduler says."""
        if self.wants_vector:
            return None
        ends = self.request.eos_token_ids | self.request.stop_token_ids
        if self.output.stopped or (self.tokens and self.tokens[-1] in ends):
            return Finished(FinishReason.STOP)
        if len(self.tokens) >= self.request.max_tokens:
            return Finished(FinishReason.LENGTH)
        return None


class Generation:
    """The pieces of one call, in order of arrival; made and ended by `Engine.generate`."""

    def __init__(
        self,
        arrived_at: float,
        *,
        counted: bool,
        probe: bool = False,
        tenant: str = "",
        deadline: Deadline | None = None,
    ) -> None:
        """`arrived_at` is when the call reached us; `counted` if it is one in our metrics, `probe`
        if it is our own question, which counts nowhere."""
        self.arrived_at = arrived_at
        self.tenant = tenant
        self.deadline = deadline
        self.alarm: asyncio.TimerHandle | None = None
        """Goes off when the deadline has passed and nobody has said so."""
        self.counted = counted
        self.probe = probe
        self.samples: Sequence[Sample] = ()
        self.on_stop: Callable[[Sample, int], None] = _ignore
        """Told when a stop string has ended a sample after so many tokens."""
        self._wants_pieces = True
        self._news: list[Sample] = []
        self._num_open = 0
        self._error: RequestError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._is_quiet = True
        """Nothing has arrived since the consumer was last nudged."""

    @property
    def has_begun(self) -> bool:
        """Whether any token is here."""
        return any(sample.tokens for sample in self.samples)

    def open(self, samples: Sequence[Sample], on_stop: Callable[[Sample, int], None]) -> None:
        """Takes its sequences, once."""
        self.samples = samples
        self.on_stop = on_stop
        self._num_open = len(samples)

    async def batches(self) -> AsyncIterator[list[Piece]]:
        """What has arrived since the last batch, until every sample has ended.

        Raises RequestError when the call cannot be completed.
        """
        while self._num_open:
            if self._error is None and not self._news:
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter
            if self._error is not None:
                raise self._error
            news, self._news = self._news, []
            self._is_quiet = not news
            yield [self._advance(sample) for sample in news]

    async def wholes(self) -> AsyncIterator[Piece]:
        """Every sample as one piece, when it has ended. Raises RequestError like `batches`."""
        self._wants_pieces = False
        parts: dict[int, list[Piece]] = {sample.index: [] for sample in self.samples}
        async for pieces in self.batches():
            for piece in pieces:
                parts[piece.index].append(piece)
                if piece.finish is not None:
                    yield joined(parts.pop(piece.index))

    @contextmanager
    def nudges(self, every_s: float) -> Iterator[None]:
        """Meanwhile `batches` has an empty one, too, when nothing arrives for so long, or up to
        twice as long."""
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle

        def look() -> None:
            nonlocal timer
            timer = loop.call_later(every_s, look)
            if self._is_quiet:
                self._wake()
            self._is_quiet = True

        timer = loop.call_later(every_s, look)
        try:
            yield
        finally:
            timer.cancel()

    def heard(self, sample: Sample) -> None:
        """Something has been added to `sample`. It waits for what comes before it, the prompt."""
        if sample.scores is not None and not sample.scores.is_complete:
            return
        if not sample.has_news:
            sample.has_news = True
            self._news.append(sample)
        if self._wants_pieces or sample.is_pressing:
            self._wake()

    def fail(self, error: RequestError) -> None:
        """Ends the call; what the consumer has not seen is dropped."""
        if self._error is None:
            self._error = error
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _advance(self, sample: Sample) -> Piece:
        """Turns the news of one sequence into a piece."""
        fresh = [] if sample.output.stopped else sample.tokens[sample.num_taken :]
        text, count = sample.output.feed(fresh)
        if fresh and sample.output.stopped and sample.finished is None:
            self.on_stop(sample, sample.num_taken + count)
        sample.has_news = False  # not before: an end that is told here is part of these news
        sample.num_taken = len(sample.tokens)
        logprobs, sample.logprobs = sample.logprobs[:count], []
        finish = None
        if sample.finished is not None:
            text += sample.output.close()
            finish = self._finish(sample, sample.finished)
        prompt_logprobs = None
        if sample.scores is not None and not sample.has_spoken:
            prompt_logprobs = sample.scores.parts
        sample.has_spoken = True
        return Piece(
            index=sample.index,
            text=text,
            token_ids=fresh[:count],
            logprobs=logprobs if sample.request.sampling.num_logprobs is not None else None,
            finish=finish,
            prompt_logprobs=prompt_logprobs,
        )

    def _finish(self, sample: Sample, finished: Finished) -> Finish:
        self._num_open -= 1
        return Finish(
            reason=FinishReason.STOP if sample.output.stopped else finished.reason,
            stop_reason=sample.output.stop_reason,
            num_prompt_tokens=len(sample.request.prompt_token_ids),
            num_output_tokens=sample.output.num_tokens,
            num_cached_tokens=finished.num_cached_tokens,
        )


def _ignore(sample: Sample, num_tokens: int) -> None:
    """Before it is opened nothing can stop."""
