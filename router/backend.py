"""What both fronts, HTTP and gRPC, serve from."""

import asyncio
import os
import random
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

from starlette.requests import Request

from gateway.keys import ApiKeys
from gateway.model import Model
from router.background import BackgroundRuns
from router.body import BodyRoom, read_body
from router.engine import Engine
from router.metrics import Metrics
from router.permits import Permits
from router.readiness import Readiness
from router.response_store import ResponseStore

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


def _tokenizer_pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="tokenize")


@dataclass(frozen=True, slots=True)
class Backend:
    """The router without its fronts."""

    model: Model
    engine: Engine
    permits: Permits
    """One for each request in flight, from when its body is here."""
    uploads: Permits
    """One for each body that is being read."""
    readiness: Readiness
    metrics: Metrics
    responses: ResponseStore
    background: BackgroundRuns
    max_body_bytes: int
    keys: ApiKeys
    """Without any, everybody may ask."""
    seeds: random.Random
    version: str
    started_at: int
    """Seconds since 1970."""
    shared_port: int | None = None
    """Where other processes answer as well."""
    room: BodyRoom = field(default_factory=BodyRoom)
    _pool: ThreadPoolExecutor = field(default_factory=_tokenizer_pool)

    def dice_of_call(self) -> random.Random:
        """Gives the requests of one call their seeds. Taken when the call arrives: the threads that
        build its requests end in any order."""
        return random.Random(self.seeds.getrandbits(64))

    @asynccontextmanager
    async def body(self, request: Request, tenant: str) -> AsyncIterator[bytes]:
        """The whole body, which has its room until the context is left; not too many are read at
        once. Raises RequestError."""
        with self.room.place(self.max_body_bytes) as place:
            with self.uploads.permit(tenant):
                await read_body(request, place)
            yield place.whole()

    async def in_thread(
        self,
        function: Callable[_Parameters, _Result],
        *args: _Parameters.args,
        **kwargs: _Parameters.kwargs,
    ) -> _Result:
        """Runs what takes long (templates, tokenizing) off the event loop."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, lambda: function(*args, **kwargs))

    def close(self) -> None:
        """Ends the threads, and what runs in the background."""
        self.background.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
