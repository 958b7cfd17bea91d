"""One call of an endpoint: the requests it stands for, and how its answer is written.

An `Answer` is fed the pieces of all samples. It either writes each as an event of a stream or
collects them for one response. Chunks are written by hand around the few values that change: at
hundreds of tokens a second per stream, building and dumping whole dictionaries is what costs.
"""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from math import inf
from typing import Any

from gateway.detokenizer import TextOffsets
from gateway.errors import RequestError
from gateway.openai.errors import error_body
from gateway.output import Finish, FinishReason, Piece, PromptLogprobs, TokenLogprob
from gateway.parsing.deltas import Delta, Parsing
from gateway.reading import Reading
from gateway.request import GenerateRequest
from gateway.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Call:
    """A parsed body; its samples are numbered request by request."""

    request_id: str
    model: str
    requests: tuple[GenerateRequest, ...]
    streams: bool
    include_usage: bool
    """In a chunk of its own, at the end of a stream."""
    wants_logprobs: bool
    wants_token_ids: bool
    continuous_usage: bool = False
    """In every chunk of a stream."""
    num_kept: int | None = None
    """Samples of each request that the client gets, the likeliest; None: all, in their order."""
    prompts: tuple[str, ...] | None = None
    """The text of each request's prompt, if it is to be echoed."""
    parsing: Parsing | None = None
    """How a chat's answers are read; None: all of it is content."""
    num_prompt_logprobs: int | None = None
    """Alternatives in the answer's `prompt_logprobs`; None: there are none."""
    is_prompt_only: bool = False
    """What is generated is left out and not counted: the answer is about the prompt."""
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def num_choices(self) -> int:
        """Samples of all requests."""
        return sum(request.n for request in self.requests)

    def request_of(self, index: int) -> int:
        """Which request sample `index` belongs to; all of a call have the same n."""
        return index // self.requests[0].n


@dataclass(slots=True)
class Choice:
    """What has been collected of one sample."""

    text: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: Sequence[PromptLogprobs] = ()
    num_tokens: int = 0
    """So far, of a stream."""
    offsets: TextOffsets | None = None
    """Of its tokens in its text, once one has been asked for."""
    reading: Reading | None = None
    """Of a chat whose answers are read, from its first piece on."""
    deltas: list[Delta] = field(default_factory=list)
    """What it has said so far, unless that was streamed."""
    opened: bool = False
    """Its first chunk has been written."""
    finish: Finish | None = None


compact: Callable[[Any], str] = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
"""JSON without a space between its parts; `json.dumps` would make an encoder at every call."""


class Answer(ABC):
    """The answer to one call, as stream or as one response."""

    id_prefix: str
    chunk_object: str
    whole_object: str

    def __init__(self, call: Call, tokenizer: Tokenizer) -> None:
        self.call = call
        self.tokenizer = tokenizer
        self.choices = [Choice() for _ in range(call.num_choices)]
        self._num_prompt_tokens = sum(len(request.prompt_token_ids) for request in call.requests)
        self._opening = compact(self._head(self.chunk_object))[:-1]
        self._usage_null = ',"usage":null' if call.include_usage else ""

    def events(self, pieces: Sequence[Piece]) -> bytes:
        """Server-sent events of these pieces, one each; nothing for those that show nothing."""
        events = []
        for piece in map(self._shown, pieces):
            choice = self.choices[piece.index]
            chunk = self.chunk(choice, piece)
            beside = "" if choice.opened else self.beside_first_chunk()
            choice.opened = choice.opened or chunk is not None
            choice.num_tokens += len(piece.token_ids)
            if piece.finish is not None:
                choice.finish = piece.finish
            if chunk is not None:
                usage = self._usage_so_far() if self.call.continuous_usage else self._usage_null
                events.append(f'data: {self._opening},"choices":[{chunk}]{usage}{beside}}}\n\n')
        return "".join(events).encode()

    def beside_first_chunk(self) -> str:
        """More fields of the event in which a choice begins, as JSON after a comma."""
        return ""

    def closing_events(self) -> bytes:
        """The end of a stream that ended well."""
        last = ""
        if self.call.include_usage:
            last = f'data: {self._opening},"choices":[],"usage":{compact(self.usage())}}}\n\n'
        return f"{last}data: [DONE]\n\n".encode()

    def idle_events(self) -> bytes:
        """What says that we are still here: a comment, which no client reads."""
        return b": still here\n\n"

    def error_events(self, error: RequestError) -> bytes:
        """The end of a stream that failed."""
        return f"data: {compact(error_body(error))}\n\n".encode()

    def collect(self, pieces: Sequence[Piece]) -> None:
        """Keeps these pieces for `whole`."""
        for piece in map(self._shown, pieces):
            choice = self.choices[piece.index]
            choice.prompt_logprobs = piece.prompt_logprobs or choice.prompt_logprobs
            choice.text.append(piece.text)
            choice.token_ids += piece.token_ids
            choice.logprobs += piece.logprobs or ()
            choice.finish = piece.finish

    def whole(self) -> dict[str, Any]:
        """The response, when every sample has ended."""
        choices = [
            self.whole_choice(sample, self.choices[sample]) | {"index": index}
            for index, sample in enumerate(self._kept())
        ]
        return self._head(self.whole_object) | {"choices": choices, "usage": self.usage()}

    def usage(self) -> dict[str, Any]:
        """Tokens of all requests; a prompt counts once, however many samples it has."""
        prompt = self._num_prompt_tokens
        ends = [choice.finish for choice in self.choices if choice.finish is not None]
        output = sum(end.num_output_tokens for end in ends)
        firsts = (
            self.choices[index * self.call.requests[0].n]
            for index in range(len(self.call.requests))
        )
        cached = sum(first.finish.num_cached_tokens for first in firsts if first.finish)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": output,
            "total_tokens": prompt + output,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def prompt_rows(self, request: int, parts: Sequence[PromptLogprobs]) -> Iterator[TokenLogprob]:
        """The logprobs of a request's prompt, from its second token on."""
        token_ids = self.call.requests[request].prompt_token_ids
        return chain.from_iterable(part.rows(token_ids) for part in parts)

    def _shown(self, piece: Piece) -> Piece:
        """What the client shall see of it."""
        if not self.call.is_prompt_only:
            return piece
        finish = piece.finish
        if finish is not None:
            length = FinishReason.LENGTH
            finish = replace(finish, reason=length, stop_reason=None, num_output_tokens=0)
        return replace(piece, text="", token_ids=[], logprobs=[], finish=finish)

    def _kept(self) -> list[int]:
        """The samples that the client gets, in the order of its choices."""
        samples = list(range(len(self.choices)))
        if self.call.num_kept is None:
            return samples
        n = self.call.requests[0].n
        kept: list[int] = []
        for start in range(0, len(samples), n):
            best = sorted(samples[start : start + n], key=self._mean_logprob, reverse=True)
            kept += best[: self.call.num_kept]
        return kept

    def _mean_logprob(self, sample: int) -> float:
        logprobs = [row.logprob for row in self.choices[sample].logprobs]
        return sum(logprobs) / len(logprobs) if logprobs else -inf

    def _usage_so_far(self) -> str:
        """Without what is known only at the end."""
        output = sum(choice.num_tokens for choice in self.choices)
        total = self._num_prompt_tokens + output
        return (
            f',"usage":{{"prompt_tokens":{self._num_prompt_tokens},'
            f'"completion_tokens":{output},"total_tokens":{total}}}'
        )

    @abstractmethod
    def chunk(self, choice: Choice, piece: Piece) -> str | None:
        """The JSON of one stream choice; None if there is nothing to show yet."""

    @abstractmethod
    def whole_choice(self, index: int, choice: Choice) -> dict[str, Any]:
        """One choice of a response."""

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"{self.id_prefix}-{self.call.request_id}",
            "object": kind,
            "created": self.call.created,
            "model": self.call.model,
        }


def ending(finish: Finish | None, reason: str | None = None) -> str:
    """The two fields that say whether and why a stream choice has ended; `reason` is the dialect's
    own word for it."""
    if finish is None:
        return '"finish_reason":null'
    stop_reason = compact(finish.stop_reason)
    return f'"finish_reason":"{reason or finish.reason.value}","stop_reason":{stop_reason}'
