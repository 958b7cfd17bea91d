"""The answer of /v1/responses: a `response`, whole or as typed events, each with its number."""

from collections.abc import Callable, Sequence
from typing import Any

from gateway.blocks import Added, Block, BlockEvent, BlockKind, Blocks, Closed, Opened
from gateway.errors import Fault, RequestError
from gateway.openai.call import compact
from gateway.openai.errors import ERROR_KINDS
from gateway.openai.logprobs import LogprobsByText, chat_logprobs
from gateway.openai.response_items import output_turn
from gateway.openai.responses import ResponseCall, StoredResponse
from gateway.output import Finish, FinishReason, Piece, TokenLogprob, shown_bytes
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
        bytes_of = shown_bytes(call.requests[0], tokenizer)
        self._blocks = Blocks(call.parsing, bytes_of)
        self._num_events = 0
        self._is_started = False
        self._by_text = LogprobsByText(bytes_of)
        self._logprobs: dict[int, list[dict[str, Any]]] = {}
        """Of the words, by the index of their block."""

    def events(self, pieces: Sequence[Piece]) -> bytes:
        """Server-sent events of these pieces; nothing for those that show nothing."""
        told = [(change, self._logprobs_of(change)) for change in self._feed(pieces)]
        if not told:
            return b""
        return (self._start() + "".join([self._events_of(*each) for each in told])).encode()

    def opening_events(self) -> bytes:
        """Of a response that runs in the background: it is queued."""
        body = self.body_so_far()
        created = self._event("response.created", response=body)
        return (created + self._event("response.queued", response=body)).encode()

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
        return (told + self._event("response.failed", response=self.failed(error))).encode()

    def cancelling_events(self) -> bytes:
        """The end of a stream that a client has cancelled: OpenAI has no event of that name."""
        return self._event("response.incomplete", response=self.cancelled()).encode()

    def collect(self, pieces: Sequence[Piece]) -> None:
        """Keeps these pieces for `whole`."""
        for change in self._feed(pieces):
            self._logprobs_of(change)

    def body_so_far(self) -> dict[str, Any]:
        """The response while it is being written, in the background."""
        if not self._blocks.all:
            return self._body("queued", [])
        return self._body("in_progress", self._output_so_far("in_progress"))

    def failed(self, error: RequestError) -> dict[str, Any]:
        """The response, when it cannot be completed."""
        code = "rate_limit_exceeded" if error.fault is Fault.OVERLOADED else "server_error"
        body = self._body("failed", self._output_so_far("incomplete"))
        return body | {"error": {"code": code, "message": error.message}}

    def cancelled(self) -> dict[str, Any]:
        """The response, when a client has cancelled it."""
        return self._body("cancelled", self._output_so_far("incomplete"))

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
            self._keep(self.call.response_id, StoredResponse(body, turns, self.call.input_items))
        return body

    def _feed(self, pieces: Sequence[Piece]) -> list[BlockEvent]:
        for piece in pieces:
            self._by_text.add(piece.logprobs or ())
        return self._blocks.feed(pieces)

    def _logprobs_of(self, change: BlockEvent) -> list[dict[str, Any]]:
        """Of the words that were added; the block keeps them, too."""
        if not self.call.wants_logprobs or not isinstance(change, Added) or not change.spans:
            return []
        rows: list[TokenLogprob] = self._by_text.take(change.spans)
        if change.block.kind is not BlockKind.WORDS:
            return []
        entries = chat_logprobs(rows, self._tokenizer)
        self._logprobs.setdefault(change.block.index, []).extend(entries)
        return entries

    def _start(self) -> str:
        """The first events, once."""
        if self._is_started:
            return ""
        self._is_started = True
        body = self._body("in_progress", [])
        created = "" if self._num_events else self._event("response.created", response=body)
        return created + self._event("response.in_progress", response=body)

    def _events_of(self, change: BlockEvent, logprobs: list[dict[str, Any]]) -> str:
        block = change.block
        at: dict[str, Any] = {"output_index": block.index}
        match change:
            case Opened():
                return self._begin(block, at)
            case Added(text=text):
                at["item_id"] = self._id(block)
                if block.kind is BlockKind.CALL:
                    return self._event("response.function_call_arguments.delta", **at, delta=text)
                told = {"content_index": 0, "delta": text}
                if block.kind is BlockKind.WORDS:
                    told["logprobs"] = logprobs
                return self._event(f"response.{_PARTS[block.kind]}.delta", **at, **told)
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
        part = _part(block.kind, "", [])
        return added + self._event("response.content_part.added", **at, part=part)

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
            part = self._part(block)
            told = {name: part[name] for name in ("text", "logprobs") if name in part}
            said = done(f"response.{_PARTS[block.kind]}.done", **inner, **told)
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
                content = [self._part(block)]
                return said | {"type": "message", "role": "assistant", "content": content}
            case BlockKind.REASONING:
                content = [self._part(block)]
                return said | {"type": "reasoning", "summary": [], "content": content}
            case BlockKind.CALL:
                call = {"call_id": block.id, "name": block.name, "arguments": block.text}
                return said | {"type": "function_call"} | call

    def _part(self, block: Block) -> dict[str, Any]:
        return _part(block.kind, block.text, self._logprobs.get(block.index, []))

    def _output_so_far(self, status: str) -> list[dict[str, Any]]:
        """`status` is that of a block that is not complete: the last one."""
        return [
            self._item(block, status if block is self._blocks.all[-1] else "completed")
            for block in self._blocks.all
        ]

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
        return {
            "input_tokens": finish.num_prompt_tokens,
            "input_tokens_details": {
                "cached_tokens": finish.num_cached_tokens,
                "cache_write_tokens": 0,
            },
            "output_tokens": finish.num_output_tokens,
            "output_tokens_details": {"reasoning_tokens": self._blocks.num_thought_tokens},
            "total_tokens": finish.num_prompt_tokens + finish.num_output_tokens,
        }


def _part(kind: BlockKind, text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    if kind is BlockKind.REASONING:
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}
