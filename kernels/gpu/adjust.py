"""Steps 1 to 4 of `kernels.sampling` and the grammar, on a block of one row's logits in registers.

Biased and banned tokens are a short list per slot, which would cost a comparison of every entry
with every token. A block first finds the entries that fall into it, nearly always none, and visits
those alone.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from kernels.step_sampling import GrammarMasks
from kernels.step_tables import SlotSampling

ENTRIES = tl.constexpr(128)


class Rules(NamedTuple):
    """What a kernel reads of `SlotSampling` and `GrammarMasks`, of which the fields are named.

    Those of the grammar are read only where the kernel has GRAMMAR.
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
    constrained: torch.Tensor
    allowed: torch.Tensor
    max_stops: int
    max_biased: int

    @classmethod
    def of(cls, sampling: SlotSampling, grammar: GrammarMasks | None) -> "Rules":
        """The same tensors."""
        return cls(
            **vars(sampling),
            constrained=sampling.invalid if grammar is None else grammar.constrained,
            allowed=sampling.in_prompt if grammar is None else grammar.allowed,
            max_stops=sampling.stop_ids.shape[1],
            max_biased=sampling.bias_ids.shape[1],
        )


class Needs(NamedTuple):
    """Which of the steps change anything in a row: asked once, however many blocks follow."""

    biased: tl.tensor
    banned: tl.tensor
    penalized: tl.tensor
    constrained: tl.tensor


@triton.jit
def needs_of(slot, position, rules, GRAMMAR: tl.constexpr):
    """The `Needs` of a row whose token takes index `position`."""
    first_biased = rules.bias_ids + slot.to(tl.int64) * rules.max_biased
    constrained = False
    if GRAMMAR:
        constrained = tl.load(rules.constrained + slot) != 0
    return Needs(
        tl.load(first_biased, rules.max_biased > 0, -1) >= 0,
        position < tl.load(rules.ban_until + slot),
        is_penalized(slot, rules),
        constrained,
    )


@triton.jit
def is_penalized(slot, rules):
    """Whether the slot's penalties do anything."""
    repetition = tl.load(rules.repetition + slot)
    presence = tl.load(rules.presence + slot)
    frequency = tl.load(rules.frequency + slot)
    return (repetition != 1) | (presence != 0) | (frequency != 0)


@triton.jit
def load_logits(logits, token, vocab_size):
    """A row's logits of some tokens, float32; -∞ for tokens beyond the vocabulary."""
    return tl.load(logits + token, token < vocab_size, float("-inf")).to(tl.float32)


@triton.jit
def adjusted(logit, first, slot, needs, rules, vocab_size, BLOCK: tl.constexpr):
    """The logits of the tokens `first` to `first + BLOCK - 1`, float32, after steps 1 to 4."""
    token = first + tl.arange(0, BLOCK)
    slot = slot.to(tl.int64)
    if needs.biased:
        ids, values = rules.bias_ids, rules.bias
        logit = _add_entries(logit, token, first, BLOCK, ids, values, slot, rules.max_biased)
    if needs.banned:
        ids = rules.stop_ids
        logit = _add_entries(logit, token, first, BLOCK, ids, None, slot, rules.max_stops)
    if needs.penalized:
        logit = _penalized(logit, token, slot, rules, vocab_size)
    if needs.constrained:
        may_come = _bit(rules.allowed, token, slot, vocab_size)
        logit = tl.where(may_come, logit, float("-inf"))
    return logit


@triton.jit
def _add_entries(logit, token, first, BLOCK: tl.constexpr, ids, values, slot, width):
    """Adds values[slot, i] to the logit of token ids[slot, i]; -∞ where there are no values."""
    past = first + BLOCK
    start = 0
    while start < width:
        entry = start + tl.arange(0, ENTRIES)
        id_ = tl.load(ids + slot * width + entry, entry < width, -1)
        if values is None:
            value = tl.full([ENTRIES], float("-inf"), tl.float32)
        else:
            value = tl.load(values + slot * width + entry, id_ >= 0, 0.0)
        here = (id_ >= first) & (id_ < past)
        visited = tl.min(tl.where(here, id_, past))
        while visited < past:
            added = tl.sum(tl.where(id_ == visited, value, 0.0))
            logit += tl.where(token == visited, added, 0.0)
            visited = tl.min(tl.where(here & (id_ > visited), id_, past))
        # An id of -1 ends the list.
        start = tl.where(tl.min(id_) < 0, width, start + ENTRIES)
    return logit


@triton.jit
def _penalized(logit, token, slot, rules, vocab_size):
    """Steps 3 and 4."""
    repetition = tl.load(rules.repetition + slot)
    inside = token < vocab_size
    count = tl.load(rules.output_count + slot * vocab_size + token, inside, 0)
    seen = (count > 0) | _bit(rules.in_prompt, token, slot, vocab_size)
    repeated = tl.where(logit > 0, tl.div_rn(logit, repetition), logit * repetition)
    logit = tl.where(seen, repeated, logit)
    frequency, presence = tl.load(rules.frequency + slot), tl.load(rules.presence + slot)
    return logit - (frequency * count + tl.where(count > 0, presence, 0.0))


@triton.jit
def _bit(words, token, slot, vocab_size):
    """Bit `token` of a slot's row of words."""
    word = words + slot * tl.cdiv(vocab_size, 32) + token // 32
    return ((tl.load(word, token < vocab_size, 0) >> (token % 32)) & 1) != 0
