"""`LLM`: Quire from Python, without a server to think of.

    from quire import LLM, SamplingParams

    with LLM("smollm2") as llm:
        [output] = llm.generate("The capital of France is", SamplingParams(temperature=0))
        print(output.outputs[0].text)

It runs the same scheduler, workers and router as `quire serve`, over unix sockets in a private
directory, and speaks to the router as any gRPC client would: there is no second code path.
"""

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from quire.background import BackgroundStack
from quire.client import AsyncClient
from quire.client.state import fetch_state
from quire.models import resolve
from quire.options import StackOptions
from quire.outputs import RequestOutput
from quire.progress import announce, progress
from quire.prompts import Chat, Conversation, Prompt, is_conversation, read_prompt, read_raw_prompt
from quire.sampling import SamplingParams

MAX_IN_FLIGHT = 256
"""Requests with the router at once; more only wait there."""
EMBEDDED_TOGETHER = 64
"""Prompts of one call for vectors."""

Prompts = Prompt | Sequence[Prompt]
Params = SamplingParams | Sequence[SamplingParams] | None


class LLM:
    """A model that answers. Close it, use it as a context manager, or leave it to exit."""

    def __init__(self, model: str, **options: Any) -> None:
        """Starts the stack; returns when it has generated a token.

        `model` is what `quire serve` takes (alias, directory, GGUF file or hub id), `options` are
        its flags in Python's spelling (`max_model_len=2048`, `replicas=2`). With `seed=N`, prompts
        whose parameters name no seed get one from a generator seeded with N, in the order in which
        they are given; otherwise it is random. Raises ModelNotFound, ConfigurationError,
        StackFailed; TypeError for an unknown option.
        """
        unknown = sorted(set(options) - set(StackOptions.names()))
        if unknown:
            known = ", ".join(StackOptions.names())
            raise TypeError(f"unknown option {unknown[0]!r}; options are: {known}")
        stack_options = StackOptions(**options)
        self._dice = random.Random(stack_options.seed)
        self._stack = BackgroundStack(
            resolve(model, announce, weights=stack_options.needs_weights), stack_options
        )
        self._client = self._stack.run(self._dial())

    def generate(
        self, prompts: Prompts, sampling_params: Params = None, *, use_tqdm: bool = True
    ) -> list[RequestOutput]:
        """Continues prompts; the answers are in the order of the prompts.

        `prompts` is a text, a list of token ids, a dict with one of them as `prompt` or
        `prompt_token_ids`, or a list of these; `sampling_params` is for all of them, or one for
        each. `use_tqdm` shows a progress bar on a terminal. Raises RequestFailed if any of them is
        refused (the others are then aborted); ValueError for what is no prompt.
        """
        batch = [read_prompt(each, name) for name, each in _named(prompts)]
        return self._stack.run(self._answer_all(batch, sampling_params, use_tqdm))

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: Params = None,
        *,
        use_tqdm: bool = True,
        **chat: Any,
    ) -> list[RequestOutput]:
        """Answers one conversation, or each of a list of them, with the model's chat template.

        A conversation is a list of {"role": ..., "content": ...}. `chat` are further fields of
        `quire.Chat`, for all of them: `tools`, `tool_choice`, `chat_template_kwargs` and others.
        Raises RequestFailed; ValueError and TypeError for what could never be sent.
        """
        batch: Sequence[Any] = [messages] if is_conversation(messages) else messages
        chats = [Chat(each, **chat) for each in batch]
        return self._stack.run(self._answer_all(chats, sampling_params, use_tqdm))

    def embed(self, prompts: Prompts, *, dimensions: int | None = None) -> npt.NDArray[np.float32]:
        """The vectors of prompts, `[prompts, dimensions]`, in the order of the prompts.

        `prompts` are as for `generate`. `dimensions` keeps the first numbers of each vector, of
        models that were trained for it. Raises RequestFailed.
        """
        batch = [read_raw_prompt(each, name) for name, each in _named(prompts)]
        return self._stack.run(self._embed_all(batch, dimensions))

    def get_tokenizer(self) -> "Tokenizer":
        """The model's tokenizer, as the router has it."""
        return Tokenizer(self._client, self._stack)

    def state(self) -> dict[str, Any]:
        """The scheduler's totals, as `quire state --json` prints them. Raises RequestFailed."""
        return self._stack.run(fetch_state(self._stack.stack.scheduler))

    def close(self) -> None:
        """Ends the stack. May be called again."""
        self._stack.close()

    def __enter__(self) -> "LLM":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def _dial(self) -> AsyncClient:
        return AsyncClient(self._stack.stack.grpc)

    async def _embed_all(
        self, prompts: Sequence[Any], dimensions: int | None
    ) -> npt.NDArray[np.float32]:
        starts = range(0, max(1, len(prompts)), EMBEDDED_TOGETHER)
        parts = [prompts[start : start + EMBEDDED_TOGETHER] for start in starts]
        gate = asyncio.Semaphore(-(-MAX_IN_FLIGHT // EMBEDDED_TOGETHER))

        async def embed(part: Sequence[Any]) -> npt.NDArray[np.float32]:
            async with gate:
                return await self._client.embed(part, dimensions=dimensions)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(embed(part)) for part in parts]
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None  # the first; it ended the others
        return np.concatenate([task.result() for task in tasks])

    async def _answer_all(
        self, prompts: Sequence[Any], params: Params, show: bool
    ) -> list[RequestOutput]:
        # Here and not at the router, where the prompts of a batch arrive in any order.
        each = [_with_seed(params, self._dice) for params in _one_per_prompt(params, len(prompts))]
        gate = asyncio.Semaphore(MAX_IN_FLIGHT)
        try:
            with progress(len(prompts), visible=show) as advance:
                async with asyncio.TaskGroup() as group:
                    tasks = [
                        group.create_task(self._answer(prompt, param, gate, advance))
                        for prompt, param in zip(prompts, each, strict=True)
                    ]
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None  # the first; it ended the others
        return [task.result() for task in tasks]

    async def _answer(
        self,
        prompt: Any,
        params: SamplingParams,
        gate: asyncio.Semaphore,
        advance: Callable[[int], None],
    ) -> RequestOutput:
        async with gate:
            output = await self._client.generate(prompt, params)
        advance(sum(len(sample.token_ids) for sample in output.outputs))
        return output


class Tokenizer:
    """Text to token ids and back, by the router's tokenizer: of what `transformers` has, these two
    methods with their names and defaults."""

    def __init__(self, client: AsyncClient, stack: BackgroundStack) -> None:
        self._client = client
        self._stack = stack

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids, with what the model puts around a prompt if that is wanted."""
        asked = self._client.tokenize(text, add_special_tokens=add_special_tokens)
        return self._stack.run(asked)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Their text, special tokens included."""
        return self._stack.run(self._client.detokenize(token_ids))


def _one_per_prompt(params: Params, count: int) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if len(params) != count:
        raise ValueError(
            f"sampling_params has {len(params)} entries; it must have one, or one for each of the "
            f"{count} prompts"
        )
    return list(params)


def _with_seed(params: SamplingParams, dice: random.Random) -> SamplingParams:
    return params if params.seed is not None else replace(params, seed=dice.getrandbits(64))


def _named(prompts: Any) -> list[tuple[str, Any]]:
    """Each prompt of one or of several, and how an error calls it. Raises ValueError."""
    if isinstance(prompts, str | Mapping):
        return [("prompts", prompts)]
    if not isinstance(prompts, Iterable):
        raise ValueError(f"prompts is {prompts!r:.60}; it must be a prompt or a list of them")
    several = list(prompts)
    if several and isinstance(several[0], Integral):
        return [("prompts", several)]
    return [(f"prompts[{number}]", each) for number, each in enumerate(several)]
