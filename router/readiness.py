"""Whether the whole path works: a worker is attached, alive, and has really generated a token.

A replica has proven itself when it has generated a token, or made a vector, since it attached.
Whenever one that has not is met, a token is asked for, as a client would (of a model that only
embeds, a vector); until somebody attached has answered, the router is not ready. Which replica
computes it is the scheduler's choice, so beside one that has proven itself a newcomer causes one
such canary and no more: requests will prove it.
"""

import asyncio
import logging
import random
import time

from gateway.embedding import vector_request
from gateway.errors import RequestError
from gateway.request import Options
from router.engine import Engine

CANARY_S = 60.0
"""How long one attempt may take: a worker's very first step compiles what it needs."""
RETRY_S = 1.0

_log = logging.getLogger(__name__)


class Readiness:
    """`run` sends the canary whenever it is due."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._asked: frozenset[tuple[str, int]] = frozenset()
        """Replicas, by id and epoch, that could have computed the last canary."""

    def is_ready(self) -> bool:
        """What /ready answers."""
        return self.why_not() is None

    def why_not(self) -> str | None:
        """Why it is not ready; None if it is."""
        try:
            served = self._engine.check_serving()
        except RequestError as error:
            return error.message
        fresh = self._engine.cell.fresh_replicas()
        if not fresh:
            return "no worker has given a sign of life lately"
        if not any(replica.is_proven for replica in fresh):
            if served.is_encoder:
                return "nothing has been embedded yet"
            return "no token has been generated yet"
        return None

    async def run(self) -> None:
        """Until cancelled."""
        engine = self._engine
        while True:
            await engine.on_change.wait()
            engine.on_change.clear()
            unproven = self._unproven_replicas()
            if not unproven:
                continue
            try:
                async with asyncio.timeout(CANARY_S):
                    await self._ask()
            except (RequestError, TimeoutError) as error:
                _log.warning("nothing could be computed (%s); trying again", error)
                await asyncio.sleep(RETRY_S)
                engine.on_change.set()
                continue
            _log.info("a first request has been computed")
            self._asked = unproven
            engine.on_change.clear()  # what was told before the token does not count it

    def _unproven_replicas(self) -> frozenset[tuple[str, int]]:
        """Those for which a canary is due; empty if none is."""
        fresh = self._engine.cell.fresh_replicas()
        unproven = frozenset(
            (replica.replica_id, replica.epoch) for replica in fresh if not replica.is_proven
        )
        somebody_is_proven = len(unproven) < len(fresh)
        return frozenset() if somebody_is_proven and unproven <= self._asked else unproven

    async def _ask(self) -> None:
        """For one token, or one vector of a model that only embeds."""
        model, served = self._engine.model, self._engine.check_serving()
        prompt = [min(model.eos_token_ids, default=0)]
        if served.is_encoder:
            request = vector_request(model, prompt, served.max_model_len, request_id="canary")
        else:
            request = model.build(
                prompt,
                Options(max_tokens=1, temperature=0.0, ignore_eos=True, seed=0),
                served.max_model_len,
                dice=random.Random(),
                request_id="canary",
                prompt_field="prompt",
            )
        with self._engine.generate([request], time.monotonic(), probe=True) as generation:
            async for _ in generation.batches():
                pass
