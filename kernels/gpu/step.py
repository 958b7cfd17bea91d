"""A plan's writes and a step's inputs on the device: `kernels.step_tables` in Triton.

    arena[address[i]] = word[i]                                              apply_writes
    token_ids[r], positions[r], … = the newest token of slot order[r]        decode_inputs
    token_ids[t], positions[t] = the newest tokens of a chunk's context      chunk_inputs

Sizes that change from step to step are not specialized on: nothing is compiled once steps run.
"""

import torch
import triton
import triton.language as tl

from kernels.step_tables import SlotTables, StepInputs

WRITES_PER_PROGRAM = 1024
ROWS_PER_PROGRAM = 128
TOKENS_PER_PROGRAM = 512


@triton.jit(do_not_specialize=["num_writes"])
def apply_writes_kernel(arena, writes, num_writes, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = index < num_writes
    address = tl.load(writes + index, valid, 0)
    word = tl.load(writes + num_writes + index, valid, 0)
    tl.store(arena + address, word, valid)


@triton.jit(do_not_specialize=["num_rows", "null_slot"])
def decode_inputs_kernel(
    order,
    tokens,
    position,
    done,
    token_ids,
    positions,
    seq_lens,
    row_slot,
    new_position,
    num_rows,
    null_slot,
    tokens_stride,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = row < num_rows
    slot = tl.load(order + row, valid, 0)
    in_use = valid & (slot != null_slot)
    live = in_use & (tl.load(done + slot, in_use, 1) == 0)
    here = tl.load(position + slot, live, 0)
    token = tl.load(tokens + slot.to(tl.int64) * tokens_stride + here, live, 0)
    tl.store(token_ids + row, token, valid)
    tl.store(positions + row, here, valid)
    tl.store(seq_lens + row, here + 1, valid)
    tl.store(row_slot + row, tl.where(live, slot, null_slot), valid)
    tl.store(new_position + row, here + 1, valid)
    tl.store(position + slot, here + 1, live)


@triton.jit(do_not_specialize=["first_row"])
def chunk_inputs_kernel(
    tokens,
    cu_seqlens,
    seq_lens,
    row_slot,
    token_ids,
    positions,
    first_row,
    tokens_stride,
    BLOCK: tl.constexpr,
):
    row = first_row + tl.program_id(0)
    start = tl.load(cu_seqlens + row)
    length = tl.load(cu_seqlens + row + 1) - start
    offset = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    valid = offset < length
    position = tl.load(seq_lens + row) - length + offset
    slot = tl.load(row_slot + row).to(tl.int64)
    token = tl.load(tokens + slot * tokens_stride + position, valid, 0)
    tl.store(token_ids + start + offset, token, valid)
    tl.store(positions + start + offset, position, valid)


def apply_writes(arena: torch.Tensor, writes: torch.Tensor) -> None:
    """`kernels.step_tables.apply_writes`."""
    if writes.ndim != 2 or writes.shape[0] != 2 or not writes.is_contiguous():
        raise ValueError(f"writes has shape {tuple(writes.shape)}; it must be [2, count]")
    count = writes.shape[1]
    grid = (triton.cdiv(count, WRITES_PER_PROGRAM),)
    apply_writes_kernel[grid](arena, writes, count, BLOCK=WRITES_PER_PROGRAM)


def decode_inputs(order: torch.Tensor, slots: SlotTables, inputs: StepInputs) -> None:
    """`kernels.step_tables.decode_inputs`."""
    count = order.shape[0]
    if count > inputs.seq_lens.shape[0]:
        raise ValueError(f"order has {count} rows; the inputs hold {inputs.seq_lens.shape[0]}")
    grid = (triton.cdiv(count, ROWS_PER_PROGRAM),)
    decode_inputs_kernel[grid](
        order,
        slots.tokens,
        slots.position,
        slots.done,
        inputs.token_ids,
        inputs.positions,
        inputs.seq_lens,
        inputs.row_slot,
        inputs.new_position,
        count,
        slots.null_slot,
        slots.tokens.stride(0),
        BLOCK=ROWS_PER_PROGRAM,
    )


def chunk_inputs(first_row: int, max_chunk: int, slots: SlotTables, inputs: StepInputs) -> None:
    """`kernels.step_tables.chunk_inputs`."""
    num_rows = inputs.seq_lens.shape[0]
    grid = (num_rows - first_row, triton.cdiv(max_chunk, TOKENS_PER_PROGRAM))
    chunk_inputs_kernel[grid](
        slots.tokens,
        inputs.cu_seqlens,
        inputs.seq_lens,
        inputs.row_slot,
        inputs.token_ids,
        inputs.positions,
        first_row,
        slots.tokens.stride(0),
        BLOCK=TOKENS_PER_PROGRAM,
    )
