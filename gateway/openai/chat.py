"""POST /v1/chat/completions."""

import random
from collections.abc import Sequence
from typing import Any

from gateway.errors import invalid, quote
from gateway.model import Model
from gateway.openai.call import Answer, Call, Choice, compact, ending
from gateway.openai.schema import (
    REFUSED_IN_CHAT,
    ChatBody,
    MessageBody,
    checked_text,
    options_of,
    parse_body,
    refuse_unserved,
)
from gateway.output import Piece, TokenLogprob
from gateway.request import check_request_id
from gateway.template import ChatMessage

_ROLES = {
    # OpenAI's newer word for the same thing; templates know only the older
    "developer": "system",
    "system": "system",
    "user": "user",
    "assistant": "assistant",
}

_REFUSED_IN_MESSAGE: dict[str, tuple[Any, ...]] = {
    "tool_calls": (None, []),
    "function_call": (None,),
    "audio": (None,),
    "tool_call_id": (None,),
}


def parse_chat(
    content: bytes, model: Model, max_model_len: int, request_id: str, dice: random.Random
) -> Call:
    """A valid call out of a request body, with the prompt rendered and tokenized.

    Raises RequestError.
    """
    body = parse_body(content, ChatBody)
    model.check_name(body.model)
    refuse_unserved(body, REFUSED_IN_CHAT)
    if body.request_id is not None:
        request_id = check_request_id("request_id", body.request_id)
    if not body.messages:
        raise invalid("messages", "messages has 0 entries; it must have at least 1")
    messages = [_message(index, message) for index, message in enumerate(body.messages)]
    request = model.build(
        model.chat_prompt(messages, max_model_len),
        options_of(
            body,
            num_logprobs=_num_logprobs(body),
            logprobs_field="top_logprobs",
            **_max_tokens(body),
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
        streams=body.streams,
        include_usage=body.include_usage,
        wants_logprobs=request.sampling.num_logprobs is not None,
        wants_token_ids=bool(body.return_token_ids),
    )


class ChatAnswer(Answer):
    """A `chat.completion`, whole or in chunks."""

    id_prefix = "chatcmpl"
    chunk_object = "chat.completion.chunk"
    whole_object = "chat.completion"

    def chunk(self, choice: Choice, piece: Piece) -> str | None:
        """The first chunk of a choice says the role, the last one why it ended."""
        shows = self.call.wants_logprobs or self.call.wants_token_ids
        if not (piece.text or piece.finish or (shows and piece.token_ids)):
            return None
        role = "" if choice.opened else '"role":"assistant",'
        delta = f'{{{role}"content":{compact(piece.text)}}}'
        extra = ',"logprobs":null'
        if self.call.wants_logprobs:
            extra = f',"logprobs":{compact(self._logprobs(piece.logprobs or ()))}'
        if self.call.wants_token_ids:
            extra += f',"token_ids":{compact(piece.token_ids)}'
            if not choice.opened:
                extra += f',"prompt_token_ids":{compact(self._prompt_token_ids())}'
        return f'{{"index":{piece.index},"delta":{delta},{ending(piece.finish)}{extra}}}'

    def whole_choice(self, index: int, choice: Choice) -> dict[str, Any]:
        """One entry of `choices`."""
        assert choice.finish is not None
        whole: dict[str, Any] = {
            "index": index,
            "message": {"role": "assistant", "content": "".join(choice.text), "refusal": None},
            "logprobs": self._logprobs(choice.logprobs) if self.call.wants_logprobs else None,
            "finish_reason": choice.finish.reason.value,
            "stop_reason": choice.finish.stop_reason,
        }
        if self.call.wants_token_ids:
            whole["token_ids"] = choice.token_ids
            whole["prompt_token_ids"] = self._prompt_token_ids()
        return whole

    def _prompt_token_ids(self) -> list[int]:
        tokens: list[int] = self.call.requests[0].prompt_token_ids.tolist()
        return tokens

    def _logprobs(self, rows: Sequence[TokenLogprob]) -> dict[str, Any]:
        entries = []
        for row in rows:
            entry = self.logprob_entry(row.token_id, row.logprob)
            entry["top_logprobs"] = [self.logprob_entry(*top) for top in row.top]
            entries.append(entry)
        return {"content": entries, "refusal": None}


def _max_tokens(body: ChatBody) -> dict[str, Any]:
    """The new name wins over the old one."""
    if body.max_completion_tokens is None:
        return {}
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


def _message(index: int, body: MessageBody) -> ChatMessage:
    field = f"messages[{index}]"
    role = _ROLES.get(body.role)
    if role is None:
        raise invalid(
            f"{field}.role", f"{field}.role is {quote(body.role)}; it must be one of {list(_ROLES)}"
        )
    refuse_unserved(body, _REFUSED_IN_MESSAGE, prefix=f"{field}.")
    name = body.name if body.name is None else checked_text(f"{field}.name", body.name)
    return ChatMessage(role, _content(f"{field}.content", body.content, role), name)


def _content(field: str, content: Any, role: str) -> str:
    """Text, or parts of type text, which are joined by line breaks."""
    if isinstance(content, str):
        return checked_text(field, content)
    if content is None and role == "assistant":
        return ""
    if not isinstance(content, list):
        raise invalid(
            field, f"{field} is {quote(content)}; it must be a string or an array of text parts"
        )
    return "\n".join(_text_part(f"{field}[{index}]", part) for index, part in enumerate(content))


def _text_part(field: str, part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind != "text":
        raise invalid(
            f"{field}.type", f"{field}.type is {quote(kind)}; this server accepts only text parts"
        )
    text = part.get("text")
    if not isinstance(text, str):
        raise invalid(f"{field}.text", f"{field}.text is {quote(text)}; it must be a string")
    return checked_text(f"{field}.text", text)
