"""One client of a stream: it writes down whatever it is sent, and when."""

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import aiohttp

from tests.chaos.traffic import Asked, Json

_TIMEOUT = aiohttp.ClientTimeout(total=600, sock_connect=30)


@dataclass
class Choice:
    """What came of one sample."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)
    finish_reasons: list[str] = field(default_factory=list)
    prompt_tokens: list[int] = field(default_factory=list)
    token_times: list[float] = field(default_factory=list)
    """When each event that had tokens came."""


@dataclass
class History:
    """What became of one request."""

    asked: Asked
    began_at: float = field(default_factory=time.monotonic)
    ended_at: float | None = None
    status: int | None = None
    choices: dict[int, Choice] = field(default_factory=lambda: defaultdict(Choice))
    usages: list[Json] = field(default_factory=list)
    num_done: int = 0
    """`[DONE]`s."""
    errors: list[str] = field(default_factory=list)
    """Error events, error answers and broken connections."""

    @property
    def num_tokens(self) -> int:
        """Received so far, of all samples."""
        return sum(len(choice.tokens) for choice in self.choices.values())

    def longest_pause_s(self, since: float, until: float) -> float:
        """Between two events of one sample, or its first and the beginning, where any of it lies
        in these times; what lies beyond them does not count."""
        longest = 0.0
        for choice in self.choices.values():
            times = [self.began_at, *choice.token_times]
            for before, after in pairwise(times):
                if after >= since and before <= until:
                    longest = max(longest, min(after, until) - before)
        return longest

    def take(self, event: Json) -> None:
        """Writes one event down."""
        if "error" in event:
            self.errors.append(json.dumps(event["error"]))
            return
        if event.get("usage"):
            self.usages.append(event["usage"])
        for part in event["choices"]:
            choice = self.choices[part["index"]]
            choice.text += part.get("text") or part.get("delta", {}).get("content") or ""
            told = event.get("prompt_token_ids") or part.get("prompt_token_ids")
            choice.prompt_tokens += told or []
            tokens = part.get("token_ids") or []
            if tokens:
                choice.tokens += tokens
                choice.token_times.append(time.monotonic())
            choice.logprobs += _logprobs(part.get("logprobs"))
            if part["finish_reason"]:
                choice.finish_reasons.append(part["finish_reason"])


def _logprobs(said: Json | None) -> list[float | None]:
    if said is None:
        return []
    if "content" in said:
        return [entry["logprob"] for entry in said["content"]]
    told: list[float | None] = said["token_logprobs"]
    return told


class Load:
    """Requests that all began together."""

    def __init__(self, url: str, asked: Sequence[Asked]) -> None:
        """Begins them; the event loop has to run."""
        self.histories = [History(one) for one in asked]
        self._url = url
        self._task = asyncio.create_task(self._run())

    @property
    def is_over(self) -> bool:
        """Every one has ended."""
        return self._task.done()

    @property
    def _errors(self) -> list[str]:
        """The first few."""
        return [error for history in self.histories for error in history.errors][:3]

    async def begun(self) -> None:
        """Returns when each of them has had a token."""
        while True:
            if all(history.num_tokens for history in self.histories):
                return
            assert not self._task.done(), f"some never began: {self._errors}"
            await asyncio.sleep(0.005)

    async def until(self, share: float, reference: Sequence[History]) -> None:
        """Returns when this share of all the tokens has come that the reference has."""
        goal = share * sum(history.num_tokens for history in reference)
        while sum(history.num_tokens for history in self.histories) < goal:
            assert not self._task.done(), f"it was over before: {self._errors}"
            await asyncio.sleep(0.005)

    async def ended(self) -> list[History]:
        """When every one has ended, however."""
        await self._task
        return self.histories

    async def leave(self) -> None:
        """Every client hangs up."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT) as session:
            await asyncio.gather(*(self._follow(session, one) for one in self.histories))

    async def _follow(self, session: aiohttp.ClientSession, history: History) -> None:
        try:
            await self._read(session, history)
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            history.errors.append(repr(error))
        history.ended_at = time.monotonic()

    async def _read(self, session: aiohttp.ClientSession, history: History) -> None:
        asked = history.asked
        who = {"X-Tenant": asked.tenant} if asked.tenant else {}
        where = self._url + asked.path
        async with session.post(where, json=asked.body, headers=who) as response:
            history.status = response.status
            if response.status != 200:
                history.errors.append(await response.text())
                return
            async for line in response.content:
                if line.startswith(b"data: [DONE]"):
                    history.num_done += 1
                elif line.startswith(b"data: "):
                    history.take(json.loads(line[len("data: ") :]))


async def told(url: str, asked: Sequence[Asked]) -> list[History]:
    """All of them, to their ends."""
    return await Load(url, asked).ended()
