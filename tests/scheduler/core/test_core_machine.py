"""Any order of events: everyone ends once, with the tokens it would have had alone."""

from contextlib import suppress
from dataclasses import asdict
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from scheduler.core.events import Capacity, Refused
from tests.scheduler.core.cell import Cell, Key

PREFIXES = [[], [7, 8, 9, 7, 8, 9, 7, 8], [7, 8, 9, 7, 1, 1, 1, 1, 1, 1, 1, 1, 1]]
REPLICAS = ["a", "b"]


class CoreMachine(RuleBasedStateMachine):
    """The core between routers and replicas that do as they like."""

    @initialize(
        policy=st.sampled_from(["fcfs", "priority"]),
        caching=st.booleans(),
        watermark=st.sampled_from([0.0, 0.1]),
        num_blocks=st.integers(6, 20),
        keeps_kv=st.sampled_from([True, True, True, False]),
        block_size=st.sampled_from([1, 4]),
        budget=st.integers(3, 24),
        max_draft_tokens=st.sampled_from([0, 3, 15]),
    )
    def start(
        self,
        policy: str,
        caching: bool,
        watermark: float,
        num_blocks: int,
        keeps_kv: bool,
        block_size: int,
        budget: int,
        max_draft_tokens: int,
    ) -> None:
        self.cell = Cell(
            policy=policy,
            enable_prefix_caching=caching,
            watermark=watermark,
            aging_s=0.01,
            max_losses=2,
            trial_patience_s=0.05,
        )
        self.capacity = Capacity(
            num_blocks=num_blocks * (4 // block_size) if keeps_kv else 0,
            block_size=block_size,
            max_num_batched_tokens=budget,
            max_num_seqs=6,
            max_model_len=40,
            max_draft_tokens=max_draft_tokens,
        )
        self._attach("a")

    def _attach(self, replica: str) -> None:
        self.cell.attach(replica, **asdict(self.capacity))

    def _some_sequence(self, data: st.DataObject) -> Key:
        return data.draw(st.sampled_from(sorted(self.cell.unfinished())))

    @rule(
        prefix=st.sampled_from(PREFIXES),
        suffix=st.lists(st.integers(1, 3), min_size=1, max_size=8),
        max_tokens=st.integers(1, 16),
        num_samples=st.sampled_from([1, 1, 1, 2, 3]),
        router=st.integers(1, 2),
        priority=st.integers(-1, 1),
        adapter=st.sampled_from(["", "", "french"]),
        eos_period=st.sampled_from([0, 3, 12]),
        score_from=st.sampled_from([None, None, 1]),
        tenant=st.sampled_from(["", "", "x", "y"]),
        deadline_s=st.sampled_from([0.0, 0.0, 0.02, 1000.0]),
        can_draft=st.sampled_from([True, True, False]),
        fault=st.sampled_from([None] * 7 + ["broken_at", "crashes_at"]),
        fault_after=st.integers(1, 4),
    )
    def submit(
        self,
        prefix: list[int],
        suffix: list[int],
        max_tokens: int,
        fault: str | None,
        fault_after: int,
        **options: Any,
    ) -> None:
        faults: dict[str, Any] = (
            {} if fault is None else {fault: len(prefix) + len(suffix) - 1 + fault_after}
        )
        with suppress(Refused):  # it may never fit; then nothing of it is kept
            self.cell.submit(prefix + suffix, max_tokens, **faults, **options)

    @rule(
        prefix=st.sampled_from(PREFIXES),
        suffix=st.lists(st.integers(1, 3), min_size=1, max_size=28),
        router=st.integers(1, 2),
        priority=st.integers(-1, 1),
        needs_every_position=st.booleans(),
        broken=st.sampled_from([False] * 7 + [True]),
    )
    def embed(self, prefix: list[int], suffix: list[int], broken: bool, **options: Any) -> None:
        with suppress(Refused):
            self.cell.submit(prefix + suffix, 0, broken_at=0 if broken else None, **options)

    @rule(replica=st.sampled_from(REPLICAS), count=st.integers(1, 3))
    def send_plans(self, replica: str, count: int) -> None:
        for _ in range(count):
            if replica in self.cell.links and len(self.cell.links[replica].sent) < 4:
                self.cell.schedule(replica)

    @rule(replica=st.sampled_from(REPLICAS), count=st.integers(1, 3))
    def deliver_results(self, replica: str, count: int) -> None:
        for _ in range(count):
            if replica in self.cell.links and self.cell.links[replica].sent:
                self.cell.deliver(replica)

    @rule(depth=st.integers(1, 3), count=st.integers(1, 6))
    def run_for_a_while(self, depth: int, count: int) -> None:
        for _ in range(count):
            for replica, link in list(self.cell.links.items()):
                while len(link.sent) < depth and self.cell.schedule(replica) is not None:
                    pass
                if link.sent:
                    self.cell.deliver(replica)

    @precondition(lambda self: self.cell.unfinished())
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.cell.abort(self._some_sequence(data))

    @precondition(lambda self: self.cell.unfinished())
    @rule(data=st.data(), num_tokens=st.integers(0, 16))
    def finish(self, data: st.DataObject, num_tokens: int) -> None:
        self.cell.finish(self._some_sequence(data), num_tokens)

    @rule(router=st.sampled_from([2, 3]))
    def drop_router(self, router: int) -> None:
        self.cell.drop_router(router)

    @rule(passed_s=st.sampled_from([0.0, 0.01]))
    def expire(self, passed_s: float) -> None:
        self.cell.now += passed_s
        self.cell.expire()

    @rule(replica=st.sampled_from(REPLICAS))
    def attach(self, replica: str) -> None:
        if replica not in self.cell.links:
            self._attach(replica)

    @rule(replica=st.sampled_from(REPLICAS), blame=st.booleans())
    def detach(self, replica: str, blame: bool) -> None:
        if replica in self.cell.links:
            self.cell.detach(replica, blame=blame)

    def teardown(self) -> None:
        if not hasattr(self, "cell"):
            return
        if not self.cell.links:
            self._attach("a")
        self.cell.now += 1.0  # nobody waits any longer for a replica to come anew
        self.cell.run(depth=2)
        for key in self.cell.unfinished():
            assert not self._fits(key), "it waits although it could run"
            self.cell.abort(key)
        self.cell.assert_at_rest()

    def _fits(self, key: Key) -> bool:
        request = self.cell.watched[key].request
        if request.max_total_tokens > self.capacity.max_model_len:
            return False
        if self.capacity.num_blocks == 0:
            whole = request.num_positions <= self.capacity.max_num_batched_tokens
            return whole and request.max_tokens == 0
        return request.num_positions <= self.capacity.num_blocks * self.capacity.block_size


CoreMachine.TestCase.settings = settings(
    max_examples=200,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestCoreMachine = CoreMachine.TestCase
