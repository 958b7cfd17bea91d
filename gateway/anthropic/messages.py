"""POST /v1/messages and POST /v1/messages/count_tokens."""

import base64
import hashlib
import random
import sys
from collections.abc import Sequence
from typing import Any

from pydantic_core import from_json

from gateway.anthropic.conversation import conversation_of
from gateway.anthropic.errors import error_body
from gateway.anthropic.schema import CountTokensBody, MessagesBody
from gateway.blocks import Added, Block, BlockEvent, BlockKind, Blocks, Closed, Opened
from gateway.body import checked_text, parse_body, refuse_unknown
from gateway.errors import RequestError, invalid, quote, wrong
from gateway.grammar import GrammarSpec, compiled
from gateway.model import Model
from gateway.openai.call import Call, compact
from gateway.options import Options
from gateway.output import Finish, FinishReason, Piece
from gateway.tokenizer import Tokenizer


def parse_messages(
    content: bytes, model: Model, max_model_len: int, request_id: str, dice: random.Random
) -> Call:
    """A valid call out of a request body, with the prompt rendered and tokenized.

    Raises RequestError.
    """
    body = parse_body(content, MessagesBody)
    model.check_name(body.model)
    conversation = conversation_of(body, model)
    _check_budget(body)
    prompt = model.chat(conversation, max_model_len, _grammar(body))
    stop = [
        checked_text(f"stop_sequences[{index}]", text)
        for index, text in enumerate(body.stop_sequences)
    ]
    request = model.build(
        prompt.token_ids,
        Options(
            max_tokens=body.max_tokens,
            temperature=body.temperature,
            top_k=body.top_k,
            top_p=body.top_p,
            stop=stop,
            stop_field="stop_sequences",
            timeout=body.timeout,
            shown_tokens=prompt.parsing.shown_tokens if prompt.parsing else frozenset(),
            grammar=prompt.grammar,
        ),
        max_model_len,
        dice=dice,
        request_id=request_id,
        prompt_field="messages",
    )
    return Call(
        request_id=request_id,
        model=model.name,
        requests=(request,),
        streams=body.stream,
        include_usage=False,
        wants_logprobs=False,
        wants_token_ids=False,
        parsing=prompt.parsing,
    )


def _check_budget(body: MessagesBody) -> None:
    budget = body.thinking.budget_tokens if body.thinking else None
    if budget is not None and budget >= body.max_tokens:
        field = "thinking.budget_tokens"
        raise invalid(
            field,
            f"{field} is {budget}; it must be less than max_tokens, which is {body.max_tokens}",
        )


def _grammar(body: CountTokensBody) -> GrammarSpec | None:
    said = body.output_config.format if body.output_config else None
    if said is None:
        return None
    field = "output_config.format"
    if said.get("type") != "json_schema":
        raise wrong(f"{field}.type", said.get("type"), quote("json_schema"))
    refuse_unknown(said, ("type", "schema"), f"{field}.")
    schema = said.get("schema")
    if not isinstance(schema, dict):
        raise wrong(f"{field}.schema", schema, "an object")
    return GrammarSpec.json_schema(schema, f"{field}.schema")


def count_tokens(content: bytes, model: Model) -> dict[str, Any]:
    """The answer of count_tokens; a prompt may be too long to be answered and still be counted.
    Else what is refused in messages is refused here.

    Raises RequestError.
    """
    body = parse_body(content, CountTokensBody)
    model.check_name(body.model)
    prompt = model.chat(conversation_of(body, model), sys.maxsize, _grammar(body))
    if prompt.grammar is not None:
        compiled(prompt.grammar, model.limits)
    return {"input_tokens": len(prompt.token_ids)}


class MessagesAnswer:
    """A `message`, whole or as events."""

    def __init__(self, call: Call, tokenizer: Tokenizer) -> None:
        self.call = call
        self._blocks = Blocks(call.parsing)
        self._num_prompt_tokens = len(call.requests[0].prompt_token_ids)
        self._started = False

    def events(self, pieces: Sequence[Piece]) -> bytes:
        """Server-sent events of these pieces; nothing for those that show nothing."""
        changes = self._blocks.feed(pieces)
        return (self._start() + "".join(map(_event_of, changes))).encode() if changes else b""

    def idle_events(self) -> bytes:
        """What says that we are still here."""
        return (self._start() + _event({"type": "ping"})).encode()

    def closing_events(self) -> bytes:
        """The end of a stream that ended well."""
        finish = self._finish
        delta = {
            "type": "message_delta",
            "delta": {
                "stop_reason": self._stop_reason(finish),
                "stop_sequence": _stop_sequence(finish),
            },
            "usage": self._usage(finish),
        }
        return (_event(delta) + _event({"type": "message_stop"})).encode()

    def error_events(self, error: RequestError) -> bytes:
        """The end of a stream that failed."""
        return _event(error_body(error, self.call.request_id)).encode()

    def collect(self, pieces: Sequence[Piece]) -> None:
        """Keeps these pieces for `whole`."""
        self._blocks.feed(pieces)

    def whole(self) -> dict[str, Any]:
        """The response, when the sample has ended."""
        finish = self._finish
        return self._head() | {
            "content": [_whole_block(block) for block in self._blocks.all],
            "stop_reason": self._stop_reason(finish),
            "stop_sequence": _stop_sequence(finish),
            "usage": self._usage(finish),
        }

    @property
    def _finish(self) -> Finish:
        assert self._blocks.finish is not None
        return self._blocks.finish

    def _start(self) -> str:
        """The first event, once. What was found in the cache is known only at the end."""
        if self._started:
            return ""
        self._started = True
        message = self._head() | {
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": self._num_prompt_tokens, "output_tokens": 0},
        }
        return _event({"type": "message_start", "message": message})

    def _head(self) -> dict[str, Any]:
        return {
            "id": f"msg_{self.call.request_id}",
            "type": "message",
            "role": "assistant",
            "model": self.call.model,
        }

    def _stop_reason(self, finish: Finish) -> str:
        if finish.reason is FinishReason.LENGTH:
            return "max_tokens"
        if finish.stop_reason is not None:
            return "stop_sequence"
        return "tool_use" if self._blocks.num_calls else "end_turn"

    def _usage(self, finish: Finish) -> dict[str, int]:
        """The three counts of input make up the prompt."""
        return {
            "input_tokens": self._num_prompt_tokens - finish.num_cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": finish.num_cached_tokens,
            "output_tokens": finish.num_output_tokens,
        }


def _stop_sequence(finish: Finish) -> str | None:
    return finish.stop_reason if isinstance(finish.stop_reason, str) else None


def _event_of(change: BlockEvent) -> str:
    index = change.block.index
    match change:
        case Opened(block):
            told = {"type": "content_block_start", "index": index, "content_block": _empty(block)}
        case Added(block, text):
            delta = _delta(block.kind, text)
            told = {"type": "content_block_delta", "index": index, "delta": delta}
        case Closed(block):
            told = {"type": "content_block_stop", "index": index}
            if block.kind is BlockKind.REASONING:
                delta = {"type": "signature_delta", "signature": _signature(block.text)}
                signed = {"type": "content_block_delta", "index": index, "delta": delta}
                return _event(signed) + _event(told)
    return _event(told)


def _event(data: dict[str, Any]) -> str:
    return f"event: {data['type']}\ndata: {compact(data)}\n\n"


def _empty(block: Block) -> dict[str, Any]:
    match block.kind:
        case BlockKind.WORDS:
            return {"type": "text", "text": ""}
        case BlockKind.REASONING:
            return {"type": "thinking", "thinking": "", "signature": ""}
        case BlockKind.CALL:
            return {"type": "tool_use", "id": block.id, "name": block.name, "input": {}}


def _delta(kind: BlockKind, text: str) -> dict[str, Any]:
    match kind:
        case BlockKind.WORDS:
            return {"type": "text_delta", "text": text}
        case BlockKind.REASONING:
            return {"type": "thinking_delta", "thinking": text}
        case BlockKind.CALL:
            return {"type": "input_json_delta", "partial_json": text}


def _whole_block(block: Block) -> dict[str, Any]:
    match block.kind:
        case BlockKind.WORDS:
            return {"type": "text", "text": block.text}
        case BlockKind.REASONING:
            text = block.text
            return {"type": "thinking", "thinking": text, "signature": _signature(text)}
        case BlockKind.CALL:
            said = {"type": "tool_use", "id": block.id, "name": block.name}
            return said | {"input": _arguments(block.text)}


def _signature(thoughts: str) -> str:
    """What clients keep with thoughts and send back with them: a checksum, which nobody checks, as
    any thoughts may be sent here."""
    return base64.b64encode(hashlib.sha256(thoughts.encode()).digest()).decode()


def _arguments(text: str) -> dict[str, Any]:
    """The arguments as far as they were written, as a client that streams reads them: the answer
    may have ended within them."""
    try:
        value = from_json(text, allow_partial="trailing-strings") if text.strip() else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
