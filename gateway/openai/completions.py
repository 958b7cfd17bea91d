"""POST /v1/completions: raw prompts, as text or tokens, one or several."""

import random
from collections.abc import Sequence
from typing import Any

from gateway.body import parse_body
from gateway.detokenizer import TextOffsets
from gateway.errors import invalid
from gateway.limits import RequestLimits
from gateway.model import Model
from gateway.openai.call import Answer, Call, Choice, compact, ending
from gateway.openai.inputs import Input, texts_or_tokens
from gateway.openai.logprobs import (
    check_prompt_logprobs,
    prompt_logprobs,
    prompt_offsets,
    token_text,
    top_logprobs,
    written,
)
from gateway.openai.options import check_beams, check_stream, generation_options
from gateway.openai.schema import CompletionBody
from gateway.output import Piece, TokenLogprob, shown_bytes
from gateway.ranges import check_known_range
from gateway.request import GenerateRequest, check_request_id


def parse_completion(
    content: bytes, model: Model, max_model_len: int, request_id: str, dice: random.Random
) -> Call:
    """A valid call out of a request body, with every prompt tokenized. Raises RequestError."""
    body = parse_body(content, CompletionBody)
    model.check_name(body.model)
    if body.request_id is not None:
        request_id = check_request_id("request_id", body.request_id)
    check_stream(body)
    check_beams(body)
    num_samples = _num_samples(body, model.limits)
    if body.use_beam_search:
        num_samples = body.n  # it keeps the best itself
    num_logprobs = body.logprobs
    if num_samples > body.n and num_logprobs is None:
        num_logprobs = 0  # by which the best are known
    is_prompt_only = body.max_tokens == 0 and (body.echo or body.prompt_logprobs is not None)
    options = generation_options(
        body,
        n=num_samples,
        num_logprobs=num_logprobs,
        max_tokens=1 if is_prompt_only else body.max_tokens,
        **_prompt_logprobs(body),
    )
    prompts = texts_or_tokens("prompt", body.prompt, model.limits.prompts)
    if len(prompts) * num_samples > model.limits.choices:
        name = "n" if body.best_of is None else "best_of"
        raise invalid(
            name,
            f"{name} is {num_samples} and prompt has {len(prompts)} entries; "
            f"together they must make at most {model.limits.choices} choices",
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
    check_prompt_logprobs(options.prompt_logprobs_field, requests)
    return Call(
        request_id=request_id,
        model=model.name,
        requests=requests,
        streams=body.streams,
        include_usage=body.include_usage,
        continuous_usage=body.continuous_usage,
        wants_logprobs=body.logprobs is not None,
        wants_token_ids=body.return_token_ids,
        prompts=_prompt_texts(body, prompts, requests, model) if body.echo else None,
        num_kept=body.n if num_samples > body.n else None,
        num_prompt_logprobs=body.prompt_logprobs,
        is_prompt_only=bool(is_prompt_only),
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
            extra = f',"logprobs":{compact(self._logprobs(choice, piece))}'
        if self.call.wants_token_ids:
            extra += f',"token_ids":{compact(piece.token_ids)}'
            if not choice.opened:
                extra += f',"prompt_token_ids":{compact(self._prompt_token_ids(piece.index))}'
        return f'{{"index":{piece.index},"text":{compact(text)},{ending(piece.finish)}{extra}}}'

    def whole_choice(self, index: int, choice: Choice) -> dict[str, Any]:
        """One entry of `choices`."""
        assert choice.finish is not None
        call = self.call
        request = call.request_of(index)
        whole: dict[str, Any] = {
            "index": index,
            "text": self._echo(index) + "".join(choice.text),
            "logprobs": self._whole_logprobs(index, choice) if call.wants_logprobs else None,
            "finish_reason": choice.finish.reason.value,
            "stop_reason": choice.finish.stop_reason,
        }
        if call.num_prompt_logprobs is not None:
            rows = self.prompt_rows(request, choice.prompt_logprobs)
            whole["prompt_logprobs"] = prompt_logprobs(
                rows, call.num_prompt_logprobs, self.tokenizer
            )
        if call.wants_token_ids:
            whole["token_ids"] = choice.token_ids
            whole["prompt_token_ids"] = self._prompt_token_ids(index)
        return whole

    def _echo(self, index: int) -> str:
        return self.call.prompts[self.call.request_of(index)] if self.call.prompts else ""

    def _prompt_token_ids(self, index: int) -> list[int]:
        request = self.call.requests[self.call.request_of(index)]
        tokens: list[int] = request.prompt_token_ids.tolist()
        return tokens

    def _whole_logprobs(self, index: int, choice: Choice) -> dict[str, Any]:
        """Of a whole choice, which counts as one piece."""
        piece = Piece(index, "", choice.token_ids, choice.logprobs, None, choice.prompt_logprobs)
        return self._logprobs(choice, piece)

    def _logprobs(self, choice: Choice, piece: Piece) -> dict[str, Any]:
        """Of a piece's tokens; with echo those of the prompt come before the first."""
        rows = piece.logprobs or []
        request = self.call.requests[self.call.request_of(piece.index)]
        prompt: list[TokenLogprob] = []
        offsets: list[int] = []
        first: list[int] = []
        echo = self._echo(piece.index)
        if choice.offsets is None:
            choice.offsets = TextOffsets(shown_bytes(request, self.tokenizer), len(echo))
            if self.call.prompts:
                token_ids = request.prompt_token_ids.tolist()
                first = token_ids[:1]
                offsets = prompt_offsets(token_ids, echo, self.tokenizer)
                prompt = list(
                    self.prompt_rows(self.call.request_of(piece.index), piece.prompt_logprobs or ())
                )
        told = [*prompt, *rows]
        count = request.sampling.num_logprobs or 0
        nothing = [None] * len(first)
        tops = [top_logprobs(row, count, self.tokenizer) for row in told]
        return {
            "tokens": [
                token_text(token, self.tokenizer)
                for token in (*first, *(row.token_id for row in told))
            ],
            "token_logprobs": [*nothing, *(written(row.logprob) for row in told)],
            "top_logprobs": [*nothing, *tops],
            "text_offset": offsets + choice.offsets.feed(row.token_id for row in rows),
        }


def _prompt_logprobs(body: CompletionBody) -> dict[str, Any]:
    """What is asked of the prompt's tokens: with echo they have logprobs like any others."""
    asked = [] if body.prompt_logprobs is None else [body.prompt_logprobs]
    if body.echo and body.logprobs is not None:
        asked.append(body.logprobs)
    field = "prompt_logprobs" if body.prompt_logprobs == max(asked, default=None) else "logprobs"
    return {"num_prompt_logprobs": max(asked, default=None), "prompt_logprobs_field": field}


def _num_samples(body: CompletionBody, limits: RequestLimits) -> int:
    """To be generated for each prompt: the best of them are the answer."""
    n = body.n
    check_known_range("n", n, limits)
    check_known_range("best_of", body.best_of, limits)
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
    prompts: Sequence[Input],
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
