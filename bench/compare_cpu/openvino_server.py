"""OpenAI's completions around OpenVINO GenAI's continuous batching, which has no server on PyPI.

    this process: HTTP, text ──requests, who gave up──▶ its child: the pipeline
                             ◀──tokens of each step────

The pipeline holds Python's lock while it steps: in one process, answers would wait for it, and it
for them. Runs in that package's environment, with starlette, uvicorn and tokenizers, and imports
nothing of ours. Token ids in, text out, greedy, every answer to its full length.

    python openvino_server.py --model DIR --port 8000 --threads 2 --property KV_CACHE_PRECISION=f32
"""

import argparse
import asyncio
import itertools
import json
import multiprocessing
import threading
from collections.abc import AsyncIterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

CACHE_GIB = 2

Tokens = asyncio.Queue[list[int] | None]
"""Of one request, as steps brought them; None: it has ended."""


def step_forever(
    link: Connection, model: Path, threads: int, properties: Mapping[str, str]
) -> None:
    """The child: admits what was asked, steps, sends what came, until nobody is there."""
    import numpy as np
    import openvino
    import openvino_genai

    scheduling = openvino_genai.SchedulerConfig()
    scheduling.cache_size = CACHE_GIB
    scheduling.enable_prefix_caching = True
    pipeline = openvino_genai.ContinuousBatchingPipeline(
        str(model), scheduling, "CPU", {"INFERENCE_NUM_THREADS": threads, **properties}
    )
    handles: dict[int, Any] = {}
    while True:
        while not handles or link.poll():
            try:
                asked = json.loads(link.recv_bytes())
            except EOFError:
                return
            if "gives_up" in asked:
                if (handle := handles.pop(asked["gives_up"], None)) is not None:
                    handle.cancel()
                continue
            config = openvino_genai.GenerationConfig()
            config.max_new_tokens, config.ignore_eos = asked["max_tokens"], True
            ids = openvino.Tensor(np.asarray([asked["token_ids"]], dtype=np.int64))
            handles[asked["id"]] = pipeline.add_request(asked["id"], ids, config)
        pipeline.step()
        came = []
        for number, handle in list(handles.items()):
            tokens: list[int] = []
            while handle.can_read():
                for output in handle.read().values():
                    tokens += output.generated_ids
            ended = handle.get_status() != openvino_genai.GenerationStatus.RUNNING
            if tokens or ended:
                came.append((number, tokens, ended))
            if ended:
                del handles[number]
        link.send_bytes(json.dumps(came).encode())


class Generations:
    """Requests in flight, and the child that computes them."""

    def __init__(self, link: Connection) -> None:
        self._link = link
        self._ids = itertools.count()
        self._tokens: dict[int, Tokens] = {}

    def receive(self, loop: asyncio.AbstractEventLoop) -> None:
        """On a thread of its own: hands on what comes, until the child has ended."""
        try:
            while True:
                loop.call_soon_threadsafe(self._hand_on, json.loads(self._link.recv_bytes()))
        except EOFError:
            return

    def _hand_on(self, came: list[tuple[int, list[int], bool]]) -> None:
        for number, tokens, ended in came:
            if (queue := self._tokens.get(number)) is not None:
                queue.put_nowait(tokens)
                if ended:
                    queue.put_nowait(None)

    async def generate(self, token_ids: list[int], max_tokens: int) -> AsyncIterator[int]:
        """Its tokens; whoever stops asking for them ends it."""
        number, queue = next(self._ids), Tokens()
        self._tokens[number] = queue
        self._send(id=number, token_ids=token_ids, max_tokens=max_tokens)
        has_ended = False
        try:
            while (tokens := await queue.get()) is not None:
                for token in tokens:
                    yield token
            has_ended = True
        finally:
            del self._tokens[number]
            if not has_ended:
                self._send(gives_up=number)

    def _send(self, **message: Any) -> None:
        self._link.send_bytes(json.dumps(message).encode())


class Completions:
    """The two routes that a load generator needs."""

    def __init__(self, model: Path, generations: Generations) -> None:
        self._name = str(model)
        self._generations = generations
        self._tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))

    async def models(self, request: Request) -> Response:
        """Its name."""
        return JSONResponse({"object": "list", "data": [{"id": self._name, "object": "model"}]})

    async def completions(self, request: Request) -> Response:
        """Streamed or whole."""
        asked = await request.json()
        prompt, max_tokens = asked["prompt"], asked["max_tokens"]
        tokens = self._generations.generate(prompt, max_tokens)
        if asked.get("stream"):
            events = self._events(tokens, len(prompt))
            return StreamingResponse(events, media_type="text/event-stream")
        answer = [token async for token in tokens]
        choice = {"index": 0, "text": self._tokenizer.decode(answer), "finish_reason": "length"}
        return JSONResponse({"choices": [choice], "usage": _usage(len(prompt), len(answer))})

    async def _events(self, tokens: AsyncIterator[int], prompt_len: int) -> AsyncIterator[str]:
        decoder, count = DecodeStream(skip_special_tokens=True), 0
        async for token in tokens:
            count += 1
            text = decoder.step(self._tokenizer, token) or ""
            yield _event(choices=[{"index": 0, "text": text, "finish_reason": None}])
        yield _event(choices=[{"index": 0, "text": "", "finish_reason": "length"}])
        yield _event(choices=[], usage=_usage(prompt_len, count))
        yield "data: [DONE]\n\n"


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def _event(**content: Any) -> str:
    return f"data: {json.dumps(content)}\n\n"


async def serve(link: Connection, model: Path, port: int) -> None:
    """Until it is told to end, or the child has ended."""
    generations = Generations(link)
    served = Completions(model, generations)
    app = Starlette(
        routes=[
            Route("/v1/models", served.models),
            Route("/v1/completions", served.completions, methods=["POST"]),
        ]
    )
    config = uvicorn.Config(
        app, host="127.0.0.1", port=port, log_level="warning", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    loop = asyncio.get_running_loop()

    def receive() -> None:
        generations.receive(loop)
        server.should_exit = True

    threading.Thread(target=receive, name="receive", daemon=True).start()
    await server.serve()


def main() -> None:
    """Starts the child, and serves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="what optimum-cli exported")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--property", action="append", default=[], metavar="NAME=VALUE")
    given = parser.parse_args()
    properties = dict(text.split("=", 1) for text in given.property)
    context = multiprocessing.get_context("spawn")
    ours, its = context.Pipe()
    arguments = (its, given.model, given.threads, properties)
    context.Process(target=step_forever, args=arguments, daemon=True).start()
    its.close()  # or its end would not show
    asyncio.run(serve(ours, given.model, given.port))


if __name__ == "__main__":
    main()
