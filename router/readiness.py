"""Whether the whole path works: a worker is attached, alive, and has really generated a token.

Each time a scheduler is met for the first time (its incarnation tells), one token is asked for, as
a client would. Until it has come, the router is not ready.
"""

import asyncio
import logging
import random
import time

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
        self._proven: int | None = None

    def is_ready(self) -> bool:
        """What /ready answers."""
        return self.why_not() is None

    def why_not(self) -> str | None:
        """Why it is not ready; None if it is."""
        try:
            self._engine.check_available()
        except RequestError as error:
            return error.message
        if not self._engine.is_fresh():
            return "no worker has given a sign of life lately"
        if self._proven != self._engine.incarnation:
            return "no token has been generated yet"
        return None

    async def run(self) -> None:
        """Until cancelled."""
        engine = self._engine
        while True:
            await engine.on_change.wait()
            engine.on_change.clear()
            if not engine.is_fresh() or self._proven == engine.incarnation:
                continue
            incarnation = engine.incarnation
            try:
                async with asyncio.timeout(CANARY_S):
                    await self._generate_one_token()
            except (RequestError, TimeoutError) as error:
                _log.warning("no token could be generated (%s); trying again", error)
                await asyncio.sleep(RETRY_S)
                engine.on_change.set()
                continue
            if incarnation == engine.incarnation:
                self._proven = incarnation
                _log.info("ready: a token has been generated")

    async def _generate_one_token(self) -> None:
        model = self._engine.model
        request = model.build(
            [min(model.eos_token_ids, default=0)],
            Options(max_tokens=1, temperature=0.0, ignore_eos=True, seed=0),
            self._engine.check_available(),
            dice=random.Random(),
            request_id="canary",
            prompt_field="prompt",
        )
        with self._engine.generate([request], time.monotonic(), counted=False) as generation:
            async for _ in generation.batches():
                pass
