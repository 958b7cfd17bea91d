"""The loop over a socketpair and a small real model: epochs, order, ends, and the same tokens."""

import socket
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch

from kernels.batch import AttentionBatch
from protos.quire.v1 import sampling_pb2, worker_pb2
from tests.worker.builders import admission, column, plan
from tests.worker.runners import PROMPTS, make_device_runner, make_host_runner
from worker import executor as executor_module
from worker.executor import Executor, Model, Runner
from worker.kv_cache import KVCache
from worker.lane import Array, Fetched, HostLane
from worker.loader import LoadedModel
from worker.metrics import StepTotals
from worker.pipe import END, HELLO, MARK, PACE, Pipe, PipeClosedError, said_pace
from worker.plans import BatchPlan, Hello, PlanError, StepResult

HELLO_OF_TINY = Hello(
    worker_id="w",
    replica_id="r",
    rank=0,
    world_size=1,
    model_name="tiny",
    model_revision="1",
    max_model_len=64,
    vocab_size=64,
    dtype="float32",
    num_blocks=32,
    block_size=4,
    max_num_seqs=4,
    max_num_batched_tokens=64,
    pid=1,
    device="cpu",
)

# --- the loop ------------------------------------------------------------------------------------


class Script:
    """Frames for the loop, sent before it runs; its answers, read afterwards."""

    def __init__(self, runner: Runner, hello: Hello | None = None) -> None:
        ours, self._theirs = socket.socketpair()
        self.welcomes = 0
        self.totals = StepTotals()
        self.paces: list[float] = []
        """Of what it said how long its longest step took; read with the answers."""
        self._pipe = Pipe(ours)
        self.executor = Executor(runner, self._pipe, self.totals, self._on_welcome, hello=hello)

    def _on_welcome(self) -> None:
        self.welcomes += 1

    def send(self, *messages: worker_pb2.AttachResponse) -> None:
        for message in messages:
            self.send_frame(message.SerializeToString())

    def send_frame(self, frame: bytes) -> None:
        self._theirs.sendall(len(frame).to_bytes(4, "little") + frame)

    def answers(self) -> list[worker_pb2.AttachRequest | None]:
        """What the executor has sent, its wish to leave and paces left out; None stands for a
        mark."""
        self._pipe.close()
        other = Pipe(self._theirs)
        frames: list[worker_pb2.AttachRequest | None] = []
        while True:
            try:
                frame = other.receive(0.0)
            except PipeClosedError:
                return frames
            if frame is not None and frame.startswith(PACE):
                self.paces.append(said_pace(frame))
            elif frame != END:
                frame = frame.removeprefix(HELLO) if frame else frame
                frames.append(worker_pb2.AttachRequest.FromString(frame) if frame else None)

    def close(self) -> None:
        self._pipe.close()
        self._theirs.close()


@pytest.fixture
def script(tiny_model: LoadedModel) -> Iterator[Script]:
    script = Script(make_host_runner(tiny_model))
    yield script
    script.close()


def never() -> bool:
    return False


def welcome(epoch: int) -> worker_pb2.AttachResponse:
    return worker_pb2.AttachResponse(welcome=worker_pb2.Welcome(epoch=epoch))


def drain() -> worker_pb2.AttachResponse:
    return worker_pb2.AttachResponse(drain=worker_pb2.Drain())


def on_wire(step: BatchPlan) -> worker_pb2.AttachResponse:
    message = worker_pb2.BatchPlan(
        epoch=step.epoch,
        step_id=step.step_id,
        retire_slot=step.retire.tobytes(),
        admit=[
            worker_pb2.Admission(
                slot=tenant.slot,
                generation=tenant.generation,
                token_id=tenant.token_ids.tobytes(),
                num_prompt_tokens=tenant.num_prompt_tokens,
                max_total_tokens=tenant.max_total_tokens,
                block=tenant.blocks.tobytes(),
                num_computed=tenant.num_computed,
                sampling=sampling_pb2.SamplingParams(top_p=1.0, repetition_penalty=1.0),
            )
            for tenant in step.admit
        ],
        chunk_slot=step.chunk_slot.tobytes(),
        chunk_start=step.chunk_start.tobytes(),
        chunk_length=step.chunk_length.tobytes(),
    )
    if step.decode is not None:
        message.decode_slot = step.decode.tobytes()
    return worker_pb2.AttachResponse(plan=message)


def first_plan(epoch: int, generation: int = 0) -> worker_pb2.AttachResponse:
    tenant = admission(0, PROMPTS[0], range(1, 6), generation=generation)
    return on_wire(plan(1, epoch=epoch, admit=[tenant], chunks=[(0, 0, len(PROMPTS[0]))]))


def test_plans_are_answered_in_order_until_the_drain(script: Script) -> None:
    script.send(welcome(6), first_plan(6), on_wire(plan(2, epoch=6, decode=[0])))
    script.send(on_wire(plan(3, epoch=6)), drain())
    script.executor.run(never)
    mark, *results = script.answers()
    assert mark is None
    assert [(r.result.epoch, r.result.step_id) for r in results if r] == [(6, 1), (6, 2), (6, 3)]
    assert all(r.result.slot == column([0]).tobytes() for r in results if r)
    assert script.welcomes == 1
    assert (script.totals.num_steps, script.totals.num_tokens, script.totals.num_live) == (3, 3, 1)
    assert script.totals.forward_us > 0


def test_a_welcome_voids_what_came_before(script: Script) -> None:
    script.send(first_plan(1), welcome(2), first_plan(2, generation=4), first_plan(1))
    script.send(welcome(3), on_wire(plan(2, epoch=2, decode=[0])), first_plan(3, generation=5))
    script.send(drain())
    script.executor.run(never)
    answers = script.answers()
    assert [answer is None for answer in answers] == [True, False, True, False]
    results = [answer.result for answer in answers if answer is not None]
    assert [(r.epoch, r.generation) for r in results] == [
        (2, column([4]).tobytes()),
        (3, column([5]).tobytes()),
    ]
    assert script.welcomes == 2


def test_a_stream_that_ends_is_answered_with_a_hello_that_says_what_the_blocks_hold(
    tiny_model: LoadedModel,
) -> None:
    script = Script(make_host_runner(tiny_model), hello=HELLO_OF_TINY)
    named = first_plan(6)
    named.plan.named_block = column([2]).tobytes()
    named.plan.block_name = b"n" * 16
    script.send(worker_pb2.AttachResponse(welcome=worker_pb2.Welcome(epoch=6, hash_seed=b"s")))
    script.send(named)
    script.send_frame(MARK)
    script.send(drain())
    script.executor.run(never)
    welcomed, _, hello, mark = script.answers()
    assert welcomed is mark is None
    assert hello is not None
    assert (hello.hello.hash_seed, hello.hello.block_name) == (b"s", b"n" * 16)
    assert hello.hello.named_block == column([2]).tobytes()
    assert hello.hello.worker_id == "w"
    script.close()


@pytest.mark.parametrize("make_runner", [make_host_runner, make_device_runner])
def test_the_hello_does_not_name_what_was_not_finite(
    tiny_model: LoadedModel, make_runner: Callable[[LoadedModel, Model], Runner]
) -> None:
    """The scheduler that should have said so is gone before it could."""
    script = Script(make_runner(tiny_model, NotFinite(tiny_model.model)), hello=HELLO_OF_TINY)
    named = first_plan(6)
    named.plan.named_block = column([2, 9]).tobytes()
    named.plan.block_name = b"n" * 16 + b"m" * 16
    script.send(worker_pb2.AttachResponse(welcome=worker_pb2.Welcome(epoch=6, hash_seed=b"s")))
    script.send(named)
    script.send_frame(MARK)
    script.send(drain())
    script.executor.run(never)
    _, answer, hello, _ = script.answers()
    assert answer is not None
    assert hello is not None
    assert list(answer.result.finish) == [sampling_pb2.FINISH_REASON_ERROR]
    assert hello.hello.named_block == column([9]).tobytes()
    script.close()


class NotFinite:
    """A model whose logits are none."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def forward(
        self, batch: AttentionBatch, kv: KVCache, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`Model.forward`."""
        return self._model.forward(batch, kv, out).fill_(float("nan"))

    def hidden(self, batch: AttentionBatch, kv: KVCache) -> torch.Tensor:
        """`Model.hidden`."""
        return self._model.hidden(batch, kv)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """`Model.logits`."""
        return self._model.logits(hidden).fill_(float("nan"))


def test_the_transport_is_told_of_steps_that_are_longer_than_those_before(
    tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = make_host_runner(tiny_model)
    seconds, step = iter([0.01, 0.2, 0.01, 0.01]), runner.step

    def slow(plan: BatchPlan, wait_us: int = 0) -> StepResult:
        time.sleep(next(seconds))
        return step(plan, wait_us)

    monkeypatch.setattr(runner, "step", slow)
    monkeypatch.setattr(executor_module, "_TOLD_FROM_S", 0.2)
    script = Script(runner)
    script.send(welcome(6), first_plan(6), on_wire(plan(2, epoch=6, decode=[0])))
    script.send(on_wire(plan(3, epoch=6)), on_wire(plan(4, epoch=6)), drain())
    script.executor.run(never)
    assert len(script.answers()) == 1 + 4
    assert script.paces
    assert script.paces[0] >= 0.2
    assert script.paces == sorted(script.paces)


def test_a_gap_in_the_steps_is_an_error(script: Script) -> None:
    script.send(welcome(1), first_plan(1), on_wire(plan(3, epoch=1, decode=[0])))
    with pytest.raises(PlanError, match="step 3 came; step 2 is next"):
        script.executor.run(never)


def test_an_idle_executor_says_that_it_is_alive(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor_module, "IDLE_S", 0.01)
    asked = iter([False, False, False, True])

    def should_stop() -> bool:
        if stop := next(asked):
            script.send_frame(END)
        return stop

    script.executor.run(should_stop)
    answers = script.answers()
    assert [a.WhichOneof("message") for a in answers if a] == ["telemetry"] * 3
    assert all(a.telemetry.rss_bytes > 10_000_000 for a in answers if a)


def test_waiting_counts_only_while_sequences_are_live(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor_module, "IDLE_S", 0.02)
    steps = iter(
        [
            [welcome(1)],
            [],  # idle: the first plan is not late, nobody waited for it
            [first_plan(1)],
            [],
            [],  # live: the second plan is late
            [on_wire(plan(2, epoch=1, decode=[0]))],
            [drain()],
        ]
    )

    def send_next() -> bool:
        script.send(*next(steps, []))
        return False

    script.executor.run(send_next)
    results = [a.result for a in script.answers() if a and a.WhichOneof("message") == "result"]
    assert [r.step_id for r in results] == [1, 2]
    assert results[0].timing.wait_us == 0
    assert results[1].timing.wait_us >= 40_000
    assert script.totals.wait_us == results[1].timing.wait_us


def test_the_time_without_a_scheduler_is_no_wait(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor_module, "IDLE_S", 0.02)
    steps = iter(
        [
            [welcome(1), first_plan(1)],
            [],
            [],  # live, but the stream is broken
            [],
            [welcome(2)],
            [],  # the next scheduler has nothing to compute yet
            [first_plan(2, generation=1)],
            [drain()],
        ]
    )

    def send_next() -> bool:
        script.send(*next(steps, []))
        return False

    script.executor.run(send_next)
    results = [a.result for a in script.answers() if a and a.WhichOneof("message") == "result"]
    assert [(r.epoch, r.step_id) for r in results] == [(1, 1), (2, 1)]
    assert [r.timing.wait_us for r in results] == [0, 0]
    assert script.totals.wait_us == 0


class Breaking(HostLane):
    """A lane on which no outcome arrives any more once it is broken."""

    broken = False

    def fetch(self, outcome: Sequence[torch.Tensor]) -> Fetched:
        return Nothing() if self.broken else super().fetch(outcome)


class Nothing:
    """An outcome that was lost."""

    def wait(self) -> list[Array]:
        raise RuntimeError("an illegal memory access was encountered")

    def device_us(self) -> tuple[int, int]:
        raise AssertionError("asked before it has arrived")


def test_a_lost_outcome_ends_the_loop_though_no_plan_follows(
    tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor_module, "IDLE_S", 3600.0)
    lane = Breaking()
    runner = make_device_runner(tiny_model, lane=lane)
    script = Script(runner)
    lane.broken = True
    script.send(welcome(1), first_plan(1))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        script.executor.run(never)
    assert script.answers() == [None]
    runner.close()
    script.close()


def test_the_transports_end_is_reported(script: Script) -> None:
    script.send(welcome(1))
    script._theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(PipeClosedError):
        script.executor.run(never)
