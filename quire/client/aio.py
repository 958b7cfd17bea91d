"""`AsyncClient`: Quire over gRPC, on the caller's event loop.

    async with AsyncClient("127.0.0.1:50050") as client:
        output = await client.generate("The capital of France is")
        async with client.stream([{"role": "user", "content": "Tell me a story."}]) as stream:
            async for chunk in stream:
                print(chunk.text, end="")

Leaving the stream's block, or `cancel`, ends the request: the server computes nothing more for it.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from types import TracebackType
from typing import Self, TypeVar

import grpc
import numpy as np
import numpy.typing as npt

from protos.quire.v1 import inference_pb2, inference_pb2_grpc
from quire.client.attempts import MAX_RETRIES, Acquaintance, Attempts
from quire.client.pieces import chunk_of
from quire.client.tls import Tls
from quire.client.wire import (
    CHANNEL_OPTIONS,
    Terms,
    embed_request,
    generate_request,
    vectors_of,
)
from quire.errors import Cancelled
from quire.outputs import Chunk, RequestOutput, ServedModel, output_of
from quire.prompts import Chat, Conversation, Prompt
from quire.sampling import SamplingParams

_Answer = TypeVar("_Answer")
_Call = grpc.aio.UnaryStreamCall[inference_pb2.GenerateRequest, inference_pb2.GenerateResponse]


class AsyncClient:
    """Speaks to a router; belongs to the event loop it is made on.

    A call that finds the router busy or gone is tried again, as long as nothing of its answer has
    come; one that finds nobody where nobody has ever answered fails within two seconds. All methods
    raise RequestFailed, in the kinds that `quire.errors` lists, and ValueError for what could never
    be sent.
    """

    def __init__(
        self,
        target: str = "127.0.0.1:50050",
        *,
        api_key: str | None = None,
        timeout: float | None = None,
        max_retries: int = MAX_RETRIES,
        wait_for_ready: bool = False,
        tls: Tls | None = None,
    ) -> None:
        """`target` is "host:port" or "unix:/path", and dialled when first needed.

        `timeout` is in seconds, of each call from its start to its end, attempts together; None:
        no limit. `max_retries` comes on top of the first attempt; they are 0.05 to 2 s apart.
        `wait_for_ready`: a router that is not there, or not ready, is waited for as long as
        `timeout` allows, however many attempts that takes. `tls`: how to know a router that has a
        certificate, see `Tls`. Raises ConfigurationError for files of it that cannot be read.
        """
        if max_retries < 0:
            raise ValueError(f"max_retries is {max_retries}; it must be at least 0")
        self._channel = (
            grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)
            if tls is None
            else grpc.aio.secure_channel(target, tls.credentials(), options=CHANNEL_OPTIONS)
        )
        self._stub = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._metadata = (("authorization", f"Bearer {api_key}"),) if api_key else ()
        self._timeout_s = timeout
        self._max_retries = max_retries
        self._acquaintance = Acquaintance(target, waits=wait_for_ready)

    async def close(self) -> None:
        """Ends what is in flight."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def generate(
        self,
        prompt: Prompt | Conversation | Chat,
        sampling_params: SamplingParams | None = None,
        *,
        timeout: float | None = None,
        model: str = "",
        priority: int = 0,
        cache_salt: str = "",
    ) -> RequestOutput:
        """Continues a text or token ids, or answers a conversation; all samples, when all ended.

        `timeout` is this call's own; `model` may be left out where one is served; lower `priority`
        is sooner; cached prefixes are shared among requests of the same `cache_salt`. Cancelling
        ends the request.
        """
        params = sampling_params or SamplingParams()
        terms = Terms(model=model, priority=priority, cache_salt=cache_salt)
        request = generate_request(prompt, params, terms, whole=True)
        chunks = [chunk async for chunk in self._stream(request, params, timeout)]
        return output_of(prompt, chunks, params.n)

    def stream(
        self,
        prompt: Prompt | Conversation | Chat,
        sampling_params: SamplingParams | None = None,
        *,
        timeout: float | None = None,
        model: str = "",
        priority: int = 0,
        cache_salt: str = "",
    ) -> "AsyncStream":
        """The same, in chunks as tokens come. It is sent when the first chunk is asked for."""
        params = sampling_params or SamplingParams()
        terms = Terms(model=model, priority=priority, cache_salt=cache_salt)
        request = generate_request(prompt, params, terms, whole=False)
        return self._stream(request, params, timeout)

    async def embed(
        self,
        inputs: Sequence[Prompt],
        *,
        dimensions: int | None = None,
        timeout: float | None = None,
        model: str = "",
        priority: int = 0,
        cache_salt: str = "",
    ) -> npt.NDArray[np.float32]:
        """The vectors of texts, or of lists of token ids: `[inputs, dimensions]`.

        `dimensions` keeps the first numbers of each, of models that were trained for it.
        """
        terms = Terms(model=model, priority=priority, cache_salt=cache_salt)
        request = embed_request(inputs, dimensions, terms)
        return vectors_of(await self._ask(self._stub.Embed, request, timeout))

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a raw prompt, with what the model puts around one if that is wanted."""
        request = inference_pb2.TokenizeRequest(text=text, add_special_tokens=add_special_tokens)
        return list((await self._ask(self._stub.Tokenize, request)).token_ids)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """Their text, special tokens included."""
        request = inference_pb2.DetokenizeRequest(token_ids=token_ids)
        return str((await self._ask(self._stub.Detokenize, request)).text)

    async def models(self) -> list[ServedModel]:
        """What may be asked for."""
        answer = await self._ask(self._stub.ListModels, inference_pb2.ListModelsRequest())
        return [ServedModel(model.name, model.max_model_len or None) for model in answer.models]

    async def _ask(
        self,
        rpc: Callable[..., Awaitable[_Answer]],
        request: object,
        timeout_s: float | None = None,
    ) -> _Answer:
        attempts = self._attempts(timeout_s)
        while True:
            async with attempts.one() as left_s:
                return await rpc(request, metadata=self._metadata, timeout=left_s)

    def _attempts(self, timeout_s: float | None) -> Attempts:
        """Of a call that begins now."""
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        return Attempts(limit_s, self._max_retries, self._acquaintance)

    def _stream(
        self,
        request: inference_pb2.GenerateRequest,
        params: SamplingParams,
        timeout_s: float | None,
    ) -> "AsyncStream":
        def start(left_s: float | None) -> _Call:
            call: _Call = self._stub.Generate(request, metadata=self._metadata, timeout=left_s)
            return call

        return AsyncStream(start, lambda: self._attempts(timeout_s), params)


class AsyncStream:
    """Chunks of one request. An `async for` over it, within an `async with` or not."""

    def __init__(
        self,
        start: Callable[[float | None], _Call],
        attempts: Callable[[], Attempts],
        params: SamplingParams,
    ) -> None:
        """`start` makes a call that may take so many seconds."""
        self._start = start
        self._make_attempts = attempts
        self._params = params
        self._call: _Call | None = None
        self._cancelled = False
        self._reading = False
        self._chunks = self._read()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        """Raises RequestFailed."""
        self._reading = True
        try:
            return await anext(self._chunks)
        except Cancelled:
            if self._cancelled:
                raise StopAsyncIteration from None
            raise
        finally:
            self._reading = False

    async def cancel(self) -> None:
        """Ends the request, and the stream for whoever reads it; harmless when it has ended."""
        self._cancelled = True
        if self._call is not None:
            self._call.cancel()
        if not self._reading:
            await self._chunks.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.cancel()

    async def _read(self) -> AsyncGenerator[Chunk, None]:
        attempts = self._make_attempts()
        while not self._cancelled:
            async with attempts.one() as left_s:
                call = self._call = self._start(left_s)
                try:
                    async for piece in call:
                        attempts.final = True
                        yield chunk_of(piece, self._params)
                    return
                finally:
                    call.cancel()
