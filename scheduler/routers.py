"""The connected routers: who they are, and how the core's news is shared out among them.

The core knows a router by a number that is never used twice. It has no news of a router that was
dropped but the ends of its sequences, and those find nobody here.
"""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass

import grpc
import numpy as np

from scheduler.core.decisions import Outputs
from scheduler.messages import LogprobTable, ScoreTable, VectorTable
from scheduler.stream import Stream
from scheduler.wire import frames

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Router:
    """One connection of a router."""

    number: int
    """Stands for it in the core."""
    router_id: str
    stream: Stream


class Routers:
    """The connected routers by number."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._connected: dict[int, Router] = {}
        self._leaving: set[int] = set()
        """Those that finish what they have and hang up for good."""
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._connected)

    def connect(self, router_id: str, stream: Stream) -> Router:
        """A router has said hello. An older stream of the same process is dead weight: it ends."""
        for older in self._connected.values():
            if older.router_id == router_id:
                older.stream.close(grpc.StatusCode.ABORTED, "this router has dialled again")
        router = Router(next(self._numbers), router_id, stream)
        self._connected[router.number] = router
        logger.info("router %r connected from %s", router_id, stream.peer)
        return router

    def leave(self, router: Router) -> None:
        """Its stream has ended."""
        del self._connected[router.number]
        self._leaving.discard(router.number)
        self._changed.set()
        logger.info("router %r left", router.router_id)

    def announce_leave(self, router: Router) -> None:
        """It will hang up for good once what it has is complete."""
        self._leaving.add(router.number)
        self._changed.set()

    async def wait_left(self, word_s: float) -> None:
        """Returns when no router is left that ends itself; each has so long to say that it does."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(word_s):
                await self._until(lambda: len(self._leaving) == len(self._connected))
        await self._until(lambda: not self._leaving)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    def broadcast(self, message: bytes) -> None:
        """The same message to every router."""
        for router in self._connected.values():
            router.stream.send(message)

    def deliver(
        self,
        outputs: Outputs,
        logprobs: LogprobTable | None = None,
        vectors: VectorTable | None = None,
        scores: ScoreTable | None = None,
    ) -> None:
        """One frame to each router that the outputs speak of."""
        if len(self._connected) == 1:
            (router,) = self._connected.values()
            self._deliver_all(router, outputs, logprobs, vectors, scores)
            return
        for router in self._connected.values():
            self._deliver_part(router, outputs, logprobs, vectors, scores)

    @staticmethod
    def _deliver_all(
        router: Router,
        outputs: Outputs,
        logprobs: LogprobTable | None,
        vectors: VectorTable | None,
        scores: ScoreTable | None,
    ) -> None:
        finished = [end for end in outputs.finished if end.router == router.number]
        if not (outputs.sequence_id.size or finished or outputs.score_run.size):
            return
        rows = logprobs.of(outputs.result_row) if logprobs is not None else None
        router.stream.send(
            frames.encode_frame(
                outputs.sequence_id,
                outputs.token_id,
                rows,
                finished,
                vectors,
                outputs.score_sequence_id,
                scores.of(outputs.score_run) if scores and outputs.score_run.size else None,
            )
        )

    @staticmethod
    def _deliver_part(
        router: Router,
        outputs: Outputs,
        logprobs: LogprobTable | None,
        vectors: VectorTable | None,
        scores: ScoreTable | None,
    ) -> None:
        scored = np.flatnonzero(outputs.score_router == router.number)
        mine = np.flatnonzero(outputs.router == router.number)
        part = Outputs(
            router=outputs.router[mine],
            sequence_id=outputs.sequence_id[mine],
            token_id=outputs.token_id[mine],
            result_row=outputs.result_row[mine],
            finished=outputs.finished,
            score_router=outputs.score_router[scored],
            score_sequence_id=outputs.score_sequence_id[scored],
            score_run=outputs.score_run[scored],
        )
        Routers._deliver_all(router, part, logprobs, vectors, scores)

    def dismiss(self, details: str) -> None:
        """Ends every router's stream once it has been sent all its news."""
        for router in self._connected.values():
            router.stream.close_after_outbox(grpc.StatusCode.UNAVAILABLE, details)
