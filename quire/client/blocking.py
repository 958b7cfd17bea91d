"""`Client`: what `AsyncClient` does, for callers without an event loop.

    with Client("127.0.0.1:50050") as client:
        print(client.generate("The capital of France is").outputs[0].text)
        with client.stream([{"role": "user", "content": "Tell me a story."}]) as stream:
            for chunk in stream:
                print(chunk.text, end="")

It is that client, on an event loop that runs on a thread of its own; several threads may use it.
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from quire.background import BackgroundLoop
from quire.client.aio import AsyncClient, AsyncStream
from quire.client.attempts import MAX_RETRIES
from quire.client.tls import Tls
from quire.outputs import Chunk, RequestOutput, ServedModel
from quire.prompts import Chat, Conversation, Prompt
from quire.sampling import SamplingParams


class Client:
    """Speaks to a router. Close it, or use it as a context manager.

    See `AsyncClient`, whose methods these are. Ctrl-C in one of them ends its request.
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
        """See `AsyncClient`."""
        self._loop = BackgroundLoop("quire client")

        async def dial() -> AsyncClient:
            return AsyncClient(
                target,
                api_key=api_key,
                timeout=timeout,
                max_retries=max_retries,
                wait_for_ready=wait_for_ready,
                tls=tls,
            )

        try:
            self._client = self._loop.run(dial())
        except BaseException:
            self._loop.close()
            raise

    def close(self) -> None:
        """Ends what is in flight. May be called again."""
        if not self._loop.closed:
            self._loop.run(self._client.close())
            self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def generate(
        self,
        prompt: Prompt | Conversation | Chat,
        sampling_params: SamplingParams | None = None,
        *,
        timeout: float | None = None,
        model: str = "",
        priority: int = 0,
        cache_salt: str = "",
    ) -> RequestOutput:
        """See `AsyncClient.generate`."""
        return self._loop.run(
            self._client.generate(
                prompt,
                sampling_params,
                timeout=timeout,
                model=model,
                priority=priority,
                cache_salt=cache_salt,
            )
        )

    def stream(
        self,
        prompt: Prompt | Conversation | Chat,
        sampling_params: SamplingParams | None = None,
        *,
        timeout: float | None = None,
        model: str = "",
        priority: int = 0,
        cache_salt: str = "",
    ) -> "Stream":
        """See `AsyncClient.stream`."""
        stream = self._client.stream(
            prompt,
            sampling_params,
            timeout=timeout,
            model=model,
            priority=priority,
            cache_salt=cache_salt,
        )
        return Stream(stream, self._loop)

    def embed(
        self,
        inputs: Sequence[Prompt],
        *,
        dimensions: int | None = None,
        timeout: float | None = None,
        model: str = "",
        priority: int = 0,
        cache_salt: str = "",
    ) -> npt.NDArray[np.float32]:
        """See `AsyncClient.embed`."""
        return self._loop.run(
            self._client.embed(
                inputs,
                dimensions=dimensions,
                timeout=timeout,
                model=model,
                priority=priority,
                cache_salt=cache_salt,
            )
        )

    def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """See `AsyncClient.tokenize`."""
        return self._loop.run(self._client.tokenize(text, add_special_tokens=add_special_tokens))

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """See `AsyncClient.detokenize`."""
        return self._loop.run(self._client.detokenize(token_ids))

    def models(self) -> list[ServedModel]:
        """See `AsyncClient.models`."""
        return self._loop.run(self._client.models())


class Stream:
    """Chunks of one request. A `for` over it, within a `with` or not."""

    def __init__(self, stream: AsyncStream, loop: BackgroundLoop) -> None:
        self._stream = stream
        self._loop = loop

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Chunk:
        """Raises RequestFailed."""
        chunk = self._loop.run(self._next())
        if chunk is None:
            raise StopIteration
        return chunk

    def cancel(self) -> None:
        """Ends the request; harmless when it has ended."""
        self._loop.run(self._stream.cancel())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cancel()

    async def _next(self) -> Chunk | None:
        """StopAsyncIteration cannot leave a coroutine."""
        return await anext(self._stream, None)
