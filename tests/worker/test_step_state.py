"""The mirror against an oracle that keeps each sequence as a plain list."""

import random
from dataclasses import dataclass, field

import numpy as np
import pytest

from kernels.batch import AttentionBatch
from tests.worker.builders import MAX_MODEL_LEN, VOCAB_SIZE, admission, column, plan
from worker.plans import (
    Admission,
    BatchPlan,
    FinishReason,
    PlanError,
    Sampling,
)
from worker.step_state import SampledColumns, SampledRows, StepState

NUM_SLOTS = 6
NUM_BLOCKS = 200
BLOCK_SIZE = 4


def make_state() -> StepState:
    return StepState(
        max_num_seqs=NUM_SLOTS,
        max_model_len=MAX_MODEL_LEN,
        num_blocks=NUM_BLOCKS,
        block_size=BLOCK_SIZE,
        vocab_size=VOCAB_SIZE,
    )


def run(state: StepState, step: BatchPlan) -> tuple[AttentionBatch, SampledRows]:
    state.apply(step)
    return state.next_batch(step)


def commit(
    state: StepState, rows: SampledRows, tokens: list[int], failed: list[bool] | None = None
) -> SampledColumns:
    has_failed = np.array(failed or [False] * len(tokens), np.bool_)
    return state.commit(rows, np.array(tokens, np.int64), has_failed)


def table_of(batch: AttentionBatch, row: int, length: int) -> list[int]:
    return batch.block_table[row, :length].tolist()


# --- single stories ------------------------------------------------------------------------------


def test_a_prompt_then_its_decode() -> None:
    state = make_state()
    batch, rows = run(
        state, plan(1, admit=[admission(3, [10, 11, 12, 13, 14], [7, 9])], chunks=[(3, 0, 5)])
    )
    assert batch.token_ids.tolist() == [10, 11, 12, 13, 14]
    assert batch.positions.tolist() == [0, 1, 2, 3, 4]
    assert batch.cu_seqlens.tolist() == [0, 5]
    assert batch.seq_lens.tolist() == [5]
    assert batch.block_table.tolist() == [[7, 9]]
    assert (batch.num_decodes, batch.sample_index.tolist()) == (0, [4])
    assert rows.position.tolist() == [5]
    commit(state, rows, [20])

    batch, rows = run(state, plan(2, decode=[3]))
    assert batch.token_ids.tolist() == [20]
    assert batch.positions.tolist() == [5]
    assert batch.cu_seqlens.tolist() == [0, 1]
    assert batch.seq_lens.tolist() == [6]
    assert batch.block_table.tolist() == [[7, 9]]
    assert (batch.num_decodes, batch.sample_index.tolist()) == (1, [0])
    columns = commit(state, rows, [21])
    assert columns.slot.tolist() == [3]
    assert columns.token_id.tolist() == [21]
    assert columns.finish.tolist() == [0]


def test_only_the_last_chunk_samples() -> None:
    state = make_state()
    step = plan(1, admit=[admission(0, range(10), [1, 2, 3])], chunks=[(0, 0, 6)])
    batch, rows = run(state, step)
    assert batch.sample_index.tolist() == []
    assert len(rows.slots) == 0
    batch, rows = run(state, plan(2, chunks=[(0, 6, 4)]))
    assert batch.positions.tolist() == [6, 7, 8, 9]
    assert batch.seq_lens.tolist() == [10]
    assert batch.sample_index.tolist() == [3]


def test_decode_rows_come_before_chunks_and_both_sample() -> None:
    state = make_state()
    _, rows = run(
        state,
        plan(1, admit=[admission(0, [5, 6], [1]), admission(1, [7], [2])], chunks=[(0, 0, 2)]),
    )
    commit(state, rows, [8])
    batch, rows = run(
        state,
        plan(2, admit=[admission(4, [9, 9, 9], [3])], decode=[0], chunks=[(4, 0, 2), (1, 0, 1)]),
    )
    assert batch.token_ids.tolist() == [8, 9, 9, 7]
    assert batch.positions.tolist() == [2, 0, 1, 0]
    assert batch.cu_seqlens.tolist() == [0, 1, 3, 4]
    assert batch.seq_lens.tolist() == [3, 2, 1]
    assert batch.block_table.tolist() == [[1], [3], [2]]
    assert batch.sample_index.tolist() == [0, 3]
    assert rows.slots.tolist() == [0, 1]


def test_a_stopped_slot_is_masked_until_it_is_retired() -> None:
    state = make_state()
    stops = Sampling(stop_token_ids=(50, 51))
    step = plan(
        1,
        admit=[admission(0, [5], [1, 2], sampling=stops), admission(1, [6], [3], sampling=stops)],
        chunks=[(0, 0, 1), (1, 0, 1)],
    )
    _, rows = run(state, step)
    columns = commit(state, rows, [51, 9])
    assert columns.finish.tolist() == [FinishReason.STOP, 0]
    assert state.num_live == 1

    batch, rows = run(state, plan(2, decode=[0, 1]))
    assert batch.positions.tolist() == [0, 1]
    assert batch.seq_lens.tolist() == [1, 2]
    assert batch.block_table.tolist() == [[0], [3]]
    columns = commit(state, rows, [33, 34])
    assert columns.slot.tolist() == [1]
    assert columns.token_id.tolist() == [34]
    assert columns.row.tolist() == [1]

    _, rows = run(state, plan(3, retire=[0], decode=[1]))
    assert rows.slots.tolist() == [1]
    assert state.num_live == 1


def test_a_sequence_ends_by_length_at_its_limit_even_at_the_models() -> None:
    state = make_state()
    full = list(range(MAX_MODEL_LEN - 1))
    blocks = range(1, MAX_MODEL_LEN // BLOCK_SIZE + 1)
    short = admission(1, [5, 6], [90], max_total=4)
    step = plan(
        1,
        admit=[admission(0, full, blocks), short],
        chunks=[(0, 0, len(full)), (1, 0, 2)],
    )
    _, rows = run(state, step)
    assert commit(state, rows, [1, 1]).finish.tolist() == [FinishReason.LENGTH, 0]
    # A plan that was under way still names the second; the first could not go on anyway.
    _, rows = run(state, plan(2, decode=[1]))
    assert commit(state, rows, [1]).finish.tolist() == [FinishReason.LENGTH]


def test_a_stop_token_at_the_limit_is_a_stop() -> None:
    state = make_state()
    step = plan(
        1,
        admit=[admission(0, [5], [1], max_total=2, sampling=Sampling(stop_token_ids=(9,)))],
        chunks=[(0, 0, 1)],
    )
    _, rows = run(state, step)
    assert commit(state, rows, [9]).finish.tolist() == [FinishReason.STOP]


def test_a_row_that_failed_ends_by_error_alone() -> None:
    state = make_state()
    step = plan(
        1,
        admit=[admission(0, [5], [1]), admission(1, [5], [2])],
        chunks=[(0, 0, 1), (1, 0, 1)],
    )
    _, rows = run(state, step)
    assert commit(state, rows, [3, 4], [True, False]).finish.tolist() == [FinishReason.ERROR, 0]


def test_a_token_outside_the_vocabulary_ends_its_sequence_alone() -> None:
    state = make_state()
    step = plan(
        1,
        admit=[admission(0, [5, VOCAB_SIZE], [1]), admission(1, [5], [2])],
        chunks=[(0, 0, 2), (1, 0, 1)],
    )
    batch, rows = run(state, step)
    assert batch.token_ids.max() < VOCAB_SIZE
    assert commit(state, rows, [3, 4]).finish.tolist() == [FinishReason.ERROR, 0]


def test_a_slots_next_tenant_has_its_own_generation_stops_and_life() -> None:
    state = make_state()
    first = admission(2, [5], [1], generation=4, sampling=Sampling(stop_token_ids=(8, 9, 10)))
    _, rows = run(state, plan(1, admit=[first], chunks=[(2, 0, 1)]))
    assert commit(state, rows, [10]).generation.tolist() == [4]
    second = admission(2, [6], [1], generation=5, sampling=Sampling(stop_token_ids=(7,)))
    _, rows = run(state, plan(2, retire=[2], admit=[second], chunks=[(2, 0, 1)]))
    columns = commit(state, rows, [10])
    assert columns.generation.tolist() == [5]
    assert columns.finish.tolist() == [0]


def test_reset_forgets_everything() -> None:
    state = make_state()
    run(state, plan(1, admit=[admission(0, [5], [1])], chunks=[(0, 0, 1)]))
    run(state, plan(2, decode=[0]))
    state.reset()
    assert state.num_live == 0
    batch, _ = run(state, plan(1, admit=[admission(0, [7], [4])], chunks=[(0, 0, 1)]))
    assert batch.token_ids.tolist() == [7]
    assert batch.block_table.tolist() == [[4]]


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (plan(2, retire=[1]), "retire_slot"),
        (plan(2, retire=[NUM_SLOTS]), "retire_slot"),
        (plan(2, admit=[admission(0, [5], [1])]), "not free"),
        (plan(2, admit=[admission(NUM_SLOTS, [5], [1])]), "not free"),
        (plan(2, admit=[admission(1, [], [1])]), "0 tokens"),
        (plan(2, admit=[admission(1, [5], [1], num_computed=1)]), "1 of them computed"),
        (plan(2, admit=[admission(1, [5], [1], max_total=MAX_MODEL_LEN + 1)]), "max_total_tokens"),
        (plan(2, admit=[admission(1, [5], [1], generation=2**31)]), "generation 2147483648; col"),
        (plan(2, admit=[admission(1, [5], [NUM_BLOCKS + 1])]), "id is not"),
        (plan(2, append=[(0, 1, 0)]), "id is not"),
        (plan(2, append=[(0, MAX_MODEL_LEN // BLOCK_SIZE, 5)]), "beyond"),
        (plan(2, append=[(1, 0, 5)]), "append_slot"),
        (plan(2, decode=[0]), "before its prompt"),
        (plan(2, decode=[3]), "decode_slot"),
        (plan(2, decode=[-1]), "decode_slot"),
        (plan(2, chunks=[(3, 0, 1)]), "chunk_slot"),
        (plan(2, chunks=[(0, 0, 2)]), "does not start"),
        (plan(2, chunks=[(0, 2, 0)]), "does not start"),
        (plan(2, chunks=[(0, 2, 5)]), "known tokens"),
        (plan(2, chunks=[(0, 2, 4)]), "no block"),
        (plan(2, append=[(0, 1, 6)], chunks=[(0, 2, 4)]), None),
    ],
)
def test_a_plan_that_contradicts_the_mirror_is_refused(
    bad: BatchPlan, complaint: str | None
) -> None:
    state = make_state()
    run(state, plan(1, admit=[admission(0, range(6), [1])], chunks=[(0, 0, 2)]))
    if complaint is None:
        run(state, bad)
        return
    with pytest.raises(PlanError, match=complaint):
        run(state, bad)


def test_a_retired_slot_may_not_stay_in_the_decode_set() -> None:
    state = make_state()
    _, rows = run(state, plan(1, admit=[admission(0, [5], [1])], chunks=[(0, 0, 1)]))
    commit(state, rows, [6])
    run(state, plan(2, decode=[0]))
    with pytest.raises(PlanError, match="decode_slot"):
        run(state, plan(3, retire=[0]))


def test_decoding_past_the_blocks_or_the_limit_is_refused() -> None:
    for tenant, complaint in (
        (admission(0, range(BLOCK_SIZE), [1]), "no block"),
        (admission(0, range(3), [1], max_total=4), "max_total_tokens"),
    ):
        state = make_state()
        _, rows = run(state, plan(1, admit=[tenant], chunks=[(0, 0, len(tenant.token_ids))]))
        commit(state, rows, [6])
        with pytest.raises(PlanError, match=complaint):
            run(state, plan(2, decode=[0]))


# --- any mixture, against the oracle -------------------------------------------------------------


@dataclass
class Tenant:
    """One slot's sequence, twice: as it is, and as the scheduler thinks while results are out."""

    tokens: list[int]
    max_total: int
    stops: tuple[int, ...]
    generation: int
    computed: int
    planned_computed: int
    planned_known: int
    blocks: list[int] = field(default_factory=list)
    ended: bool = False
    decoding: bool = False


class Oracle:
    """Makes random plans and says what each must compute."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.tenants: dict[int, Tenant] = {}
        self.generation = 0
        self.step_id = 0
        self.decode: list[int] = []

    def next_plan(self) -> tuple[BatchPlan, list[tuple[int, int, int]]]:
        """A plan and its rows as (slot, first position, number of tokens)."""
        self.step_id += 1
        retire = [slot for slot in self.tenants if self._leaves(slot)]
        for slot in retire:
            del self.tenants[slot]
        admit = [
            self._admit(slot)
            for slot in range(NUM_SLOTS)
            if slot not in self.tenants and self.random.random() < 0.3
        ]
        chunks = []
        for slot, tenant in self.tenants.items():
            if not tenant.decoding and self.random.random() < 0.7:
                rest = tenant.planned_known - tenant.planned_computed
                chunks.append((slot, tenant.planned_computed, self.random.randint(1, rest)))
        decode = [slot for slot, tenant in self.tenants.items() if tenant.decoding]
        self.random.shuffle(decode)
        same = sorted(decode) == sorted(self.decode) and not retire
        if same:
            decode = self.decode
        rows = [(slot, self.tenants[slot].planned_computed, 1) for slot in decode] + chunks
        append = [entry for row in rows for entry in self._append(*row)]
        step = plan(
            self.step_id,
            retire=retire,
            admit=admit,
            append=append,
            decode=None if same else decode,
            chunks=chunks,
        )
        self.decode = decode
        return step, rows

    def _leaves(self, slot: int) -> bool:
        tenant = self.tenants[slot]
        no_room = tenant.planned_known >= tenant.max_total
        return no_room or self.random.random() < (0.5 if tenant.ended else 0.03)

    def _admit(self, slot: int) -> Admission:
        self.generation += 1
        tokens = [self.random.randrange(VOCAB_SIZE) for _ in range(self.random.randint(1, 14))]
        computed = self.random.choice([0, 0, (len(tokens) - 1) // BLOCK_SIZE * BLOCK_SIZE])
        tenant = Tenant(
            tokens=tokens,
            max_total=len(tokens) + self.random.randint(1, 12),
            stops=tuple(self.random.sample(range(VOCAB_SIZE), self.random.randint(0, 60))),
            generation=self.generation,
            computed=computed,
            planned_computed=computed,
            planned_known=len(tokens),
            blocks=[self._block() for _ in range(-(-computed // BLOCK_SIZE))],
        )
        self.tenants[slot] = tenant
        return admission(
            slot,
            tokens,
            tenant.blocks,
            generation=self.generation,
            max_total=tenant.max_total,
            num_computed=computed,
            sampling=Sampling(stop_token_ids=tenant.stops),
        )

    def _block(self) -> int:
        return self.random.randint(1, NUM_BLOCKS)

    def _append(self, slot: int, start: int, length: int) -> list[tuple[int, int, int]]:
        tenant, entries = self.tenants[slot], []
        while len(tenant.blocks) * BLOCK_SIZE < start + length:
            entries.append((slot, len(tenant.blocks), self._block()))
            tenant.blocks.append(entries[-1][2])
        return entries

    def check_batch(self, batch: AttentionBatch, rows: list[tuple[int, int, int]]) -> list[int]:
        """Compares a batch with the rows it should have; returns the slots that must sample."""
        cu_seqlens, sampling, sample_index = [0], [], []
        assert batch.num_rows == len(rows)
        for row, (slot, start, length) in enumerate(rows):
            tenant = self.tenants[slot]
            begin, end = cu_seqlens[-1], cu_seqlens[-1] + length
            cu_seqlens.append(end)
            tenant.planned_computed = start + length
            if tenant.planned_computed == tenant.planned_known:
                sampling.append(slot)
                sample_index.append(end - 1)
                tenant.planned_known += 1
                tenant.decoding = True
            table = batch.block_table[row].tolist()
            if tenant.ended:
                assert (int(batch.seq_lens[row]), int(batch.positions[begin])) == (1, 0)
                assert set(table) == {0}
                continue
            assert batch.token_ids[begin:end].tolist() == tenant.tokens[start : start + length]
            assert batch.positions[begin:end].tolist() == list(range(start, start + length))
            assert batch.seq_lens[row] == start + length
            needed = (start + length - 1) // BLOCK_SIZE + 1
            assert table[:needed] == tenant.blocks[:needed]
        assert batch.cu_seqlens.tolist() == cu_seqlens
        assert batch.sample_index.tolist() == sample_index
        return sampling

    def check_result(self, slots: list[int], tokens: list[int], result: SampledColumns) -> None:
        """Plays the tokens into the live sequences and compares the news."""
        expected = []
        for row, (slot, token) in enumerate(zip(slots, tokens, strict=True)):
            tenant = self.tenants[slot]
            if tenant.ended:
                continue
            tenant.tokens.append(token)
            finish = 0
            if token in tenant.stops:
                finish = FinishReason.STOP
            elif len(tenant.tokens) == tenant.max_total:
                finish = FinishReason.LENGTH
            tenant.ended = finish > 0
            expected.append((slot, tenant.generation, token, finish, row))
        columns = (result.slot, result.generation, result.token_id, result.finish, result.row)
        assert list(zip(*(c.tolist() for c in columns), strict=True)) == expected


@pytest.mark.parametrize("seed", range(8))
def test_any_mixture_of_plans_matches_the_oracle(seed: int) -> None:
    state, oracle = make_state(), Oracle(seed)
    num_masked = num_chunked = 0
    for _ in range(150):
        step, expected = oracle.next_plan()
        batch, rows = run(state, step)
        slots = oracle.check_batch(batch, expected)
        assert rows.slots.tolist() == slots
        num_masked += int((~rows.live).sum())
        num_chunked += len(step.chunk_slot)
        tokens = [oracle.random.randrange(VOCAB_SIZE) for _ in slots]
        if slots:
            oracle.check_result(slots, tokens, commit(state, rows, tokens))
        assert state.num_live == sum(not tenant.ended for tenant in oracle.tenants.values())
    assert num_masked > 5
    assert num_chunked > 50


def test_columns_of_no_rows_are_empty_and_typed() -> None:
    none = SampledColumns.none()
    assert [c.dtype for c in (none.slot, none.token_id, none.finish)] == [
        np.int32,
        np.int32,
        np.uint8,
    ]
    assert column().dtype == np.int32
