"""A scheduler with fake workers, and a router that checks all it is told."""

from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from typing import Any

import numpy as np

from scheduler.core.config import CoreConfig
from scheduler.core.decisions import Finished, Outputs, Plan
from scheduler.core.events import Capacity, FinishReason, Request, StepResult
from scheduler.core.scheduler import Scheduler
from tests.scheduler.core.fake_worker import (
    FakeSampling,
    FakeWorker,
    WorkerCrash,
    embed_alone,
    generate_alone,
    token_column,
)

Key = tuple[int, int]
"""(router, sequence id)."""


@dataclass
class Link:
    """One attached replica: the worker, and the plans that are on their way to it."""

    worker: FakeWorker
    sent: deque[Plan] = field(default_factory=deque)
    aboard: deque[set[Key]] = field(default_factory=deque)
    """Whom each of these plans computes."""
    tenants: dict[int, Key] = field(default_factory=dict)
    """Who holds each slot once every sent plan has run."""
    decode_set: list[int] = field(default_factory=list)


@dataclass
class Watched:
    """What the router knows of a sequence."""

    request: Request
    sample: int
    output: list[int]
    finished: Finished | None = None
    vector: int | None = None
    told_to_finish: bool = False
    score_from: int | None = None
    """The prompt token that must be scored next; None: nothing is to be scored."""


class Cell:
    """Drives the core one event at a time; integrity is checked after each."""

    def __init__(self, **config: Any) -> None:
        self.scheduler = Scheduler(CoreConfig(**{"hash_seed": b"test"} | config))
        self.links: dict[str, Link] = {}
        self.watched: dict[Key, Watched] = {}
        self.now = 0.0
        self._num_requests = 0
        self.num_crashes = 0
        self.crashed: dict[str, Capacity] = {}
        """Replicas whose worker is gone and has not been started anew."""

    # ---- events

    def attach(
        self,
        name: str = "a",
        *,
        num_blocks: int = 16,
        block_size: int = 4,
        max_num_seqs: int = 8,
        max_num_batched_tokens: int = 32,
        max_model_len: int = 48,
        model_revision: str = "",
        graph_buckets: tuple[int, ...] = (),
        max_draft_tokens: int = 0,
    ) -> None:
        capacity = Capacity(
            num_blocks,
            block_size,
            max_num_seqs,
            max_num_batched_tokens,
            max_model_len,
            model_revision,
            graph_buckets,
            max_draft_tokens,
        )
        self.crashed.pop(name, None)
        self.scheduler.attach(name, capacity)
        self.scheduler.check_integrity()
        self.links[name] = Link(FakeWorker(capacity))

    def restart_scheduler(self, *, late: Sequence[str] = ()) -> None:
        """A new scheduler, of another seed, in place of the old one, which is gone with all that it
        knew: the workers dial it with what their blocks hold, and the router submits again, before
        some that are late."""
        config = self.scheduler._config
        seeds = {name: self.scheduler.hash_seed(name) for name in self.links}
        self.scheduler = Scheduler(replace(config, hash_seed=b"new" + config.hash_seed[:40]))
        links, self.links = self.links, {}
        for name in links:
            if name not in late:
                self._dial(name, links[name].worker, seeds[name])
        for key in self.unfinished():
            self._submit_again(self.watched[key])
        for name in late:
            self._dial(name, links[name].worker, seeds[name])

    def _dial(self, name: str, worker: FakeWorker, seed: bytes) -> None:
        worker.start_over()
        inventory = worker.inventory(seed) if seed else None
        if not self.scheduler.attach(name, worker.capacity, inventory):
            worker.names.clear()
        self.scheduler.check_integrity()
        self.links[name] = Link(worker)

    def _submit_again(self, watched: Watched) -> None:
        request, sample = watched.request, watched.sample
        prompt = request.token_ids[: request.num_prompt_tokens].tolist()
        again = replace(
            request,
            sequence_id=request.sequence_id + sample,
            token_ids=token_column([*prompt, *watched.output]),
            seed=request.seed + sample,
            num_samples=1,
            score_from=None if sample else watched.score_from,
            resubmitted=True,
        )
        self._hear(self.scheduler.accept(again, self._tick()))

    def detach(self, name: str = "a", *, blame: bool = True) -> list[Finished]:
        link = self.links.pop(name)
        finished = self._hear(self.scheduler.detach(name, self._tick(), blame=blame))
        if finished:
            assert blame, "somebody ended although nobody was to blame"
            convicted = {self._request_of(end.router, end.sequence_id) for end in finished}
            aboard = {self._request_of(*key) for keys in link.aboard for key in keys}
            assert len(convicted) == 1, "several ended for one loss"
            assert aboard == convicted, "the culprit was not alone"
        return finished

    def submit(
        self,
        prompt: Sequence[int],
        max_tokens: int = 8,
        *,
        router: int = 1,
        output: Sequence[int] = (),
        num_samples: int = 1,
        priority: int = 0,
        adapter: str = "",
        cache_salt: str = "",
        eos_period: int = 0,
        broken_at: int | None = None,
        crashes_at: int | None = None,
        seed: int | None = None,
        needs_every_position: bool = False,
        score_from: int | None = None,
        deadline_s: float = 0.0,
        resubmitted: bool = False,
        tenant: str = "",
        can_draft: bool = True,
    ) -> Key:
        """Accept a request; returns the key of its first sample. Raises Refused."""
        self._num_requests += 1
        sequence_id = (self._num_requests * 1000 - 2**31) % 2**32
        request = Request(
            router=router,
            sequence_id=sequence_id,
            token_ids=token_column([*prompt, *output]),
            num_prompt_tokens=len(prompt),
            max_tokens=max_tokens,
            seed=self._num_requests * 100 if seed is None else seed,
            num_samples=num_samples,
            priority=priority,
            cache_salt=cache_salt,
            adapter=adapter,
            sampling=FakeSampling(
                self._num_requests,
                adapter,
                eos_period,
                broken_at,
                score_from is not None,
                crashes_at,
            ),
            needs_every_position=needs_every_position,
            score_from=score_from,
            deadline_s=deadline_s,
            resubmitted=resubmitted,
            tenant=tenant,
            can_draft=can_draft,
        )
        outputs = self.scheduler.accept(request, self._tick())
        for sample in range(num_samples):
            self.watched[router, sequence_id + sample] = Watched(request, sample, list(output))
        self.watched[router, sequence_id].score_from = score_from
        self._hear(outputs)
        return router, sequence_id

    def abort(self, key: Key) -> list[Finished]:
        return self._hear(self.scheduler.abort(*key, self._tick()))

    def finish(self, key: Key, num_tokens: int) -> list[Finished]:
        self.watched[key].told_to_finish = True
        return self._hear(self.scheduler.finish(*key, num_tokens, self._tick()))

    def drop_router(self, router: int) -> list[Finished]:
        return self._hear(self.scheduler.drop_router(router, self._tick()))

    def expire(self) -> list[Finished]:
        """Whoever is past its deadline ends, and nobody else."""
        now = self._tick()
        next_at = self.scheduler.next_deadline()
        finished = self._hear(self.scheduler.expire(now))
        assert bool(finished) == (next_at is not None and next_at <= now)
        assert all(end.reason is FinishReason.TIMEOUT for end in finished)
        next_at = self.scheduler.next_deadline()
        assert next_at is None or next_at > now
        return finished

    def schedule(self, name: str = "a") -> Plan | None:
        """Make a plan and send it, if there is something to do."""
        plan = self.scheduler.schedule(name, self._tick())
        self.scheduler.check_integrity()
        link = self.links[name]
        if plan is not None:
            link.sent.append(plan)
            self._watch(link, plan)
        [state] = [one for one in self.scheduler.state().replicas if one.replica == name]
        assert state.num_in_flight == len(link.sent)
        return plan

    def deliver(self, name: str = "a") -> list[Finished]:
        """Execute the oldest plan on its way and apply the result; perhaps the worker crashes."""
        link = self.links[name]
        try:
            result = link.worker.execute(link.sent[0])
        except WorkerCrash:
            self.num_crashes += 1
            self.crashed[name] = link.worker.capacity
            return self.detach(name)
        link.sent.popleft()
        link.aboard.popleft()
        outputs = self.scheduler.apply(name, result, self._tick())
        for finished in outputs.finished:
            if finished.vector_row is not None:
                watched = self.watched[finished.router, finished.sequence_id]
                watched.vector = link.worker.vectors[finished.vector_row]
        self._hear_scores(outputs, result)
        return self._hear(outputs)

    def plan(self, name: str = "a") -> Plan:
        """Make a plan and send it; there is something to do."""
        plan = self.schedule(name)
        assert plan is not None, "nothing to do"
        return plan

    def step(self, name: str = "a") -> Plan:
        """One plan and its result, with nothing else in flight."""
        plan = self.plan(name)
        self.deliver(name)
        return plan

    def run(self, *, depth: int = 1, max_steps: int = 5000) -> None:
        """Step every replica, with up to `depth` plans in flight, until nothing is left to do.
        Workers that crash are started anew when all others idle."""
        for _ in range(max_steps):
            idle = True
            for name, link in list(self.links.items()):
                while len(link.sent) < depth and self.schedule(name) is not None:
                    idle = False
                if link.sent:
                    idle = False
                    self.deliver(name)
            if idle and self.crashed:
                self.restart()
            elif idle and self.scheduler.take_moved():
                continue
            elif idle:
                return
        raise AssertionError("the cell does not come to rest")

    def restart(self) -> None:
        """Every worker that has crashed is back, and empty."""
        while self.crashed:
            name, capacity = next(iter(self.crashed.items()))
            self.attach(name, **asdict(capacity))

    # ---- what was seen

    def output(self, key: Key, sample: int = 0) -> list[int]:
        return self.watched[key[0], key[1] + sample].output

    def end(self, key: Key, sample: int = 0) -> Finished:
        finished = self.watched[key[0], key[1] + sample].finished
        assert finished is not None, "it has not ended"
        return finished

    def home(self, key: Key) -> str | None:
        """The replica at which a sequence waits or runs."""
        sequence = self.scheduler._sequences.find(*key)
        assert sequence is not None, "it has ended"
        return sequence.replica

    def unfinished(self) -> list[Key]:
        return [key for key, watched in self.watched.items() if watched.finished is None]

    def assert_at_rest(self) -> None:
        """Everyone ended, and every block is free or cached."""
        assert not self.unfinished()
        state = self.scheduler.state()
        assert (state.num_running, state.num_waiting, state.num_blocks_used) == (0, 0, 0)
        assert state.num_blocks_free + state.num_blocks_cached == state.num_blocks_total

    def _tick(self) -> float:
        self.now += 0.001
        return self.now

    def _watch(self, link: Link, plan: Plan) -> None:
        """Every row belongs to a sequence that has not ended."""
        for slot in plan.retire.tolist():
            del link.tenants[slot]
        for admission in plan.admit:
            link.tenants[admission.slot] = self._key_of(admission.sampling, admission.seed)
        if plan.decode is not None:
            link.decode_set = plan.decode.tolist()
        aboard = {link.tenants[slot] for slot in [*link.decode_set, *plan.chunk_slot.tolist()]}
        for key in aboard:
            assert self.watched[key].finished is None, "planned after its end"
        link.aboard.append(aboard)

    def _request_of(self, router: int, sequence_id: int) -> tuple[int, int]:
        """Names the request of a sequence."""
        return router, self.watched[router, sequence_id].request.sequence_id

    def _key_of(self, sampling: object, seed: int) -> Key:
        [key] = [
            key
            for key, watched in self.watched.items()
            if watched.request.sampling is sampling
            and watched.request.seed + watched.sample == seed
        ]
        return key

    def _hear(self, outputs: Outputs) -> list[Finished]:
        """Check the news against what the fake model says when it is alone."""
        self.scheduler.check_integrity()
        ids = outputs.sequence_id.view(np.uint32).tolist()
        keys = list(zip(outputs.router.tolist(), ids, strict=True))
        assert len(set(keys)) == len(list(groupby(keys))), "its tokens do not come together"
        for router, sequence_id, token in zip(
            outputs.router.tolist(), ids, outputs.token_id.tolist(), strict=True
        ):
            watched = self.watched[router, sequence_id]
            assert watched.finished is None, "a token after the end"
            assert watched.score_from in (None, watched.request.num_prompt_tokens), (
                "a token before every score"
            )
            watched.output.append(token)
        for finished in outputs.finished:
            self._hear_end(finished)
        return list(outputs.finished)

    def _hear_scores(self, outputs: Outputs, result: StepResult) -> None:
        """Each prompt token's score is told once, in order."""
        ids = outputs.score_sequence_id.view(np.uint32).tolist()
        runs = outputs.score_run.tolist()
        for router, sequence_id, run in zip(outputs.score_router.tolist(), ids, runs, strict=True):
            watched = self.watched[router, sequence_id]
            assert watched.finished is None, "a score after the end"
            assert watched.score_from == result.score_start[run]
            watched.score_from = int(result.score_start[run] + result.score_length[run])

    def _hear_end(self, finished: Finished) -> None:
        watched = self.watched[finished.router, finished.sequence_id]
        assert watched.finished is None, "it ended twice"
        watched.finished = finished
        if watched.request.max_tokens == 0:
            self._check_embedded(watched, finished)
            return
        assert finished.vector_row is None
        alone = generate_alone(watched.request, watched.sample)
        assert watched.output == alone[: len(watched.output)], "other tokens than alone"
        assert finished.num_output_tokens <= len(watched.output)
        assert finished.num_prompt_tokens == watched.request.num_prompt_tokens
        assert min(finished.queue_s, finished.prefill_s, finished.decode_s) >= 0
        if watched.request.score_from == 1 and watched.sample == 0:
            assert finished.num_cached_tokens == 0
        if finished.reason is FinishReason.LENGTH or watched.output[-1:] == [0]:
            assert watched.output == alone
            assert finished.num_output_tokens == len(alone)

    @staticmethod
    def _check_embedded(watched: Watched, finished: Finished) -> None:
        assert watched.output == []
        assert finished.num_output_tokens == 0
        assert finished.reason is not FinishReason.LENGTH
        if finished.reason is not FinishReason.STOP or watched.told_to_finish:
            assert finished.vector_row is None
        else:
            assert watched.vector == embed_alone(watched.request)
            assert finished.num_cached_tokens == 0 or not watched.request.needs_every_position
