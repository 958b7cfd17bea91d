"""From the tokens of one sample to what the client is shown, and why it ended.

    tokens ─▶ Detokenizer (whole characters) ─▶ StopMatcher (no part of a stop string) ─▶ text

A token that ends the sequence is never followed by another, so it is known by its id; its own
text is shown only if the client asked for that.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import chain

import numpy as np

from gateway.detokenizer import Detokenizer
from gateway.grammar import Reader, spelled
from gateway.request import Float32Column, GenerateRequest, Int32Column
from gateway.stop import StopMatcher
from gateway.tokenizer import Tokenizer


class FinishReason(Enum):
    """Why a sample ended, the gravest last; the values are OpenAI's words, and metrics'."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    """It was ended early; a client never reads it: it left, or gets an error."""
    TIMEOUT = "timeout"
    """Its time was over before it was complete; the client gets an error."""
    ERROR = "error"
    """It could not be finished; the client gets an error instead."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How likely a chosen token was, and its likeliest alternatives."""

    token_id: int
    logprob: float
    rank: int
    """1 for the likeliest token of the vocabulary."""
    top: tuple[tuple[int, float], ...]
    """Token id and logprob, likeliest first."""


@dataclass(frozen=True, slots=True, eq=False)
class PromptLogprobs:
    """Logprobs of consecutive tokens of a prompt, as columns: there may be many."""

    start: int
    """Index in the prompt of the first, at least 1: nothing comes before token 0."""
    logprob: Float32Column
    rank: Int32Column
    num_top: Int32Column
    """Alternatives of each; those of all tokens are one after another."""
    top_token_id: Int32Column
    top_logprob: Float32Column

    def rows(self, prompt_token_ids: Int32Column) -> Iterator[TokenLogprob]:
        """Token by token."""
        token_ids = prompt_token_ids[self.start : self.start + len(self.logprob)].tolist()
        top = list(zip(self.top_token_id.tolist(), self.top_logprob.tolist(), strict=True))
        ends = np.cumsum(self.num_top).tolist()
        values = zip(token_ids, self.logprob.tolist(), self.rank.tolist(), strict=True)
        for (token, logprob, rank), start, end in zip(values, [0, *ends[:-1]], ends, strict=True):
            yield TokenLogprob(token, logprob, rank, tuple(top[start:end]))


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of one sample, and what it cost."""

    reason: FinishReason
    stop_reason: str | int | None
    """The client's own stop string or stop token that ended it."""
    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int
    """Prompt tokens found in the prefix cache."""


@dataclass(frozen=True, slots=True)
class Piece:
    """News of one sample."""

    index: int
    """Which: samples are numbered over all requests of a call, request by request."""
    text: str
    token_ids: list[int]
    """Their text may still be held back."""
    logprobs: list[TokenLogprob] | None
    """One per token, if asked for."""
    finish: Finish | None
    """Set on a sample's last piece."""
    prompt_logprobs: Sequence[PromptLogprobs] | None = None
    """Of the whole prompt, in order; on a sample's first piece, if asked for."""


def joined(pieces: Sequence[Piece]) -> Piece:
    """Consecutive pieces of one sample as one."""
    logprobs = [piece.logprobs for piece in pieces if piece.logprobs is not None]
    return Piece(
        index=pieces[0].index,
        text="".join([piece.text for piece in pieces]),
        token_ids=list(chain.from_iterable(piece.token_ids for piece in pieces)),
        logprobs=list(chain.from_iterable(logprobs)) if logprobs else None,
        finish=pieces[-1].finish,
        prompt_logprobs=pieces[0].prompt_logprobs,
    )


def shown_bytes(request: GenerateRequest, tokenizer: Tokenizer) -> Sequence[bytes]:
    """What each token adds to the text of an output."""
    if request.skip_special_tokens:
        return tokenizer.shown_bytes_of(request.shown_tokens)
    return tokenizer.bytes_of


def _stop_matcher(request: GenerateRequest, bytes_of: Sequence[bytes]) -> StopMatcher:
    grammar = request.sampling.grammar
    return StopMatcher(
        request.stop,
        include=request.include_stop_str_in_output,
        language=Reader(spelled(grammar, bytes_of)) if grammar else None,
    )


class SampleOutput:
    """The text of one sample."""

    def __init__(self, request: GenerateRequest, tokenizer: Tokenizer) -> None:
        bytes_of = shown_bytes(request, tokenizer)
        self._detokenizer = Detokenizer(bytes_of)
        self._matcher = _stop_matcher(request, bytes_of) if request.stop else None
        self._request = request
        self._end_tokens = request.eos_token_ids | request.stop_token_ids
        self.num_tokens = 0
        """Tokens fed that count."""
        self.stop_reason: str | int | None = None
        self.stopped = False
        """Ended by a stop string or a token of the end; nothing may be fed any more."""

    def feed(self, token_ids: list[int]) -> tuple[str, int]:
        """Text that may be shown, and how many of these tokens count; later ones are over-run."""
        if self._matcher is None:
            return self._feed_all(token_ids), len(token_ids)
        shown = []
        for count, token in enumerate(token_ids, start=1):
            shown.append(self._feed_one(token, self._matcher))
            if self.stopped:
                return "".join(shown), count
        return "".join(shown), len(token_ids)

    def close(self) -> str:
        """The last text, when the sample has ended."""
        last = self._detokenizer.close()
        if self._matcher is None:
            return last
        if self._matcher.matched is not None:
            return ""
        return self._show(last, self._matcher) + self._matcher.close()

    def _feed_all(self, token_ids: list[int]) -> str:
        self.num_tokens += len(token_ids)
        if token_ids and token_ids[-1] in self._end_tokens:
            self._stop_by_token(token_ids[-1])
            if not self._request.include_stop_str_in_output:
                token_ids = token_ids[:-1]
        return self._detokenizer.feed(token_ids)

    def _feed_one(self, token: int, matcher: StopMatcher) -> str:
        self.num_tokens += 1
        if token in self._end_tokens:
            self._stop_by_token(token)
            if not self._request.include_stop_str_in_output:
                return ""
        text = self._detokenizer.feed((token,))
        if self.num_tokens <= self._request.sampling.min_tokens:
            matcher.pass_by(text)
            return text  # a stop string may not end it yet, and so not begin yet either
        return self._show(text, matcher)

    def _show(self, text: str, matcher: StopMatcher) -> str:
        shown = matcher.feed(text)
        if matcher.matched is not None:
            self.stop_reason = matcher.matched
            self.stopped = True
        return shown

    def _stop_by_token(self, token: int) -> None:
        self.stopped = True
        if token not in self._request.eos_token_ids:
            self.stop_reason = token
