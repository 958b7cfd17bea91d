"""POST /v1/chat/completions."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gateway.body import parse_body
from gateway.conversation import MAX_ARGUMENTS_BYTES, Conversation, check_results, checked_json
from gateway.errors import invalid, quote
from gateway.model import Model
from gateway.openai.call import Answer, Call, Choice, compact, ending
from gateway.openai.logprobs import chat_logprobs, check_prompt_logprobs, prompt_logprobs
from gateway.openai.messages import chat_message
from gateway.openai.options import check_beams, check_metadata, check_stream, generation_options
from gateway.openai.schema import ChatBody, ConversationBody
from gateway.openai.structure import requested_grammar
from gateway.openai.tools import chat_tool_choice, chat_tools
from gateway.output import Finish, FinishReason, Piece, TokenLogprob, shown_bytes
from gateway.parsing.deltas import (
    CallArguments,
    CallBegun,
    Content,
    Delta,
    Reasoning,
    Said,
    gathered,
)
from gateway.ranges import check_known_range
from gateway.reading import Reading
from gateway.request import check_request_id
from gateway.thinking import effort_arguments
from gateway.tokenizer import Tokenizer


def parse_chat(
    content: bytes, model: Model, max_model_len: int, request_id: str, dice: random.Random
) -> Call:
    """A valid call out of a request body, with the prompt rendered and tokenized.

    Raises RequestError.
    """
    body = parse_body(content, ChatBody)
    model.check_name(body.model)
    if body.request_id is not None:
        request_id = check_request_id("request_id", body.request_id)
    check_stream(body)
    check_beams(body)
    check_metadata(body.metadata)
    check_known_range("thinking_token_budget", body.thinking_token_budget, model.limits)
    conversation = replace(
        conversation_of(body, model),
        max_thought_tokens=body.thinking_token_budget,
        max_thought_tokens_field="thinking_token_budget",
    )
    prompt = model.chat(conversation, body.prompt_room(max_model_len), requested_grammar(body))
    request = model.build(
        prompt.token_ids,
        generation_options(
            body,
            grammar=prompt.grammar,
            shown_tokens=prompt.parsing.shown_tokens if prompt.parsing else frozenset(),
            num_logprobs=_num_logprobs(body),
            logprobs_field="top_logprobs",
            **_max_tokens(body),
        ),
        max_model_len,
        dice=dice,
        request_id=request_id,
        prompt_field="messages",
    )
    check_prompt_logprobs("prompt_logprobs", [request])
    return Call(
        request_id=request_id,
        model=model.name,
        requests=(request,),
        streams=body.streams,
        include_usage=body.include_usage,
        wants_logprobs=request.sampling.num_logprobs is not None,
        wants_token_ids=body.return_token_ids,
        parsing=prompt.parsing,
        continuous_usage=body.continuous_usage,
        num_prompt_logprobs=request.sampling.num_prompt_logprobs,
    )


def conversation_of(body: ConversationBody, model: Model) -> Conversation:
    """What the model is to go on with. Raises RequestError."""
    if not body.messages:
        raise invalid("messages", "messages has 0 entries; it must have at least 1")
    continues = body.continue_final_message
    if continues and body.add_generation_prompt:
        raise invalid(
            "continue_final_message",
            "continue_final_message is true and add_generation_prompt is true; "
            "an answer can do only one of the two",
        )
    arguments = body.chat_template_kwargs
    checked_json("chat_template_kwargs", arguments, MAX_ARGUMENTS_BYTES)
    effort = effort_arguments("reasoning_effort", body.reasoning_effort, model)
    messages = [chat_message(index, message) for index, message in enumerate(body.messages)]
    check_results(messages)
    return Conversation(
        messages=messages,
        tools=chat_tools(body.tools),
        tool_choice=chat_tool_choice(body.tool_choice),
        parallel_tool_calls=body.parallel_tool_calls,
        template_arguments={**effort, **arguments},
        add_generation_prompt=body.add_generation_prompt is not False and not continues,
        continue_final_message=continues,
    )


class ChatAnswer(Answer):
    """A `chat.completion`, whole or in chunks."""

    id_prefix = "chatcmpl"
    chunk_object = "chat.completion.chunk"
    whole_object = "chat.completion"

    def __init__(self, call: Call, tokenizer: Tokenizer) -> None:
        super().__init__(call, tokenizer)
        self._only_calls = call.parsing is not None and call.parsing.only_calls
        self._is_plain = call.parsing is None and not (call.wants_logprobs or call.wants_token_ids)
        self._bytes_of = shown_bytes(call.requests[0], tokenizer)

    def chunk(self, choice: Choice, piece: Piece) -> str | None:
        """The first chunk of a choice says the role, the last one why it ended."""
        call = self.call
        if choice.opened and piece.finish is None and self._is_plain:  # nearly every chunk
            if not piece.text:
                return None
            return (
                f'{{"index":{piece.index},"delta":{{"content":{compact(piece.text)}}},'
                '"finish_reason":null,"logprobs":null}'
            )
        reason = None
        if call.parsing is None:
            fields = f'"content":{compact(piece.text)}'
            says = bool(piece.text)
        else:
            reading = self._reading(choice)
            deltas = reading.feed(piece)
            fields = _written(deltas)
            says = bool(deltas)
            reason = _tool_reason(piece.finish, reading.num_calls)
        shows = call.wants_logprobs or call.wants_token_ids
        if not (says or piece.finish or (shows and piece.token_ids)):
            return None
        if not choice.opened:
            nothing = _NULL_CONTENT if self._only_calls else _NO_CONTENT
            fields = f'"role":"assistant",{fields or nothing}'
        extra = ',"logprobs":null'
        if call.wants_logprobs:
            extra = f',"logprobs":{compact(self._logprobs(piece.logprobs or ()))}'
        if call.wants_token_ids:
            extra += f',"token_ids":{compact(piece.token_ids)}'
        return (
            f'{{"index":{piece.index},"delta":{{{fields}}},{ending(piece.finish, reason)}{extra}}}'
        )

    def beside_first_chunk(self) -> str:
        """The prompt's tokens stand beside the choices: all have the same prompt."""
        if not self.call.wants_token_ids:
            return ""
        return f',"prompt_token_ids":{compact(self._prompt_token_ids())}'

    def collect(self, pieces: Sequence[Piece]) -> None:
        """Reads them, too, so that a long answer is not left to be read at its end."""
        super().collect(pieces)
        if self.call.parsing is not None:
            for piece in pieces:
                choice = self.choices[piece.index]
                choice.deltas += self._reading(choice).feed(piece)

    def usage(self) -> dict[str, Any]:
        """And how much of the answers was thought."""
        readings = [choice.reading for choice in self.choices if choice.reading is not None]
        num_thought = sum(reading.num_thought_tokens for reading in readings)
        return super().usage() | {"completion_tokens_details": {"reasoning_tokens": num_thought}}

    def whole(self) -> dict[str, Any]:
        """What is said of the prompt stands beside the choices."""
        whole = super().whole()
        if self.call.wants_token_ids:
            whole["prompt_token_ids"] = self._prompt_token_ids()
        count = self.call.num_prompt_logprobs
        if count is not None:
            rows = self.prompt_rows(0, self.choices[0].prompt_logprobs)
            whole["prompt_logprobs"] = prompt_logprobs(rows, count, self.tokenizer)
        return whole

    def whole_choice(self, index: int, choice: Choice) -> dict[str, Any]:
        """One entry of `choices`."""
        assert choice.finish is not None
        plain = self.call.parsing is None
        said = Said("".join(choice.text)) if plain else gathered(choice.deltas)
        reason = _tool_reason(choice.finish, len(said.calls))
        whole: dict[str, Any] = {
            "index": index,
            "message": _message_fields(said, only_calls=self._only_calls),
            "logprobs": self._logprobs(choice.logprobs) if self.call.wants_logprobs else None,
            "finish_reason": reason or choice.finish.reason.value,
            "stop_reason": choice.finish.stop_reason,
        }
        if self.call.wants_token_ids:
            whole["token_ids"] = choice.token_ids
        return whole

    def _reading(self, choice: Choice) -> Reading:
        if choice.reading is None:
            choice.reading = Reading(self.call.parsing, self._bytes_of)
        return choice.reading

    def _prompt_token_ids(self) -> list[int]:
        tokens: list[int] = self.call.requests[0].prompt_token_ids.tolist()
        return tokens

    def _logprobs(self, rows: Sequence[TokenLogprob]) -> dict[str, Any]:
        return {"content": chat_logprobs(rows, self.tokenizer), "refusal": None}


_NO_CONTENT = '"content":""'
_NULL_CONTENT = '"content":null'


def _written(deltas: Sequence[Delta]) -> str:
    """The fields of a chunk's delta, as JSON without its braces. Most chunks have one delta."""
    if len(deltas) == 1:
        match deltas[0]:
            case Content(text):
                return f'"content":{compact(text)}'
            case Reasoning(text):
                written = compact(text)
                return f'"reasoning":{written},"reasoning_content":{written}'
            case CallArguments(index, text):
                function = f'{{"arguments":{compact(text)}}}'
                return f'"tool_calls":[{{"index":{index},"function":{function}}}]'
            case _:
                pass
    return compact(_delta_fields(deltas))[1:-1]


def _delta_fields(deltas: Sequence[Delta]) -> dict[str, Any]:
    """The fields of a chunk's delta; several deltas of one kind are one."""
    fields: dict[str, Any] = {}
    if content := "".join([delta.text for delta in deltas if isinstance(delta, Content)]):
        fields["content"] = content
    if reasoning := "".join([delta.text for delta in deltas if isinstance(delta, Reasoning)]):
        fields |= _reasoning_fields(reasoning)
    calls: dict[int, dict[str, Any]] = {}
    for delta in deltas:
        match delta:
            case CallBegun(index, id, name):
                function = {"name": name, "arguments": ""}
                calls[index] = {
                    "index": index,
                    "id": id,
                    "type": "function",
                    "function": function,
                }
            case CallArguments(index, text):
                call = calls.setdefault(index, {"index": index, "function": {"arguments": ""}})
                call["function"]["arguments"] += text
    if calls:
        fields["tool_calls"] = list(calls.values())
    return fields


def _message_fields(said: Said, *, only_calls: bool) -> dict[str, Any]:
    """A whole answer; content is null where the model has said something else instead, or had
    to."""
    fields: dict[str, Any] = {
        "role": "assistant",
        "content": said.content or (None if only_calls or said.calls or said.reasoning else ""),
        "refusal": None,
    }
    if said.reasoning:
        fields |= _reasoning_fields(said.reasoning)
    if said.calls:
        fields["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in said.calls
        ]
    return fields


def _reasoning_fields(text: str) -> dict[str, str]:
    """By the two names that clients look for."""
    return {"reasoning": text, "reasoning_content": text}


def _tool_reason(finish: Finish | None, num_calls: int) -> str | None:
    """What an answer that ended with calls says in place of "stop"."""
    if finish is not None and finish.reason is FinishReason.STOP and num_calls:
        return "tool_calls"
    return None


def _max_tokens(body: ChatBody) -> dict[str, Any]:
    """One limit by two names. Raises RequestError if they are two limits."""
    if body.max_completion_tokens is None:
        return {}
    if body.max_tokens not in (None, body.max_completion_tokens):
        raise invalid(
            "max_tokens",
            f"max_tokens is {quote(body.max_tokens)} and max_completion_tokens is "
            f"{quote(body.max_completion_tokens)}; there must be one of them",
        )
    return {
        "max_tokens": body.max_completion_tokens,
        "max_tokens_field": "max_completion_tokens",
    }


def _num_logprobs(body: ChatBody) -> int | None:
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs:
        raise invalid(
            "top_logprobs", f"top_logprobs is {body.top_logprobs}; it needs logprobs to be true"
        )
    return None
