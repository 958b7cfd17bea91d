"""gRPC clients of the router (InferenceService) and the scheduler (SchedulerService).

The only place in `quire` that sees protobuf messages.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
import numpy as np

from protos.outage import plainly
from protos.quire.v1 import (
    inference_pb2,
    inference_pb2_grpc,
    sampling_pb2,
    scheduler_pb2,
    scheduler_pb2_grpc,
)
from quire.errors import RequestFailed
from quire.outputs import CompletionOutput, Logprob
from quire.sampling import SamplingParams

_OPTIONS = [("grpc.max_receive_message_length", 64 << 20)]
_RETRY_TRAILER = "grpc-retry-pushback-ms"
_FIRST_RETRY_S, _LAST_RETRY_S, _MAX_RETRIES = 0.05, 2.0, 30

_Answer = TypeVar("_Answer")
Prompt = str | Sequence[int]
Conversation = Sequence[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Completed:
    """All samples of one request."""

    outputs: list[CompletionOutput]
    num_prompt_tokens: int
    num_cached_tokens: int


@dataclass(slots=True)
class _Sample:
    """A sample as its pieces arrive."""

    text: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    finish_reason: int = sampling_pb2.FINISH_REASON_UNSPECIFIED
    usage: inference_pb2.Usage = field(default_factory=inference_pb2.Usage)

    def add(self, piece: inference_pb2.GenerateResponse) -> None:
        self.text.append(piece.text)
        self.token_ids.extend(piece.token_ids)
        self.logprobs.extend(_logprob_rows(piece))
        if piece.finish_reason:
            self.finish_reason = piece.finish_reason
            self.usage = piece.usage


class InferenceClient:
    """Speaks to a router; belongs to the event loop it is made on."""

    def __init__(self, target: str, api_key: str | None = None) -> None:
        """`target` is "host:port" or "unix:/path"."""
        self._channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
        self._stub = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._metadata = (("authorization", f"Bearer {api_key}"),) if api_key else ()

    async def close(self) -> None:
        """Ends what is in flight."""
        await self._channel.close()

    async def tokenize(self, text: str) -> list[int]:
        """Token ids of a raw prompt, with the model's special tokens; tries again like `complete`.

        Raises RequestFailed.
        """
        request = inference_pb2.TokenizeRequest(text=text, add_special_tokens=True)

        async def once() -> list[int]:
            return list((await self._stub.Tokenize(request, metadata=self._metadata)).token_ids)

        return await _retrying(once)

    async def complete(self, prompt: Prompt | Conversation, params: SamplingParams) -> Completed:
        """Generates all samples; tries again while the router is busy or being restarted.

        Raises RequestFailed.
        """
        request = _generate_request(prompt, params)
        request.whole = True
        return await _retrying(lambda: self._complete_once(request, params))

    async def stream(
        self, prompt: Prompt | Conversation, params: SamplingParams
    ) -> AsyncGenerator[str, None]:
        """Text of sample 0 as it is generated. Raises RequestFailed."""
        call = self._stub.Generate(_generate_request(prompt, params), metadata=self._metadata)
        try:
            async for piece in call:
                if piece.index == 0 and piece.text:
                    yield piece.text
        except grpc.aio.AioRpcError as error:
            raise RequestFailed(error.details() or error.code().name) from error
        finally:
            call.cancel()

    async def _complete_once(
        self, request: inference_pb2.GenerateRequest, params: SamplingParams
    ) -> Completed:
        samples = [_Sample() for _ in range(params.n)]
        async for piece in self._stub.Generate(request, metadata=self._metadata):
            samples[piece.index].add(piece)
        return Completed(
            outputs=[_output(i, sample, params) for i, sample in enumerate(samples)],
            num_prompt_tokens=samples[0].usage.num_prompt_tokens,
            num_cached_tokens=samples[0].usage.num_cached_tokens,
        )


async def _retrying(call: Callable[[], Awaitable[_Answer]]) -> _Answer:
    """The answer of the first call that succeeds. Raises RequestFailed."""
    backoff_s = _FIRST_RETRY_S
    for attempts_left in reversed(range(_MAX_RETRIES)):
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            hint_s = _retry_hint_s(error)
            if hint_s is None or not attempts_left:
                raise RequestFailed(error.details() or error.code().name) from error
        await asyncio.sleep(max(hint_s, backoff_s))
        backoff_s = min(2 * backoff_s, _LAST_RETRY_S)
    raise AssertionError("the last attempt returns or raises")


def _retry_hint_s(error: grpc.aio.AioRpcError) -> float | None:
    """Seconds after which trying again may help; None if it would not.

    UNAVAILABLE may be gRPC's own (nobody listens yet). RESOURCE_EXHAUSTED may be too (a message
    is too large, for ever), so only the router's word makes it worth a retry.
    """
    trailers = dict(error.trailing_metadata() or ())
    hint = trailers.get(_RETRY_TRAILER)
    if hint is not None:
        return int(hint) / 1000
    return 0.0 if error.code() == grpc.StatusCode.UNAVAILABLE else None


async def fetch_state(target: str, timeout_s: float = 5.0) -> dict[str, Any]:
    """The scheduler's totals as plain data, for people and `--json`. Raises RequestFailed."""
    async with grpc.aio.insecure_channel(target, options=_OPTIONS) as channel:
        stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
        try:
            state = await stub.GetState(scheduler_pb2.GetStateRequest(), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            reason = plainly(error.code().name, error.details())
            raise RequestFailed(f"no state of the scheduler at {target}: {reason}") from error
    replicas = [_replica(replica) for replica in state.status.replicas]
    kinds = ("total", "free", "cached", "used")
    return {
        "model": state.status.model.name if state.status.HasField("model") else None,
        "blocks": {kind: sum(r["blocks"][kind] for r in replicas) for kind in kinds},
        "running": state.status.num_running,
        "waiting": state.status.num_waiting,
        "draining": state.status.draining,
        "routers": state.num_routers,
        "generated_tokens": state.status.num_generated_tokens,
        "preemptions": state.num_preemptions,
        "prefix_query_tokens": state.num_prefix_query_tokens,
        "prefix_hit_tokens": state.num_prefix_hit_tokens,
        "overrun_tokens": state.num_overrun_tokens,
        "replays": state.num_replays,
        "uptime_s": state.uptime_s,
        "replicas": replicas,
    }


def _replica(status: scheduler_pb2.ReplicaStatus) -> dict[str, Any]:
    return {
        "replica": status.replica_id,
        "epoch": status.epoch,
        "device": status.device,
        "pids": list(status.pids),
        "last_seen_s": status.last_seen_s,
        "steps": status.num_steps,
        "running": status.num_running,
        "waiting": status.num_waiting,
        "block_size": status.block_size,
        "blocks": {
            "total": status.num_blocks_total,
            "free": status.num_blocks_free,
            "cached": status.num_blocks_cached,
            "used": status.num_blocks_used,
        },
    }


def _generate_request(
    prompt: Prompt | Conversation, params: SamplingParams
) -> inference_pb2.GenerateRequest:
    request = inference_pb2.GenerateRequest(sampling=_sampling_options(params))
    if isinstance(prompt, str):
        request.text = prompt
    elif prompt and isinstance(prompt[0], dict):
        for message in prompt:
            assert isinstance(message, dict)
            request.chat.messages.add(role=message["role"], content=message["content"])
    else:
        request.tokens.ids.extend(int(token_id) for token_id in prompt)  # type: ignore[arg-type]
    return request


def _sampling_options(params: SamplingParams) -> inference_pb2.SamplingOptions:
    return inference_pb2.SamplingOptions(
        n=params.n,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        min_p=params.min_p,
        seed=params.seed,
        max_tokens=params.max_tokens,
        min_tokens=params.min_tokens,
        stop=params.stop,
        stop_token_ids=params.stop_token_ids,
        ignore_eos=params.ignore_eos,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        repetition_penalty=params.repetition_penalty,
        logit_bias=params.logit_bias,
        num_logprobs=params.logprobs,
    )


def _output(index: int, sample: _Sample, params: SamplingParams) -> CompletionOutput:
    name = sampling_pb2.FinishReason.Name(sample.finish_reason)
    return CompletionOutput(
        index=index,
        text="".join(sample.text),
        token_ids=sample.token_ids,
        finish_reason=name.removeprefix("FINISH_REASON_").lower(),
        logprobs=None if params.logprobs is None else sample.logprobs,
    )


def _logprob_rows(piece: inference_pb2.GenerateResponse) -> list[dict[int, Logprob]]:
    """One dict per token of the piece: alternatives, likeliest first, with the chosen token."""
    columns = piece.logprobs
    row, rank = np.frombuffer(columns.row, "<i4"), np.frombuffer(columns.rank, "<i4")
    logprob = np.frombuffer(columns.logprob, "<f4")
    ends = np.cumsum(np.frombuffer(columns.num_top, "<i4"))
    top_id = np.frombuffer(columns.top_token_id, "<i4")
    top_logprob = np.frombuffer(columns.top_logprob, "<f4")
    rows: list[dict[int, Logprob]] = []
    start = 0
    for i, end in enumerate(ends.tolist()):
        tops = enumerate(zip(top_id[start:end], top_logprob[start:end], strict=True), start=1)
        alternatives = {int(token): Logprob(float(value), place) for place, (token, value) in tops}
        chosen = int(piece.token_ids[int(row[i])])
        alternatives[chosen] = Logprob(float(logprob[i]), int(rank[i]))
        rows.append(alternatives)
        start = end
    return rows
