"""Runners over the small model, and whole generations through their plans."""

import queue
from collections.abc import Callable, Sequence

import torch

from kernels.ops import DEVICE_STEP_REFERENCE, DeviceStepOps
from tests.worker.builders import MAX_MODEL_LEN, VOCAB_SIZE, admission, plan
from worker.constraints import Constraints
from worker.device_runner import DeviceRunner
from worker.device_tables import DeviceTables, Layout
from worker.executor import Model, Runner
from worker.grammars import Grammars
from worker.host_runner import HostRunner
from worker.kv_cache import KVCache
from worker.lane import Lane, make_lane
from worker.loader import LoadedModel
from worker.plans import Admission, BatchPlan, Sampling, StepResult
from worker.sampler import Sampler
from worker.slot_counts import SlotCounts
from worker.step_state import StepState

BLOCK_SIZE = 8
NUM_BLOCKS = 120
NUM_SLOTS = 16
CPU = torch.device("cpu")

MakeRunner = Callable[[LoadedModel, Model | None], Runner]


def make_host_runner(
    loaded: LoadedModel, model: Model | None = None, grammars: Grammars | None = None
) -> HostRunner:
    """One that has finished a step when it returns."""
    return HostRunner(
        model or loaded.model,
        KVCache(loaded.config, NUM_BLOCKS, BLOCK_SIZE, loaded.dtype, CPU),
        StepState(
            max_num_seqs=NUM_SLOTS,
            max_model_len=MAX_MODEL_LEN,
            num_blocks=NUM_BLOCKS,
            block_size=BLOCK_SIZE,
            vocab_size=VOCAB_SIZE,
        ),
        Sampler(max_num_seqs=NUM_SLOTS, vocab_size=VOCAB_SIZE),
        Constraints(NUM_SLOTS, VOCAB_SIZE, grammars),
        loaded.pooler(NUM_SLOTS, CPU),
    )


def make_device_runner(
    loaded: LoadedModel,
    model: Model | None = None,
    *,
    grammars: Grammars | None = None,
    buckets: Sequence[int] = (),
    step_ops: DeviceStepOps = DEVICE_STEP_REFERENCE,
    device: torch.device = CPU,
    lane: Lane | None = None,
) -> DeviceRunner:
    """One that launches; on a CPU its device is the host, and everything has happened at once."""
    counts = SlotCounts(
        max_num_seqs=NUM_SLOTS,
        max_model_len=MAX_MODEL_LEN,
        num_blocks=NUM_BLOCKS,
        block_size=BLOCK_SIZE,
    )
    layout = Layout(
        max_num_seqs=NUM_SLOTS,
        max_model_len=MAX_MODEL_LEN,
        max_blocks=counts.max_blocks,
        max_num_batched_tokens=256,
        vocab_size=VOCAB_SIZE,
    )
    lane = lane or make_lane(device)
    runner = DeviceRunner(
        model or loaded.model,
        KVCache(loaded.config, NUM_BLOCKS, BLOCK_SIZE, loaded.dtype, device),
        counts,
        DeviceTables(layout, device, VOCAB_SIZE),
        lane,
        step_ops,
        Constraints(NUM_SLOTS, VOCAB_SIZE, grammars),
        loaded.pooler(NUM_SLOTS, device, lane),
        NUM_SLOTS,
    )
    runner.capture(buckets)
    return runner


def make_padding_runner(loaded: LoadedModel, model: Model | None = None) -> DeviceRunner:
    """One whose decode steps are padded to 4 or to 16 rows."""
    return make_device_runner(loaded, model, buckets=(4, 16))


def run(runner: Runner, next_plan: BatchPlan) -> StepResult:
    """One plan, and the wait for its result."""
    results: queue.SimpleQueue[StepResult] = queue.SimpleQueue()
    runner.launch(next_plan, 0, results.put)
    return results.get(timeout=60)


def graph_bucket(runner: Runner, num_decodes: int) -> int:
    """What the scheduler would choose for a plan without chunks."""
    buckets = runner.graph_buckets if isinstance(runner, DeviceRunner) else ()
    return next((bucket for bucket in buckets if bucket >= num_decodes > 0), 0)


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


def generate(runner: Runner, sequences: Sequence[Admission], chunk: int) -> dict[int, list[int]]:
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
        bucket = 0 if chunks else graph_bucket(runner, len(decode))
        result = run(
            runner,
            plan(step, admit=admitted, decode=decode, chunks=chunks, graph_bucket=bucket),
        )
        for slot, _, length in chunks:
            progress[slot] += length
        for slot, token in zip(result.slot.tolist(), result.token_id.tolist(), strict=True):
            outputs[slot].append(token)
        ended |= set(result.slot[result.finish > 0].tolist())
        decode = [slot for slot in outputs if outputs[slot] and slot not in ended]
    raise AssertionError("the sequences do not end")
