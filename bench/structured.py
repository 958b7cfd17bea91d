"""What structured outputs cost: half of the requests held to a grammar, against none of them.

Whole stack, HTTP, the same prompts and weights; every answer has the same number of tokens, since
the grammars have no end within it. The two loads take turns.

    python -m bench.structured --threads 2
"""

import asyncio
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.mixed_requests import MixedRequest, uniform_requests
from bench.recording import Target, report
from quire.background import BackgroundStack
from quire.http import Endpoint
from quire.models import resolve
from quire.options import StackOptions

_PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "mail": {"type": "string", "pattern": "^[a-z]{1,10}@[a-z]{1,10}[.]com$"},
        "role": {"enum": ["reader", "writer", "owner"]},
        "marks": {"type": "array", "items": {"type": "number"}, "maxItems": 4},
    },
    "required": ["name", "age", "mail", "role", "marks"],
    "additionalProperties": False,
}
_GRAMMARS: tuple[dict[str, Any], ...] = (
    {"guided_json": {"type": "array", "items": _PERSON, "minItems": 1000}},
    {"guided_regex": "([A-Z][a-z]{2,9}( [a-z]{2,9}){2,8}[.] ){1000}"},
    {"guided_json": {"type": "array", "items": {"type": "object"}, "minItems": 1000}},
    {
        "guided_grammar": 'start: (sum " = " NUMBER "; "){1000}\nsum: NUMBER (" + " NUMBER)*\n'
        "NUMBER: /[0-9]{1,6}/"
    },
)


class _Load:
    """Requests through a stack, so many at once."""

    def __init__(self, background: BackgroundStack, requests: list[MixedRequest]) -> None:
        self._background = background
        self._requests = requests

    def tokens_per_s(self, structured_every: int) -> float:
        """Output tokens/s with each so many-th request structured; 0: none."""
        started = time.perf_counter()
        self._background.run(self._send(structured_every))
        tokens = sum(request.output_len for request in self._requests)
        return tokens / (time.perf_counter() - started)

    async def _send(self, structured_every: int) -> None:
        stack = self._background.stack
        endpoint = Endpoint(stack.url)

        async def one(number: int, request: MixedRequest) -> None:
            payload = {
                "model": stack.name,
                "prompt": request.token_ids,
                "max_tokens": request.output_len,
                "temperature": 1,
                "seed": number,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            if structured_every and number % structured_every == 0:
                payload |= _GRAMMARS[number // structured_every % len(_GRAMMARS)]
            else:
                payload["ignore_eos"] = True
            async for event in endpoint.events("/v1/completions", payload):
                last = event
            assert last["usage"]["completion_tokens"] == request.output_len, last

        await asyncio.gather(*(one(*numbered) for numbered in enumerate(self._requests)))


def run(
    threads: int, concurrency: int, output_len: int, rounds: int
) -> tuple[dict[str, Any], list[Target]]:
    """All figures, each the median of `rounds`."""
    model = resolve("smollm2", lambda message: None)
    background = BackgroundStack(model, StackOptions(threads=threads, max_model_len=1024))
    requests = uniform_requests(concurrency, input_len=32, output_len=output_len, seed=3)
    load = _Load(background, requests)
    loads = {"none structured": 0, "half structured": 2, "all structured": 1}
    speeds: dict[str, list[float]] = {name: [] for name in loads}
    try:
        load.tokens_per_s(2)  # grammars are compiled, prompts cached
        for _ in range(rounds):
            for name, every in loads.items():
                speeds[name].append(load.tokens_per_s(every))
    finally:
        background.close()
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    # Rounds side by side: what else the machine does changes slowly.
    ratios = [
        half / none
        for half, none in zip(speeds["half structured"], speeds["none structured"], strict=True)
    ]
    figures = {
        f"output tokens/s, {concurrency} requests at once, {output_len} tokens each": medians,
    }
    share = Target("half structured over none", statistics.median(ratios), 0.9, at_least=True)
    return figures, [share]


def main(
    threads: Annotated[int, typer.Option(min=1, help="Compute threads.")] = 2,
    concurrency: Annotated[int, typer.Option(min=2, help="Requests at once.")] = 16,
    output_len: Annotated[int, typer.Option(min=1, help="Tokens of each answer.")] = 128,
    rounds: Annotated[int, typer.Option(min=1, help="Of every load.")] = 3,
    save: Annotated[Path | None, typer.Option(help="Keep the figures as JSON here.")] = None,
) -> None:
    """Prints them."""
    figures, targets = run(threads, concurrency, output_len, rounds)
    report(figures, targets, save)


if __name__ == "__main__":
    typer.run(main)
