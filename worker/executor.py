"""The loop that owns the device: receive a plan, launch it; nothing else runs here.

    receive ─▶ launch (`worker.host_runner` or `worker.device_runner`) ─▶ … ─▶ send the result

Plans come from the transport child over a socketpair (`worker.link`), so that no network code
competes with this thread for the interpreter.
"""

import gc
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

import torch

from kernels.batch import AttentionBatch
from worker import wire
from worker.inventory import Inventory
from worker.kv_cache import KVCache
from worker.metrics import StepTotals, resident_bytes
from worker.pipe import END, HELLO, MARK, Pipe, pace_frame
from worker.plans import BatchPlan, Drain, Hello, PlanError, StepResult, Welcome

log = logging.getLogger(__name__)

IDLE_S = 1.0
"""An executor without a plan says this often that it is alive."""

_TOLD_FROM_S = 1.0
_TOLD_AGAIN = 1.5
"""By what factor a step is longer than those before, to be told of."""


class Model(Protocol):
    """What the executor asks of a model."""

    def forward(
        self, batch: AttentionBatch, kv: KVCache, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits of the sampled rows, [num_sampled, vocab_size]; in `out` if that is given."""
        ...

    def hidden(self, batch: AttentionBatch, kv: KVCache) -> torch.Tensor:
        """What `logits` takes, of every token: [num_tokens, hidden_size]."""
        ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Of some rows of `hidden`, [rows, vocab_size]; `forward` has the sampled ones'."""
        ...


Deliver = Callable[[StepResult], None]
"""Takes the result of a plan, once, perhaps on another thread; in plan order."""


Fail = Callable[[Exception], None]
"""Is told, perhaps on another thread, what went wrong with a step that had been launched."""


class Runner(Protocol):
    """What executes plans."""

    @property
    def num_live(self) -> int:
        """Sequences that hold a slot and have not ended."""
        ...

    @property
    def graph_buckets(self) -> tuple[int, ...]:
        """Numbers of decode rows that a captured step has, ascending; none where none is needed."""
        ...

    @property
    def max_draft_tokens(self) -> int:
        """Tokens that a slot may draft in a step (`worker.drafts`); 0: none."""
        ...

    def reset(self) -> None:
        """Forgets every sequence, once every result has been delivered."""
        ...

    def launch(self, plan: BatchPlan, wait_us: int, deliver: Deliver) -> None:
        """Starts a plan; raises `PlanError` when it contradicts the worker's state.

        Args:
            plan: the next one, in order.
            wait_us: how long the host waited for it.
            deliver: takes the result.
        """
        ...

    def watch(self, fail: Fail) -> None:
        """From now on `fail` is told, once, of what goes wrong after `launch` has returned."""
        ...

    def close(self) -> None:
        """Lets go of what it holds on the device; nothing can be launched afterwards."""
        ...


class DirectRunner(ABC):
    """What runners share that have finished a step when `launch` returns."""

    @abstractmethod
    def step(self, plan: BatchPlan, wait_us: int = 0) -> StepResult:
        """Runs one plan. Raises `PlanError`."""

    @property
    def graph_buckets(self) -> tuple[int, ...]:
        """None: nothing is captured."""
        return ()

    @property
    def max_draft_tokens(self) -> int:
        """None, unless it says otherwise."""
        return 0

    def launch(self, plan: BatchPlan, wait_us: int, deliver: Deliver) -> None:
        """`Runner.launch`; the result is delivered before it returns."""
        deliver(self.step(plan, wait_us))

    def watch(self, fail: Fail) -> None:  # noqa: B027 - nothing is what it has to do
        """`Runner.watch`; nothing goes wrong behind the caller's back."""

    def close(self) -> None:  # noqa: B027 - likewise
        """`Runner.close`; it holds nothing that would not go by itself."""


class Executor:
    """Serves plans in order, epoch after epoch.

    Args:
        runner: runs a plan.
        pipe: to the transport child.
        totals: what the metrics show; updated after each step.
        on_welcome: called at each Welcome, after the mirror was reset.
        answers: sends the results; of the ranks of a replica, one does.
        hello: what opened the stream; when that ends it is said anew, with what the blocks hold.
            None: it stays as it was.
    """

    def __init__(
        self,
        runner: Runner,
        pipe: Pipe,
        totals: StepTotals,
        on_welcome: Callable[[], None],
        *,
        answers: bool = True,
        hello: Hello | None = None,
    ) -> None:
        self._answers = answers
        self._hello = hello
        self._inventory = Inventory(0 if hello is None else hello.num_blocks)
        self._runner = runner
        self._pipe = pipe
        self._totals = totals
        self._on_welcome = on_welcome
        self._epoch: int | None = None
        self._next_step = 1
        self._wait_ns = 0
        self._longest_told_s = _TOLD_FROM_S / _TOLD_AGAIN
        self._failure: Exception | None = None
        runner.watch(self._fail)

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Serves until told to stop or drained; every plan that came before that is finished.

        Raises:
            PipeClosedError: the transport child has gone.
            PlanError: the scheduler's plans contradict this worker's state.
            Exception: what went wrong with a step that had been launched.
        """
        # What exists now stays: the collector need not look at it in the middle of a step.
        gc.collect()
        gc.freeze()
        has_asked = False
        while True:
            if should_stop() and not has_asked:
                has_asked = True
                self._pipe.send(END)
            asked = time.perf_counter_ns()
            frame = self._pipe.receive(IDLE_S)
            self._wait_ns += time.perf_counter_ns() - asked
            if self._failure is not None:
                raise self._failure
            if frame is None:
                self._pipe.send(wire.encode_telemetry(self._totals.num_steps, resident_bytes()))
                continue
            if frame == END:
                break
            if frame == MARK:  # the stream has ended
                if self._hello is not None:
                    self._runner.reset()  # what was launched is delivered, and heard of, first
                    self._pipe.send(HELLO + wire.encode_hello(self._hello, self._inventory.held()))
                self._reset()
                continue
            message = wire.parse_response(frame)
            if isinstance(message, Drain):
                log.info("the scheduler drains this worker")
                break
            if isinstance(message, Welcome):
                self._welcome(message)
            elif message.epoch == self._epoch:
                self._step(message)
        self._runner.reset()  # what was launched is delivered first

    def _fail(self, error: Exception) -> None:
        """Ends the loop, which may be waiting for a plan that depends on the lost result."""
        self._failure = error
        self._pipe.wake()

    def _reset(self) -> None:
        self._runner.reset()
        self._totals.num_live = 0  # so the time without a scheduler is no wait for a plan
        self._epoch = None
        self._pipe.send(MARK)

    def _welcome(self, welcome: Welcome) -> None:
        self._reset()
        self._inventory.open(welcome)
        self._epoch = welcome.epoch
        self._next_step = 1
        self._on_welcome()

    def _step(self, plan: BatchPlan) -> None:
        if plan.step_id != self._next_step:
            raise PlanError(f"step {plan.step_id} came; step {self._next_step} is next")
        self._next_step += 1
        # Without live sequences the device was idle for want of work, not of a plan.
        wait_us = self._wait_ns // 1000 if self._totals.num_live else 0
        launched = time.perf_counter()
        self._runner.launch(plan, wait_us, self._deliver)
        self._tell_pace(time.perf_counter() - launched)
        if self._hello is not None:
            self._inventory.note(plan)
        self._wait_ns = 0

    def _tell_pace(self, seconds: float) -> None:
        """How long nobody could be answered, for the transport to know what is not too long."""
        if seconds >= _TOLD_AGAIN * self._longest_told_s:
            self._longest_told_s = seconds
            self._pipe.send(pace_frame(seconds))

    def _deliver(self, result: StepResult) -> None:
        if self._answers:
            self._pipe.send(wire.encode_result(result))
        if self._hello is not None:
            self._inventory.hear(result)
        self._totals.add(result, self._runner.num_live)
