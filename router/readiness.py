"""Whether the whole path works: a worker is attached, alive, and really computes.

A replica has proven itself when it has generated a token, or made a vector, since it attached.
Whenever one that has not is met, a token is asked for, as a client would (of a model that only
embeds, a vector); until somebody attached has answered, the router is not ready. Which replica
computes it is the scheduler's choice, so beside one that has proven itself a newcomer causes one
such probe and no more: requests will prove it.

What worked once may have come to a stop without anybody's stream breaking. While steps go on that
shows in them: each has a deadline of its own, however long a prompt takes. When nothing has been
computed for `PROBE_S`, a token is asked for again; and when nothing has for `STALE_S`, though no
step is at it, the path does not work.
"""

import asyncio
import logging
import random
import time
from typing import Any

from gateway.embedding import vector_request
from gateway.errors import RequestError
from gateway.options import Options
from router.engine import Engine
from router.messages import ReplicaStatus

CANARY_S = 60.0
"""How long one attempt may take: a worker's very first step compiles what it needs."""
RETRY_S = 1.0
PROBE_S = 15.0
"""After so long without a step or a token, one is asked for."""
STALE_S = 30.0
"""After so long without either, and no step at it, nothing is computed any more."""

_log = logging.getLogger(__name__)


class Readiness:
    """`run` sends the probe whenever it is due."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._asked: frozenset[tuple[str, int]] = frozenset()
        """Replicas, by id and epoch, that could have computed the last probe."""
        self._asked_at: float | None = None
        """When the probe that is on its way was sent; None: none is."""
        self._answered_at: float | None = None
        self._last_failure: str | None = None
        """Why the last probe was not answered; None if it was."""

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
        quiet_s = self._quiet_s()
        if quiet_s >= STALE_S and all(replica.step_age_s is None for replica in fresh):
            return f"nothing has been computed for {quiet_s:.0f} s, though a worker is attached"
        return None

    def details(self) -> dict[str, Any]:
        """The numbers behind that, as JSON; ages are in seconds."""
        engine, now = self._engine, time.monotonic()
        cell, status = engine.cell, engine.cell.status
        fresh = cell.fresh_replicas()
        age_s = 0.0 if status is None else now - status.received_at
        return {
            "draining": engine.leaving,
            "samples_in_flight": engine.num_samples,
            "scheduler": {
                "connected": cell.incarnation is not None,
                "incarnation": None if cell.incarnation is None else f"{cell.incarnation:016x}",
                "draining": status is not None and status.draining,
                "status_age_s": None if status is None else _seconds(age_s),
            },
            "replicas": [
                _replica_details(replica, age_s, is_alive=replica in fresh)
                for replica in (() if status is None else status.replicas)
            ],
            "last_step_age_s": _age_s(cell.progressed_at, now),
            "last_token_age_s": _age_s(cell.produced_at, now),
            "probe": {
                "after_s": PROBE_S,
                "on_its_way_s": _age_s(self._asked_at, now),
                "last_answer_age_s": _age_s(self._answered_at, now),
                "last_failure": self._last_failure,
            },
        }

    async def run(self) -> None:
        """Until cancelled."""
        engine = self._engine
        while True:
            await engine.on_change.wait()
            engine.on_change.clear()
            unproven = self._unproven_replicas()
            if not unproven and not self._is_quiet():
                continue
            was_ready = self.is_ready()
            self._asked_at = time.monotonic()
            try:
                async with asyncio.timeout(CANARY_S):
                    await self._ask()
            except (RequestError, TimeoutError) as error:
                self._last_failure = str(error) or f"no answer within {CANARY_S:g} s"
                _log.warning("nothing could be computed (%s); trying again", self._last_failure)
                await asyncio.sleep(RETRY_S)
                engine.on_change.set()
                continue
            finally:
                self._asked_at = None
            if self._answered_at is None:
                _log.info("a first request has been computed")
            elif not was_ready:
                _log.info("a replica answers again")
            self._asked = unproven or self._asked
            self._answered_at = time.monotonic()
            self._last_failure = None
            engine.on_change.clear()  # what was told before the token does not count it

    def _unproven_replicas(self) -> frozenset[tuple[str, int]]:
        """Those for which a probe is due; empty if none is."""
        fresh = self._engine.cell.fresh_replicas()
        unproven = frozenset(
            (replica.replica_id, replica.epoch) for replica in fresh if not replica.is_proven
        )
        somebody_is_proven = len(unproven) < len(fresh)
        return frozenset() if somebody_is_proven and unproven <= self._asked else unproven

    def _is_quiet(self) -> bool:
        """Whether a probe is due because nothing has been computed for so long."""
        fresh = self._engine.cell.fresh_replicas()
        if not fresh or any(replica.step_age_s is not None for replica in fresh):
            return False
        try:
            self._engine.check_serving()
        except RequestError:
            return False
        return self._quiet_s() >= PROBE_S

    def _quiet_s(self) -> float:
        """How long nothing has been computed."""
        ages = (self._engine.cell.progressed_at, self._answered_at)
        return time.monotonic() - max(age for age in (*ages, 0.0) if age is not None)

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


def _replica_details(replica: ReplicaStatus, age_s: float, *, is_alive: bool) -> dict[str, Any]:
    """Of a replica, so long after its status."""
    step_age_s = replica.step_age_s
    return {
        "replica_id": replica.replica_id,
        "epoch": f"{replica.epoch:016x}",
        "alive": is_alive,
        "last_seen_s": _seconds(replica.last_seen_s + age_s),
        "step_age_s": None if step_age_s is None else _seconds(step_age_s + age_s),
        "step_patience_s": None if step_age_s is None else _seconds(replica.step_patience_s),
        "num_steps": replica.num_steps,
        "num_generated_tokens": replica.num_generated_tokens,
        "num_vectors": replica.num_vectors,
    }


def _age_s(when: float | None, now: float) -> float | None:
    return None if when is None else _seconds(now - when)


def _seconds(value: float) -> float:
    return round(value, 3)
