"""The loop over a socketpair and a small real model: epochs, order, ends, and the same tokens."""

import math
import socket
from collections.abc import Iterator, Sequence

import pytest
import torch

from kernels.batch import AttentionBatch
from protos.quire.v1 import sampling_pb2, worker_pb2
from tests.worker.builders import MAX_MODEL_LEN, VOCAB_SIZE, admission, column, plan
from worker import executor as executor_module
from worker.executor import Executor, Model
from worker.host_runner import HostRunner
from worker.kv_cache import KVCache
from worker.loader import LoadedModel
from worker.metrics import StepTotals
from worker.pipe import END, Pipe, PipeClosedError
from worker.plans import Admission, BatchPlan, PlanError, Sampling
from worker.sampler import Sampler
from worker.step_state import StepState
from worker.warm_up import warm_up

BLOCK_SIZE = 8
NUM_BLOCKS = 120
NUM_SLOTS = 16
CPU = torch.device("cpu")


def make_runner(loaded: LoadedModel, model: Model | None = None) -> HostRunner:
    return HostRunner(
        model or loaded.model,
        KVCache(loaded.config, NUM_BLOCKS, BLOCK_SIZE, loaded.dtype, CPU),
        StepState(
            max_num_seqs=NUM_SLOTS,
            max_model_len=MAX_MODEL_LEN,
            num_blocks=NUM_BLOCKS,
            block_size=BLOCK_SIZE,
            vocab_size=VOCAB_SIZE,
            device=CPU,
        ),
        Sampler(max_num_seqs=NUM_SLOTS, vocab_size=VOCAB_SIZE, device=CPU),
    )


# --- what the runner computes --------------------------------------------------------------------

PROMPTS = [
    [(7 * i + 3 * j) % 300 + 5 for j in range(length)] for i, length in enumerate((20, 3, 33))
]
NUM_OUTPUT = 12


def tenants(sampling: Sampling, slots: Sequence[int] = (0, 1, 2)) -> dict[int, Admission]:
    """The three prompts, each with blocks for all its tokens; slot and blocks do not matter."""
    per_sequence = -(-MAX_MODEL_LEN // BLOCK_SIZE)
    return {
        prompt: admission(
            slot,
            PROMPTS[prompt],
            range(1 + slot * per_sequence, 1 + (slot + 1) * per_sequence),
            max_total=len(PROMPTS[prompt]) + NUM_OUTPUT,
            seed=1000 + prompt,
            sampling=sampling,
        )
        for prompt, slot in enumerate(slots)
    }


def generate(
    runner: HostRunner, sequences: Sequence[Admission], chunk: int
) -> dict[int, list[int]]:
    """Outputs by slot: each prompt in chunks of at most so many tokens, all sequences together."""
    runner.reset()
    outputs: dict[int, list[int]] = {sequence.slot: [] for sequence in sequences}
    progress = {sequence.slot: sequence.num_computed for sequence in sequences}
    known = {sequence.slot: len(sequence.token_ids) for sequence in sequences}
    decode: list[int] = []
    ended: set[int] = set()
    for step in range(1, 200):
        chunks = [
            (slot, progress[slot], min(chunk, known[slot] - progress[slot]))
            for slot in progress
            if progress[slot] < known[slot]
        ]
        if not decode and not chunks:
            return outputs
        admitted = tuple(sequences) if step == 1 else ()
        result = runner.step(plan(step, admit=admitted, decode=decode, chunks=chunks))
        for slot, _, length in chunks:
            progress[slot] += length
        for slot, token in zip(result.slot.tolist(), result.token_id.tolist(), strict=True):
            outputs[slot].append(token)
        ended |= set(result.slot[result.finish > 0].tolist())
        decode = [slot for slot in outputs if outputs[slot] and slot not in ended]
    raise AssertionError("the sequences do not end")


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=1.0),
        Sampling(temperature=0.9, top_p=0.9, top_k=50, repetition_penalty=1.2),
    ],
)
def test_chunks_batches_slots_and_replay_do_not_change_the_tokens(
    tiny_model: LoadedModel, sampling: Sampling
) -> None:
    runner = make_runner(tiny_model)
    first = tenants(sampling)
    alone = {
        prompt: generate(runner, [sequence], chunk=1000)[sequence.slot]
        for prompt, sequence in first.items()
    }
    assert all(len(tokens) == NUM_OUTPUT for tokens in alone.values())
    assert len({tuple(tokens) for tokens in alone.values()}) == len(PROMPTS)
    for slots, chunk in (((0, 1, 2), 1000), ((2, 0, 1), 7), ((1, 2, 0), 1)):
        moved = tenants(sampling, slots)
        together = generate(runner, list(moved.values()), chunk)
        assert {p: together[sequence.slot] for p, sequence in moved.items()} == alone
    for prompt, tokens in alone.items():
        # As after a preemption: half the output is known and computed anew.
        again = tenants(sampling)[prompt]
        replayed = admission(
            again.slot,
            PROMPTS[prompt] + tokens[:6],
            again.blocks.tolist(),
            num_prompt=len(PROMPTS[prompt]),
            max_total=again.max_total_tokens,
            seed=again.seed,
            sampling=sampling,
        )
        assert generate(runner, [replayed], chunk=5)[again.slot] == tokens[6:]


def test_blocks_computed_by_one_sequence_serve_another(tiny_model: LoadedModel) -> None:
    runner = make_runner(tiny_model)
    whole = tenants(Sampling())[2]
    expected = generate(runner, [whole], chunk=1000)[whole.slot]
    shared = admission(
        5,
        PROMPTS[2],
        [*whole.blocks[:4].tolist(), *range(100, 108)],
        num_computed=4 * BLOCK_SIZE,
        max_total=whole.max_total_tokens,
    )
    runner.reset()
    runner.step(plan(1, admit=[whole], chunks=[(whole.slot, 0, 32)]))
    runner.step(plan(2, retire=[whole.slot], admit=[shared], chunks=[(5, 32, 1)]))
    tokens = [runner.step(plan(3, decode=[5])).token_id.tolist()[0]]
    tokens += [runner.step(plan(step)).token_id.tolist()[0] for step in range(4, 8)]
    assert tokens == expected[1:6]


class Broken:
    """A model that makes one sampled row not a number, in one of its passes."""

    def __init__(self, model: Model, row: int, broken_pass: int) -> None:
        self._model = model
        self._row = row
        self._passes_left = broken_pass

    def forward(self, batch: AttentionBatch, kv: KVCache) -> torch.Tensor:
        logits = self._model.forward(batch, kv)
        self._passes_left -= 1
        if self._passes_left == 0:
            logits[self._row, 17] = math.nan
        return logits


def test_logits_that_are_not_finite_end_their_row_alone(tiny_model: LoadedModel) -> None:
    sound = tenants(Sampling())
    expected = generate(make_runner(tiny_model), list(sound.values()), chunk=1000)
    broken = make_runner(tiny_model, Broken(tiny_model.model, row=1, broken_pass=4))
    outputs = generate(broken, list(sound.values()), chunk=1000)
    assert outputs[0] == expected[0]
    assert outputs[2] == expected[2]
    assert outputs[1][:3] == expected[1][:3]
    assert len(outputs[1]) == 4


def test_a_plan_that_only_retires_computes_nothing(tiny_model: LoadedModel) -> None:
    runner = make_runner(tiny_model)
    runner.step(plan(1, admit=[admission(0, [5, 6], [1])], chunks=[(0, 0, 1)]))
    result = runner.step(plan(2, retire=[0], decode=[]))
    assert len(result.slot) == 0
    assert runner.num_live == 0


def test_warming_up_leaves_no_trace(tiny_model: LoadedModel) -> None:
    fresh, warm = make_runner(tiny_model), make_runner(tiny_model)
    for num_slots in (1, NUM_SLOTS):
        warm_up(
            warm,
            max_num_seqs=num_slots,
            max_model_len=MAX_MODEL_LEN,
            block_size=BLOCK_SIZE,
            vocab_size=VOCAB_SIZE,
        )
    assert warm.num_live == 0
    sequences = list(tenants(Sampling(temperature=0.8)).values())
    assert generate(warm, sequences, chunk=9) == generate(fresh, sequences, chunk=9)


# --- the loop ------------------------------------------------------------------------------------


class Script:
    """Frames for the loop, sent before it runs; its answers, read afterwards."""

    def __init__(self, runner: HostRunner) -> None:
        ours, self._theirs = socket.socketpair()
        self.welcomes = 0
        self.totals = StepTotals()
        self._pipe = Pipe(ours)
        self.executor = Executor(runner, self._pipe, self.totals, self._on_welcome)

    def _on_welcome(self) -> None:
        self.welcomes += 1

    def send(self, *messages: worker_pb2.AttachResponse) -> None:
        for message in messages:
            self.send_frame(message.SerializeToString())

    def send_frame(self, frame: bytes) -> None:
        self._theirs.sendall(len(frame).to_bytes(4, "little") + frame)

    def answers(self) -> list[worker_pb2.AttachRequest | None]:
        """Everything the executor has sent; None stands for a mark, the wish to leave is left out."""
        self._pipe.close()
        other = Pipe(self._theirs)
        frames: list[worker_pb2.AttachRequest | None] = []
        while True:
            try:
                frame = other.receive(0.0)
            except PipeClosedError:
                return frames
            if frame != END:
                frames.append(worker_pb2.AttachRequest.FromString(frame) if frame else None)

    def close(self) -> None:
        self._pipe.close()
        self._theirs.close()


@pytest.fixture
def script(tiny_model: LoadedModel) -> Iterator[Script]:
    script = Script(make_runner(tiny_model))
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


def test_the_transports_end_is_reported(script: Script) -> None:
    script.send(welcome(1))
    script._theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(PipeClosedError):
        script.executor.run(never)
