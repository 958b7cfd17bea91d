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

from kernels.sampling import (
    DrawParams,
    PenaltyTables,
    add_at_,
    draw_specification,
    penalize_specification,
)

STOP, LENGTH, FAILED = 1, 2, 4
"""Why a row ended: a stop token, its length, logits that are not finite."""


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


def sample_and_commit(
    logits: torch.Tensor,
    slot: torch.Tensor,
    new_position: torch.Tensor,
    slots: SlotTables,
    sampling: "SlotSampling",
    out_token: torch.Tensor,
    out_finish: torch.Tensor,
) -> None:
    """Chooses a token for every live row, stores it, and decides who has ended.

    Args:
        logits: [rows, vocab_size] floating point; not changed.
        slot: [rows] int32; rows of the null slot and of slots that have ended are masked.
        new_position: [rows] int32, the index that the new token takes.
        slots: tokens and done are changed in place.
        sampling: output_count is changed in place.
        out_token: [rows] int32, written: the token, -1 in masked rows. Of a row that fails (logits
            not finite, or an invalid slot) it means nothing but is at least 0.
        out_finish: [rows] int32, written: STOP, LENGTH or FAILED, 0 for rows that go on.
    """
    out_token.fill_(-1)
    out_finish.zero_()
    live = torch.nonzero((slot != slots.null_slot) & (slots.done[slot.long()] == 0))[:, 0]
    if not len(live):
        return
    where, position = slot[live].long(), new_position[live].long()
    raw = logits[live].float()
    best = raw.argmax(dim=1)
    failed = ~torch.isfinite(raw.gather(1, best[:, None])[:, 0]) | (sampling.invalid[where] != 0)
    token = _choose(torch.where(failed[:, None], 0.0, raw), where, position, sampling)
    stop = (token[:, None] == sampling.stop_ids[where]).any(dim=1)
    finish = torch.where(position + 1 >= sampling.limit[where], LENGTH, 0)
    finish = torch.where(failed, FAILED, torch.where(stop, STOP, finish))
    slots.tokens[where, position] = token.int()
    slots.done[where] = (finish > 0).int()
    counted = torch.nonzero(sampling.is_penalized(where))[:, 0]
    sampling.output_count[where[counted], token[counted]] += 1
    out_token[live] = token.int()
    out_finish[live] = finish.int()


def _choose(
    logits: torch.Tensor, where: torch.Tensor, position: torch.Tensor, by: "SlotSampling"
) -> torch.Tensor:
    """Steps 1 to 9 of `kernels.sampling`, on a copy of the live rows' logits."""
    row, entry = torch.nonzero(by.bias_ids[where] >= 0, as_tuple=True)
    add_at_(logits, row, by.bias_ids[where][row, entry].long(), by.bias[where][row, entry])
    banned = (by.stop_ids[where] >= 0) & (position < by.ban_until[where])[:, None]
    row, entry = torch.nonzero(banned, as_tuple=True)
    logits[row, by.stop_ids[where][row, entry].long()] = -torch.inf
    penalized = torch.nonzero(by.is_penalized(where))[:, 0]
    if len(penalized):
        of = where[penalized]
        tables = PenaltyTables(by.prompt_mask(of), by.output_count[of])
        penalties = torch.stack((by.repetition[of], by.presence[of], by.frequency[of]))
        each = torch.arange(len(penalized), device=logits.device)
        logits[penalized] = penalize_specification(logits[penalized], each, tables, penalties)
    token = logits.argmax(dim=1)
    drawn = torch.nonzero(by.temperature[where] > 0)[:, 0]
    if len(drawn):
        of = where[drawn]
        params = DrawParams(
            by.temperature[of], by.top_k[of].long(), by.top_p[of], by.min_p[of], by.seed[of]
        )
        token[drawn] = draw_specification(logits[drawn], params, position[drawn])
    return token


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

    def is_penalized(self, slot: torch.Tensor) -> torch.Tensor:
        """[len(slot)] bool: whether what was seen before changes what comes."""
        return (
            (self.repetition[slot] != 1) | (self.presence[slot] != 0) | (self.frequency[slot] != 0)
        )

    def prompt_mask(self, slot: torch.Tensor) -> torch.Tensor:
        """[len(slot), vocab_size] bool: whether a token is in the prompt."""
        bits = torch.arange(32, dtype=torch.int32, device=slot.device)
        spread = (self.in_prompt[slot][:, :, None] >> bits) & 1
        return spread.flatten(1)[:, : self.output_count.shape[1]].bool()
