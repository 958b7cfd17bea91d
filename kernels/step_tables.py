"""What a device keeps of every slot between steps, and how a step's inputs come from it.

All of it is one arena of 32-bit words with named regions, so that whatever a plan changes is one
list of (address, word) writes, however many tables it touches:

    tokens        [slots, max_model_len + 1]   known so far; the column past the end is never read
    blocks        [slots, max_blocks]          block tables
    position      [slots]                      tokens whose KV exists = the next decode position
    done          [slots]                      1: ended on the device, masked until retired
    …             [slots, …]                   how each slot samples (`SlotSampling`)
    order         [rows]                       the decode set, in batch order
    token_ids …   [tokens], [rows]             the step's inputs, written by the functions below

The last slot is the *null slot*: never live, its block table all zeros. Rows that pad a batch and
rows that have ended name it: they write to the null block and read from there.

The functions are the specification of `kernels.gpu.step`.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class SlotTables:
    """What a sequence is, by slot; all int32, the last row is the null slot's.

    Attributes:
        tokens: [slots, max_model_len + 1].
        blocks: [slots, max_blocks].
        position: [slots].
        done: [slots].
    """

    tokens: torch.Tensor
    blocks: torch.Tensor
    position: torch.Tensor
    done: torch.Tensor

    @property
    def null_slot(self) -> int:
        """The slot that no sequence takes."""
        return self.position.shape[0] - 1


@dataclass(frozen=True)
class StepInputs:
    """The rows of one step, in buffers at fixed places; all int32.

    Attributes:
        token_ids: [tokens].
        positions: [tokens].
        cu_seqlens: [rows + 1].
        seq_lens: [rows].
        row_slot: [rows], whose block table the row uses.
        new_position: [rows], of rows that sample: the index that the new token takes.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    cu_seqlens: torch.Tensor
    seq_lens: torch.Tensor
    row_slot: torch.Tensor
    new_position: torch.Tensor

    def of(self, num_rows: int, num_tokens: int) -> "StepInputs":
        """The same buffers, as long as one step."""
        return StepInputs(
            token_ids=self.token_ids[:num_tokens],
            positions=self.positions[:num_tokens],
            cu_seqlens=self.cu_seqlens[: num_rows + 1],
            seq_lens=self.seq_lens[:num_rows],
            row_slot=self.row_slot[:num_rows],
            new_position=self.new_position[:num_rows],
        )


def apply_writes(arena: torch.Tensor, writes: torch.Tensor) -> None:
    """arena[writes[0, i]] = writes[1, i].

    Args:
        arena: [words] int32; changed in place.
        writes: [2, count] int32, contiguous: addresses, all different, and words.
    """
    arena[writes[0].long()] = writes[1]


def decode_inputs(order: torch.Tensor, slots: SlotTables, inputs: StepInputs) -> None:
    """One token for each row: its slot's newest; the slot's position moves on.

    Rows of slots that have ended become null rows: token 0 at position 0 of the null slot.

    Args:
        order: [rows] int32, the slot of each row; the null slot for padding. A live slot is named
            once.
        slots: position is changed in place.
        inputs: the first `rows` entries of all but cu_seqlens are written.
    """
    count = order.shape[0]
    slot = order.long()
    live = (slot != slots.null_slot) & (slots.done[slot] == 0)
    position = slots.position[slot] * live
    inputs.token_ids[:count] = slots.tokens[slot, position.long()] * live
    inputs.positions[:count] = position
    inputs.seq_lens[:count] = position + 1
    inputs.row_slot[:count] = torch.where(live, order, slots.null_slot)
    inputs.new_position[:count] = position + 1
    slots.position[slot[live]] += 1


def chunk_inputs(first_row: int, max_chunk: int, slots: SlotTables, inputs: StepInputs) -> None:
    """Token ids and positions of the rows from `first_row` on: the newest of each row's context.

    Args:
        first_row: rows before it are decode rows.
        max_chunk: tokens of the longest of these rows, or more.
        slots: read.
        inputs: of these rows, cu_seqlens, seq_lens and row_slot are read, token_ids and positions
            are written; exactly as long as the step.
    """
    bounds, lengths = inputs.cu_seqlens.tolist(), inputs.seq_lens.tolist()
    for row in range(first_row, len(lengths)):
        start, end = bounds[row], bounds[row + 1]
        positions = torch.arange(lengths[row] - (end - start), lengths[row])
        inputs.positions[start:end] = positions.to(inputs.positions.device)
        inputs.token_ids[start:end] = slots.tokens[inputs.row_slot[row], positions]


@dataclass(frozen=True)
class SlotSampling:
    """How the sequence in each slot chooses its tokens; the last row is the null slot's.

    `kernels.sampling` says what the values mean.

    Attributes:
        temperature: [slots] float32; 0 is greedy.
        top_k: [slots] int32; 0 keeps all.
        top_p: [slots] float32; 1 keeps all.
        min_p: [slots] float32; 0 keeps all.
        seed: [slots] int64, bit pattern of the unsigned seed.
        repetition: [slots] float32; 1 changes nothing.
        presence: [slots] float32; 0 changes nothing.
        frequency: [slots] float32; 0 changes nothing.
        ban_until: [slots] int32: stop tokens are banned while a new token's index is below it.
        limit: [slots] int32: a sequence ends when it holds so many tokens.
        invalid: [slots] int32; 1: the sequence cannot be computed, it ends with an error.
        stop_ids: [slots, most stop tokens] int32, filled up with -1.
        bias_ids: [slots, most biased tokens] int32, filled up with -1.
        bias: [slots, most biased tokens] float32.
        in_prompt: [slots, ceil(vocab_size / 32)] int32, bit t % 32 of word t // 32: token t is in
            the prompt. Kept of sequences with penalties alone.
        output_count: [slots, vocab_size] int32, occurrences in the output. Likewise.
    """

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    seed: torch.Tensor
    repetition: torch.Tensor
    presence: torch.Tensor
    frequency: torch.Tensor
    ban_until: torch.Tensor
    limit: torch.Tensor
    invalid: torch.Tensor
    stop_ids: torch.Tensor
    bias_ids: torch.Tensor
    bias: torch.Tensor
    in_prompt: torch.Tensor
    output_count: torch.Tensor
