"""The tables of `kernels.step_tables` on a device, and a plan's changes to them as writes.

Every table is a region of one arena of 32-bit words. So whatever a plan changes, in however many
tables, becomes one list of (address, word) pairs: one copy to the device and one kernel.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt
import torch

from kernels.step_sampling import GrammarMasks, num_words
from kernels.step_tables import SlotSampling, SlotTables, StepInputs
from protos.limits import MAX_BIASED_TOKENS, MAX_STOP_TOKENS
from worker.plans import Admission, Float32Column, Int32Column

Words = npt.NDArray[np.int32]

_ALIGNMENT = 16  # words: loads of whole cache lines, and any two words may be read as an int64
_NO_TOKEN = -1


@dataclass(frozen=True)
class Region:
    """A table's place in the arena.

    Attributes:
        start: address of its first word.
        shape: in words.
    """

    start: int
    shape: tuple[int, ...]

    @property
    def row_words(self) -> int:
        """Words of one row."""
        return prod(self.shape[1:])

    def row(self, index: int) -> int:
        """Address of the first word of a row."""
        return self.start + index * self.row_words


class Layout:
    """Where each table is.

    Args:
        max_num_seqs: slots, the null slot not counted.
        max_model_len: tokens a sequence may hold.
        max_blocks: entries of a block table.
        max_num_batched_tokens: tokens of a step, at most.
        vocab_size: token ids are 0 to vocab_size - 1.

    Attributes:
        num_words: of the arena.
    """

    def __init__(
        self,
        *,
        max_num_seqs: int,
        max_model_len: int,
        max_blocks: int,
        max_num_batched_tokens: int,
        vocab_size: int,
    ) -> None:
        slots, rows, tokens = max_num_seqs + 1, max_num_seqs, max_num_batched_tokens
        self.num_words = 0
        self.tokens = self._region(slots, max_model_len + 1)
        self.blocks = self._region(slots, max_blocks)
        self.position = self._region(slots)
        self.done = self._region(slots)
        self.temperature = self._region(slots)
        self.top_k = self._region(slots)
        self.top_p = self._region(slots)
        self.min_p = self._region(slots)
        self.seed = self._region(slots, 2)
        self.repetition = self._region(slots)
        self.presence = self._region(slots)
        self.frequency = self._region(slots)
        self.ban_until = self._region(slots)
        self.limit = self._region(slots)
        self.invalid = self._region(slots)
        self.stop_ids = self._region(slots, MAX_STOP_TOKENS)
        self.bias_ids = self._region(slots, MAX_BIASED_TOKENS)
        self.bias = self._region(slots, MAX_BIASED_TOKENS)
        self.in_prompt = self._region(slots, num_words(vocab_size))
        self.output_count = self._region(slots, vocab_size)
        self.constrained = self._region(slots)
        self.allowed = self._region(slots, num_words(vocab_size))
        self.order = self._region(rows)
        self.token_ids = self._region(tokens)
        self.positions = self._region(tokens)
        self.cu_seqlens = self._region(rows + 1)
        self.seq_lens = self._region(rows)
        self.row_slot = self._region(rows)
        self.new_position = self._region(rows)
        self.sample_index = self._region(rows)
        self.sample_slot = self._region(rows)
        self.logprob_row = self._region(rows)
        if self.num_words >= 2**31:
            raise ValueError(
                f"the step tables would take {self.num_words} words; addresses have 31 bits: "
                "lower --max-num-seqs or --max-model-len"
            )

    def _region(self, *shape: int) -> Region:
        region = Region(self.num_words, shape)
        self.num_words += -(-prod(shape) // _ALIGNMENT) * _ALIGNMENT
        return region


class Writes:
    """What a plan changes, gathered on the host: no address twice."""

    def __init__(self) -> None:
        self._addresses: list[npt.NDArray[np.integer]] = []
        self._words: list[Words] = []

    def put(self, address: int, words: npt.NDArray[np.integer]) -> None:
        """Words in a row, from an address on."""
        self.scatter(np.arange(address, address + len(words)), words)

    def put_one(self, address: int, word: int | np.integer) -> None:
        """One word."""
        self.scatter(np.array([address]), np.array([word]))

    def put_float(self, address: int, value: float) -> None:
        """One word that holds a float32."""
        self.put(address, np.array([value], np.float32).view(np.int32))

    def scatter(self, addresses: npt.NDArray[np.integer], words: npt.NDArray[np.integer]) -> None:
        """Each word at its own address."""
        if len(words):
            self._addresses.append(addresses)
            self._words.append(words.astype(np.int32, copy=False))

    def columns(self) -> Words:
        """[2, count]: addresses and words."""
        if not self._words:
            return np.empty((2, 0), np.int32)
        addresses = np.concatenate(self._addresses).astype(np.int32, copy=False)
        return np.stack((addresses, np.concatenate(self._words)))


class DeviceTables:
    """The arena, its tables as tensors, and the writes that change them.

    Attributes:
        arena: [words] int32.
        slots: what each sequence is.
        sampling: how each chooses its tokens.
        masks: which tokens each may choose.
        order: [rows] the decode set.
        sample_slot: [rows] of a mixed step, slot of each row that samples.
        sample_index: [rows] of a mixed step, token row of each row that samples.
        logprob_row: [rows] which rows want log-probabilities.
        vocab_size: token ids are 0 to vocab_size - 1.
    """

    def __init__(self, layout: Layout, device: torch.device, vocab_size: int) -> None:
        self._layout = layout
        self.vocab_size = vocab_size
        self.arena = torch.zeros(layout.num_words, dtype=torch.int32, device=device)
        table = self._table
        self.slots = SlotTables(
            tokens=table(layout.tokens),
            blocks=table(layout.blocks),
            position=table(layout.position),
            done=table(layout.done),
        )
        self.sampling = SlotSampling(
            temperature=table(layout.temperature).view(torch.float32),
            top_k=table(layout.top_k),
            top_p=table(layout.top_p).view(torch.float32),
            min_p=table(layout.min_p).view(torch.float32),
            seed=table(layout.seed).view(torch.int64)[:, 0],
            repetition=table(layout.repetition).view(torch.float32),
            presence=table(layout.presence).view(torch.float32),
            frequency=table(layout.frequency).view(torch.float32),
            ban_until=table(layout.ban_until),
            limit=table(layout.limit),
            invalid=table(layout.invalid),
            stop_ids=table(layout.stop_ids),
            bias_ids=table(layout.bias_ids),
            bias=table(layout.bias).view(torch.float32),
            in_prompt=table(layout.in_prompt),
            output_count=table(layout.output_count),
        )
        self.masks = GrammarMasks(
            constrained=table(layout.constrained), allowed=table(layout.allowed)
        )
        self.inputs = StepInputs(
            token_ids=table(layout.token_ids),
            positions=table(layout.positions),
            cu_seqlens=table(layout.cu_seqlens),
            seq_lens=table(layout.seq_lens),
            row_slot=table(layout.row_slot),
            new_position=table(layout.new_position),
        )
        self.order = table(layout.order)
        self.sample_index = table(layout.sample_index)
        self.sample_slot = table(layout.sample_slot)
        self.logprob_row = table(layout.logprob_row)
        self.slots.done[self.slots.null_slot] = 1

    def _table(self, region: Region) -> torch.Tensor:
        words = self.arena[region.start : region.start + prod(region.shape)]
        return words.view(region.shape)

    # --- what a plan changes ---------------------------------------------------------------------

    def admit(self, writes: Writes, admission: Admission) -> None:
        """A sequence takes a slot: all that the tables say of it, but its position and counts."""
        at, slot, sampling = self._layout, admission.slot, admission.sampling
        tokens = admission.token_ids
        # A token that the model does not have ends the one sequence, not the worker.
        valid = (tokens >= 0) & (tokens < self.vocab_size)
        fits = (
            len(sampling.stop_token_ids) <= MAX_STOP_TOKENS
            and len(sampling.bias) <= MAX_BIASED_TOKENS
        )
        writes.put(at.tokens.row(slot), np.where(valid, tokens, 0))
        writes.put(at.blocks.row(slot), admission.blocks)
        writes.put_one(at.done.row(slot), 0)
        writes.put_one(at.invalid.row(slot), not (valid.all() and fits))
        writes.put_one(at.limit.row(slot), admission.max_total_tokens)
        writes.put_one(
            at.ban_until.row(slot), admission.num_prompt_tokens + sampling.num_unstoppable
        )
        writes.put_float(at.temperature.row(slot), sampling.temperature)
        writes.put_one(at.top_k.row(slot), sampling.top_k)
        writes.put_float(at.top_p.row(slot), sampling.top_p)
        writes.put_float(at.min_p.row(slot), sampling.min_p)
        writes.put(at.seed.row(slot), np.array([admission.seed], np.uint64).view(np.int32))
        writes.put_float(at.repetition.row(slot), sampling.repetition_penalty)
        writes.put_float(at.presence.row(slot), sampling.presence_penalty)
        writes.put_float(at.frequency.row(slot), sampling.frequency_penalty)
        writes.put_one(at.constrained.row(slot), sampling.is_constrained)
        self._put_lists(writes, admission)

    def _put_lists(self, writes: Writes, admission: Admission) -> None:
        at, slot, sampling = self._layout, admission.slot, admission.sampling
        stops = np.full(MAX_STOP_TOKENS, _NO_TOKEN, np.int32)
        count = min(len(sampling.stop_token_ids), MAX_STOP_TOKENS)
        stops[:count] = sampling.stop_token_ids[:count]
        writes.put(at.stop_ids.row(slot), stops)
        known = [
            (token, bias)
            for token, bias in zip(sampling.bias_token_ids, sampling.bias, strict=True)
            if 0 <= token < self.vocab_size
        ][:MAX_BIASED_TOKENS]
        ids = np.full(len(known) + (len(known) < MAX_BIASED_TOKENS), _NO_TOKEN, np.int32)
        ids[: len(known)] = [token for token, _ in known]
        biases: Float32Column = np.array([bias for _, bias in known], np.float32)
        writes.put(at.bias_ids.row(slot), ids)  # the first -1 ends the list
        writes.put(at.bias.row(slot), biases.view(np.int32))

    def append(
        self, writes: Writes, slots: Int32Column, index: Int32Column, blocks: Int32Column
    ) -> None:
        """Block tables grow: table[slot][index] = block."""
        region = self._layout.blocks
        writes.scatter(region.start + slots.astype(np.int64) * region.row_words + index, blocks)

    def set_order(self, writes: Writes, slots: npt.NDArray[np.integer], num_rows: int) -> None:
        """The decode set, filled up with null rows to `num_rows`."""
        order = np.full(num_rows, self.slots.null_slot, np.int32)
        order[: len(slots)] = slots
        writes.put(self._layout.order.start, order)

    def set_rows(
        self,
        writes: Writes,
        *,
        cu_seqlens: npt.NDArray[np.integer],
        chunk_slots: npt.NDArray[np.integer],
        chunk_ends: npt.NDArray[np.integer],
    ) -> None:
        """The rows of a mixed step: bounds of all; context and slot of the chunks."""
        at, first = self._layout, len(cu_seqlens) - 1 - len(chunk_slots)
        writes.put(at.cu_seqlens.start, cu_seqlens)
        writes.put(at.seq_lens.row(first), chunk_ends)
        writes.put(at.row_slot.row(first), chunk_slots)

    def set_positions(self, writes: Writes, positions: Mapping[int, int]) -> None:
        """How many tokens of some slots have their KV once the plan's chunks are computed."""
        slots = np.fromiter(positions, np.int64, len(positions))
        computed = np.fromiter(positions.values(), np.int64, len(positions))
        writes.scatter(self._layout.position.start + slots, computed)

    def set_sampled(
        self,
        writes: Writes,
        *,
        index: npt.NDArray[np.integer],
        slots: npt.NDArray[np.integer],
        first_chunk: int,
        new_positions: npt.NDArray[np.integer],
    ) -> None:
        """The rows of a mixed step that sample; from `first_chunk` on they are chunks."""
        at = self._layout
        writes.put(at.sample_index.start, index)
        writes.put(at.sample_slot.start, slots)
        writes.put(at.new_position.row(first_chunk), new_positions)

    def set_logprob_rows(self, writes: Writes, rows: npt.NDArray[np.integer]) -> None:
        """Which of the sampled rows want log-probabilities."""
        writes.put(self._layout.logprob_row.start, rows)
