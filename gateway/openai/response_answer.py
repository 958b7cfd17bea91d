"""The answer of /v1/responses: a `response`, whole or as typed events, each with its number."""

from collections.abc import Callable, Sequence
from typing import Any

from gateway.blocks import Added, Block, BlockEvent, BlockKind, Blocks, Closed, Opened
from gateway.errors import Fault, RequestError
from gateway.openai.call import compact
from gateway.openai.errors import ERROR_KINDS
from gateway.openai.response_items import output_turn
from gateway.openai.responses import ResponseCall, StoredResponse
from gateway.output import Finish, FinishReason, Piece
from gateway.tokenizer import Tokenizer

Keep = Callable[[str, StoredResponse], None]

_ID_PREFIXES = {BlockKind.WORDS: "msg", BlockKind.REASONING: "rs", BlockKind.CALL: "fc"}
_PARTS = {
    # kind: the events of its one part
    BlockKind.WORDS: "output_text",
    BlockKind.REASONING: "reasoning_text",
}


class ResponsesAnswer:
    """One response. What is stored is given to `keep` when it is complete."""

    def __init__(self, call: ResponseCall, tokenizer: Tokenizer, keep: Keep) -> None:
        self.call = call
        self._tokenizer = tokenizer
        self._keep = keep
        self._blocks = Blocks(call.parsing)
        self._num_events = 0

    def events(self, pieces: Sequence[Piece]) -> bytes:
        """Server-sent events of these pieces; nothing for those that show nothing."""
        changes = self._blocks.feed(pieces)
        if not changes:
            return b""
        return (self._start() + "".join(map(self._events_of, changes))).encode()

    def idle_events(self) -> bytes:
        """What says that we are still here: that it is in progress, or else a comment."""
        return self._start().encode() or b": still here\n\n"

    def closing_events(self) -> bytes:
        """The end of a stream that ended well."""
        whole = self.whole()
        return self._event(f"response.{whole['status']}", response=whole).encode()

    def error_events(self, error: RequestError) -> bytes:
        """The end of a stream that failed."""
        kind = ERROR_KINDS[error.fault]
        told = self._event("error", code=kind.code, message=error.message, param=error.field)
        code = "rate_limit_exceeded" if error.fault is Fault.OVERLOADED else "server_error"
        output = [self._item(block, "incomplete") for block in self._blocks.all]
        failed = self._body("failed", output) | {"error": {"code": code, "message": error.message}}
        return (told + self._event("response.failed", response=failed)).encode()

    def collect(self, pieces: Sequence[Piece]) -> None:
        """Keeps these pieces for `whole`."""
        self._blocks.feed(pieces)

    def whole(self) -> dict[str, Any]:
        """The response, when the sample has ended."""
        finish = self._blocks.finish
        assert finish is not None
        is_cut = finish.reason is FinishReason.LENGTH
        status = "incomplete" if is_cut else "completed"
        output = [self._item(block, self._status_of(block)) for block in self._blocks.all]
        body = self._body(status, output) | {"usage": self._usage(finish)}
        if is_cut:
            body["incomplete_details"] = {"reason": "max_output_tokens"}
        if self.call.stores:
            turns = (*self.call.turns, output_turn(self._blocks.all))
            self._keep(self.call.response_id, StoredResponse(body, turns))
        return body

    def _start(self) -> str:
        """The first two events, once."""
        if self._num_events:
            return ""
        body = self._body("in_progress", [])
        return self._event("response.created", response=body) + self._event(
            "response.in_progress", response=body
        )

    def _events_of(self, change: BlockEvent) -> str:
        block = change.block
        at: dict[str, Any] = {"output_index": block.index}
        match change:
            case Opened():
                return self._begin(block, at)
            case Added(_, text):
                at["item_id"] = self._id(block)
                if block.kind is BlockKind.CALL:
                    return self._event("response.function_call_arguments.delta", **at, delta=text)
                return self._event(
                    f"response.{_PARTS[block.kind]}.delta",
                    **(at | {"content_index": 0, "delta": text} | _no_logprobs(block)),
                )
            case Closed():
                return self._end(block, at)

    def _begin(self, block: Block, at: dict[str, Any]) -> str:
        item = self._item(block, "in_progress")
        if block.kind is BlockKind.CALL:
            item["arguments"] = ""
            return self._event("response.output_item.added", **at, item=item)
        item["content"] = []
        added = self._event("response.output_item.added", **at, item=item)
        at |= {"item_id": self._id(block), "content_index": 0}
        return added + self._event("response.content_part.added", **at, part=_part(block.kind, ""))

    def _end(self, block: Block, at: dict[str, Any]) -> str:
        item = self._item(block, self._status_of(block))
        done = self._event
        inner = at | {"item_id": self._id(block)}
        if block.kind is BlockKind.CALL:
            said = done(
                "response.function_call_arguments.done",
                **inner,
                name=block.name,
                arguments=block.text,
            )
        else:
            inner["content_index"] = 0
            part = _part(block.kind, block.text)
            said = done(
                f"response.{_PARTS[block.kind]}.done",
                **(inner | {"text": block.text} | _no_logprobs(block)),
            )
            said += done("response.content_part.done", **inner, part=part)
        return said + done("response.output_item.done", **at, item=item)

    def _event(self, kind: str, **fields: Any) -> str:
        data = {"type": kind, "sequence_number": self._num_events, **fields}
        self._num_events += 1
        return f"event: {kind}\ndata: {compact(data)}\n\n"

    def _status_of(self, block: Block) -> str:
        """Of a block that is closed; what the length has cut is the last one."""
        finish = self._blocks.finish
        is_cut = finish is not None and finish.reason is FinishReason.LENGTH
        return "incomplete" if is_cut and block is self._blocks.all[-1] else "completed"

    def _item(self, block: Block, status: str) -> dict[str, Any]:
        said: dict[str, Any] = {"id": self._id(block), "status": status}
        match block.kind:
            case BlockKind.WORDS:
                content = [_part(block.kind, block.text)]
                return said | {"type": "message", "role": "assistant", "content": content}
            case BlockKind.REASONING:
                content = [_part(block.kind, block.text)]
                return said | {"type": "reasoning", "summary": [], "content": content}
            case BlockKind.CALL:
                call = {"call_id": block.id, "name": block.name, "arguments": block.text}
                return said | {"type": "function_call"} | call

    def _id(self, block: Block) -> str:
        name = self.call.response_id.removeprefix("resp_")
        return f"{_ID_PREFIXES[block.kind]}_{name}{block.index:04x}"

    def _body(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.call.response_id,
            "object": "response",
            "created_at": self.call.created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self.call.model,
            "output": output,
            **self.call.said,
        }

    def _usage(self, finish: Finish) -> dict[str, Any]:
        thoughts = [b.text for b in self._blocks.all if b.kind is BlockKind.REASONING]
        encode = self._tokenizer.encode
        num_thought = sum(len(encode(text, add_special_tokens=False)) for text in thoughts)
        return {
            "input_tokens": finish.num_prompt_tokens,
            "input_tokens_details": {
                "cached_tokens": finish.num_cached_tokens,
                "cache_write_tokens": 0,
            },
            "output_tokens": finish.num_output_tokens,
            "output_tokens_details": {"reasoning_tokens": num_thought},
            "total_tokens": finish.num_prompt_tokens + finish.num_output_tokens,
        }


def _part(kind: BlockKind, text: str) -> dict[str, Any]:
    if kind is BlockKind.REASONING:
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _no_logprobs(block: Block) -> dict[str, Any]:
    return {"logprobs": []} if block.kind is BlockKind.WORDS else {}
