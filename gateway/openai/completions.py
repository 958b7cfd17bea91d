"""POST /v1/completions: raw prompts, as text or tokens, one or several."""

import random
from collections.abc import Sequence
from typing import Any

from gateway.errors import RequestError, invalid, quote
from gateway.model import Model
from gateway.openai.call import LEAST_LOGPROB, Answer, Call, Choice, compact, ending
from gateway.openai.schema import (
    REFUSED_IN_COMPLETION,
    CompletionBody,
    check_stream_options,
    checked_text,
    options_of,
    parse_body,
    refuse_unserved,
)
from gateway.output import Piece, TokenLogprob
from gateway.request import MAX_SAMPLES, GenerateRequest, check_range, check_request_id

MAX_PROMPTS = 1024
MAX_CHOICES = 1024
"""Prompts times n of one call."""


def parse_completion(
    content: bytes, model: Model, max_model_len: int, request_id: str, dice: random.Random
) -> Call:
    """A valid call out of a request body, with every prompt tokenized. Raises RequestError."""
    body = parse_body(content, CompletionBody)
    model.check_name(body.model)
    refuse_unserved(body, REFUSED_IN_COMPLETION)
    if body.request_id is not None:
        request_id = check_request_id("request_id", body.request_id)
    if body.echo and body.logprobs is not None:
        raise invalid("echo", "echo is true; with logprobs it is not supported by this server")
    check_stream_options(body)
    num_samples = _num_samples(body)
    num_logprobs = body.logprobs
    if num_samples > (body.n or 1) and num_logprobs is None:
        num_logprobs = 0  # by which the best are known
    options = options_of(body, n=num_samples, num_logprobs=num_logprobs)
    prompts = _prompts(body.prompt)
    if len(prompts) * num_samples > MAX_CHOICES:
        name = "n" if body.best_of is None else "best_of"
        raise invalid(
            name,
            f"{name} is {quote(num_samples)} and prompt has {len(prompts)} entries; "
            f"together they must make at most {MAX_CHOICES} choices",
        )
    requests = tuple(
        model.build(
            model.text_prompt(prompt, body.prompt_room(max_model_len))
            if isinstance(prompt, str)
            else model.token_prompt(prompt),
            options,
            max_model_len,
            dice=dice,
            request_id=request_id,
            prompt_field="prompt",
        )
        for prompt in prompts
    )
    return Call(
        request_id=request_id,
        model=model.name,
        requests=requests,
        streams=body.streams,
        include_usage=body.include_usage,
        continuous_usage=body.continuous_usage,
        wants_logprobs=body.logprobs is not None,
        wants_token_ids=bool(body.return_token_ids),
        prompts=_prompt_texts(body, prompts, requests, model) if body.echo else None,
        num_kept=body.n or 1 if num_samples > (body.n or 1) else None,
    )


class CompletionAnswer(Answer):
    """A `text_completion`, whole or in chunks."""

    id_prefix = "cmpl"
    chunk_object = "text_completion"
    whole_object = "text_completion"

    def chunk(self, choice: Choice, piece: Piece) -> str | None:
        """With echo the first chunk of a choice begins with its prompt."""
        text = self._echo(piece.index) + piece.text if not choice.opened else piece.text
        shows = self.call.wants_logprobs or self.call.wants_token_ids
        if not (text or piece.finish or (shows and piece.token_ids)):
            return None
        extra = ',"logprobs":null'
        if self.call.wants_logprobs:
            extra = f',"logprobs":{compact(self._logprobs(choice, piece.logprobs or ()))}'
        if self.call.wants_token_ids:
            extra += f',"token_ids":{compact(piece.token_ids)}'
            if not choice.opened:
                extra += f',"prompt_token_ids":{compact(self._prompt_token_ids(piece.index))}'
        return f'{{"index":{piece.index},"text":{compact(text)},{ending(piece.finish)}{extra}}}'

    def whole_choice(self, index: int, choice: Choice) -> dict[str, Any]:
        """One entry of `choices`."""
        assert choice.finish is not None
        wants = self.call.wants_logprobs
        whole: dict[str, Any] = {
            "index": index,
            "text": self._echo(index) + "".join(choice.text),
            "logprobs": self._logprobs(choice, choice.logprobs) if wants else None,
            "finish_reason": choice.finish.reason.value,
            "stop_reason": choice.finish.stop_reason,
        }
        if self.call.wants_token_ids:
            whole["token_ids"] = choice.token_ids
            whole["prompt_token_ids"] = self._prompt_token_ids(index)
        return whole

    def _echo(self, index: int) -> str:
        return self.call.prompts[self.call.request_of(index)] if self.call.prompts else ""

    def _prompt_token_ids(self, index: int) -> list[int]:
        request = self.call.requests[self.call.request_of(index)]
        tokens: list[int] = request.prompt_token_ids.tolist()
        return tokens

    def _logprobs(self, choice: Choice, rows: Sequence[TokenLogprob]) -> dict[str, Any]:
        texts = [self._text(row.token_id) for row in rows]
        offsets = []
        for text in texts:
            offsets.append(choice.num_characters)
            choice.num_characters += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [max(row.logprob, LEAST_LOGPROB) for row in rows],
            "top_logprobs": [self._top(row) for row in rows],
            "text_offset": offsets,
        }

    def _top(self, row: TokenLogprob) -> dict[str, float]:
        """The alternatives, and the chosen token even if it is not among them."""
        pairs = (*row.top, (row.token_id, row.logprob))
        return {self._text(token): max(logprob, LEAST_LOGPROB) for token, logprob in pairs}

    def _text(self, token: int) -> str:
        return self.tokenizer.bytes_of[token].decode("utf-8", "replace")


def _prompts(value: Any) -> list[str | list[int]]:
    """A string, strings, tokens, or lists of tokens."""
    if isinstance(value, str):
        return [checked_text("prompt", value)]
    if isinstance(value, list) and value:
        if len(value) > MAX_PROMPTS and not _is_token(value[0]):
            raise invalid(
                "prompt", f"prompt has {len(value)} entries; it must have at most {MAX_PROMPTS}"
            )
        if all(map(_is_token, value)):
            return [value]
        if all(isinstance(prompt, str) for prompt in value):
            return [checked_text("prompt", prompt) for prompt in value]
        if all(isinstance(prompt, list) and all(map(_is_token, prompt)) for prompt in value):
            return value
    raise _wrong_prompt(value)


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _wrong_prompt(value: Any) -> RequestError:
    if value is None:
        return invalid("prompt", "prompt is missing")
    return invalid(
        "prompt",
        f"prompt is {quote(value)}; it must be a string, an array of strings, "
        "an array of tokens or an array of arrays of tokens",
    )


def _num_samples(body: CompletionBody) -> int:
    """To be generated for each prompt: the best of them are the answer."""
    n = 1 if body.n is None else body.n
    check_range("n", n, 1, MAX_SAMPLES)
    check_range("best_of", body.best_of, 1, MAX_SAMPLES)
    best_of = n if body.best_of is None else body.best_of
    if best_of < n:
        raise invalid("best_of", f"best_of is {best_of}; it must be at least n, which is {n}")
    if best_of > n and body.streams:
        raise invalid(
            "best_of",
            f"best_of is {best_of} and n is {n}; a stream cannot wait for the best: "
            "they must be equal, or stream false",
        )
    return best_of


def _prompt_texts(
    body: CompletionBody,
    prompts: Sequence[str | list[int]],
    requests: Sequence[GenerateRequest],
    model: Model,
) -> tuple[str, ...]:
    """What is echoed: the client's own words, unless they were given as tokens or truncated."""
    return tuple(
        prompt
        if isinstance(prompt, str) and body.truncate_prompt_tokens is None
        else model.tokenizer.decode(request.prompt_token_ids.tolist(), skip_special_tokens=False)
        for prompt, request in zip(prompts, requests, strict=True)
    )
