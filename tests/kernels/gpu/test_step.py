"""A plan's writes and a step's inputs, against `kernels.step_tables`."""

from dataclasses import fields

import pytest
import torch

from kernels import step_tables
from kernels.gpu import step
from kernels.step_tables import SlotTables, StepInputs

NUM_SLOTS, MAX_TOKENS = 9, 40


def random_words(*shape: int, seed: int, device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(0, 1000, shape, generator=generator, dtype=torch.int32)
    return words.to(device)


def make_slots(device: torch.device) -> SlotTables:
    """Slots at every position; the fourth and the null slot have ended."""
    done = torch.zeros(NUM_SLOTS + 1, dtype=torch.int32, device=device)
    done[[3, NUM_SLOTS]] = 1
    return SlotTables(
        tokens=random_words(NUM_SLOTS + 1, MAX_TOKENS + 1, seed=1, device=device),
        blocks=random_words(NUM_SLOTS + 1, 5, seed=2, device=device),
        position=torch.arange(0, 4 * (NUM_SLOTS + 1), 4, dtype=torch.int32, device=device),
        done=done,
    )


def make_inputs(rows: int, tokens: int, device: torch.device) -> StepInputs:
    """Buffers full of what must not be read."""

    def poison(count: int) -> torch.Tensor:
        return torch.full((count,), -77, dtype=torch.int32, device=device)

    return StepInputs(
        poison(tokens), poison(tokens), poison(rows + 1), poison(rows), poison(rows), poison(rows)
    )


def same(ours: object, theirs: object) -> bool:
    names = [field.name for field in fields(ours)]  # type: ignore[arg-type]
    return all(torch.equal(getattr(ours, name), getattr(theirs, name)) for name in names)


@pytest.mark.parametrize("count", [1, 17, 1023, 1024, 1025])
def test_every_write_lands_and_nothing_else(count: int, device: torch.device) -> None:
    arena = random_words(3000, seed=3, device=device)
    addresses = torch.randperm(3000, generator=torch.Generator().manual_seed(count))[:count]
    words = random_words(count, seed=4, device=device)
    writes = torch.stack((addresses.to(device).int(), words)).contiguous()
    expected = arena.clone()
    step_tables.apply_writes(expected, writes)
    step.apply_writes(arena, writes)
    assert torch.equal(arena, expected)


def test_writes_in_another_shape_are_refused(device: torch.device) -> None:
    arena = torch.zeros(8, dtype=torch.int32, device=device)
    with pytest.raises(ValueError, match=r"writes has shape \(3, 2\)"):
        step.apply_writes(arena, arena[:6].view(3, 2))


@pytest.mark.parametrize("order", [[0], [8, 3, 0, 5], [2, 9, 9, 9], [9], [*range(9), *[9] * 150]])
def test_decode_rows_take_their_slots_newest_token(order: list[int], device: torch.device) -> None:
    rows = len(order)
    named = torch.tensor(order, dtype=torch.int32, device=device)
    slots, expected_slots = make_slots(device), make_slots(device)
    inputs, expected = (make_inputs(rows + 2, rows + 2, device) for _ in range(2))
    step_tables.decode_inputs(named, expected_slots, expected)
    step.decode_inputs(named, slots, inputs)
    assert same(inputs, expected)
    assert same(slots, expected_slots)
    assert slots.position[0] == (1 if 0 in order else 0)


def test_more_rows_than_the_inputs_hold_are_refused(device: torch.device) -> None:
    with pytest.raises(ValueError, match="order has 3 rows; the inputs hold 2"):
        step.decode_inputs(
            torch.zeros(3, dtype=torch.int32, device=device),
            make_slots(device),
            make_inputs(2, 2, device),
        )


@pytest.mark.parametrize(
    ("num_decodes", "chunks"),
    [
        (0, [(1, 1)]),
        (2, [(5, 5), (1, 17), (3, 40)]),
        (3, [(40, 40)]),
    ],
)
def test_chunks_take_the_newest_tokens_of_their_context(
    num_decodes: int, chunks: list[tuple[int, int]], device: torch.device
) -> None:
    lengths = [1] * num_decodes + [new for new, _ in chunks]
    contexts = [7] * num_decodes + [context for _, context in chunks]
    slots = make_slots(device)

    def inputs() -> StepInputs:
        made = make_inputs(len(lengths), sum(lengths), device)
        bounds = torch.tensor([0, *lengths]).cumsum(0)
        made.cu_seqlens.copy_(bounds)
        made.seq_lens.copy_(torch.tensor(contexts))
        made.row_slot.copy_(torch.arange(len(lengths)) + 1)
        return made

    ours, expected = inputs(), inputs()
    step_tables.chunk_inputs(num_decodes, max(lengths), slots, expected)
    step.chunk_inputs(num_decodes, max(lengths), slots, ours)
    assert same(ours, expected)
    assert (ours.token_ids[:num_decodes] == -77).all(), "decode rows are not its business"
