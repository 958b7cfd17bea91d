"""Choosing and storing the tokens of a step's rows, each by what its slot says.

For a row of a live slot, with `kernels.sampling`'s steps on its logits:

    1. to 4.   bias, stop tokens banned while new_position < ban_until, penalties
    grammar    l[t] = -∞ for tokens that the slot's grammar does not allow next
    5. to 9.   temperature, min-p, top-k, top-p, and the draw with noise(seed, new_position)

    tokens[slot, new_position] = token          output_count[slot, token] += 1 where penalized
    finish = ERROR   when the model's logits hold a NaN or +∞, when nothing is left to choose from,
                     or when the slot is invalid; the token means nothing then
             STOP    else when the token is one of stop_ids
             LENGTH  else when the sequence now holds `limit` tokens
             0       else
    done[slot] = 1 when finish > 0

A row of the null slot, or of a slot that is done, has token -1 and finish 0, and changes nothing.
The logits stay as they are: log-probabilities are taken of them afterwards.

This is the specification of `kernels.gpu.sampler`.
"""

from dataclasses import dataclass

import torch

from kernels import sampling as steps
from kernels.sampling_inputs import DrawParams, PenaltyTables
from kernels.step_tables import SlotSampling, SlotTables

STOP, LENGTH, ERROR = 1, 2, 4
"""Values of finish, those of `quire.v1.FinishReason`."""

NO_TOKEN = -1


@dataclass(frozen=True)
class GrammarMasks:
    """What each slot's grammar allows next.

    Attributes:
        constrained: [slots] int32; 0: the slot has no grammar.
        allowed: [slots, ceil(vocab_size / 32)] int32, bit t % 32 of word t // 32: token t may come.
    """

    constrained: torch.Tensor
    allowed: torch.Tensor

    @classmethod
    def empty(cls, num_slots: int, vocab_size: int, device: torch.device) -> "GrammarMasks":
        """Of slots without a grammar."""
        return cls(
            constrained=torch.zeros(num_slots, dtype=torch.int32, device=device),
            allowed=torch.zeros(num_slots, num_words(vocab_size), dtype=torch.int32, device=device),
        )

    @staticmethod
    def num_bytes(num_slots: int, vocab_size: int) -> int:
        """What `empty` takes."""
        return num_slots * (1 + num_words(vocab_size)) * torch.int32.itemsize


def num_words(vocab_size: int) -> int:
    """Words of 32 bits that hold one bit for each token."""
    return -(-vocab_size // 32)


def packed(tokens: torch.Tensor) -> torch.Tensor:
    """One bit for each token: [..., vocab_size] bool to [..., ceil(vocab_size / 32)] int32."""
    spare = num_words(tokens.shape[-1]) * 32 - tokens.shape[-1]
    bits = torch.nn.functional.pad(tokens, (0, spare)).reshape(*tokens.shape[:-1], -1, 32)
    place = torch.arange(32, dtype=torch.int32, device=tokens.device)
    return torch.sum(bits.int() << place, dim=-1, dtype=torch.int32)


def unpacked(words: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """The inverse of `packed`."""
    place = torch.arange(32, dtype=torch.int32, device=words.device)
    return ((words[..., None] >> place) & 1).flatten(-2)[..., :vocab_size].bool()


def count_known_tokens(
    sampling: SlotSampling, slot: int, token_ids: torch.Tensor, num_prompt_tokens: int
) -> None:
    """What the penalties of a slot's new sequence have seen. Waits for nothing on the device.

    Args:
        sampling: in_prompt and output_count are changed.
        slot: where the sequence goes.
        token_ids: [known tokens] int64, on the device; each inside the vocabulary.
        num_prompt_tokens: the first so many are the prompt, the others are output.
    """
    prompt, output = token_ids[:num_prompt_tokens], token_ids[num_prompt_tokens:]
    count = sampling.output_count[slot]
    in_prompt = torch.zeros_like(count, dtype=torch.bool).index_fill_(0, prompt, value=True)
    sampling.in_prompt[slot] = packed(in_prompt)
    count.zero_().index_add_(0, output, torch.ones_like(output, dtype=torch.int32))


def sample_and_commit(
    logits: torch.Tensor,
    slot: torch.Tensor,
    new_position: torch.Tensor,
    sampling: SlotSampling,
    slots: SlotTables,
    token_id: torch.Tensor,
    finish: torch.Tensor,
    grammar: GrammarMasks | None = None,
) -> None:
    """One token for each row, stored where the next step finds it.

    Args:
        logits: [rows, vocab_size] float32, bfloat16 or float16.
        slot: [rows] int32, whose row it is; the null slot for padding. A live slot is named once.
        new_position: [rows] int32, the index that the token takes in its sequence.
        sampling: output_count is changed.
        slots: tokens and done are changed.
        token_id: [rows] int32, written; -1 where the row is not live.
        finish: [rows] integer, written.
        grammar: what may come next; None: anything.
    """
    at, place = slot.long(), new_position.long()
    live = (at != slots.null_slot) & (slots.done[at] == 0)
    token_id.fill_(NO_TOKEN)
    finish.fill_(0)
    rows = live.nonzero()[:, 0]
    at, place = at[rows], place[rows]
    raw = logits[rows].float()
    adjusted = _adjusted(raw, at, place, sampling, grammar)
    broken = (raw.isnan() | (raw == torch.inf)).any(dim=1)
    failed = broken | ~adjusted.amax(dim=1).isfinite()
    token = _chosen(adjusted.masked_fill(failed[:, None], 0.0), at, place, sampling)
    token[failed] = 0

    ended = torch.where(place + 1 >= sampling.limit[at], LENGTH, 0)
    ended[(token[:, None] == sampling.stop_ids[at]).any(dim=1)] = STOP
    ended[failed | (sampling.invalid[at] > 0)] = ERROR
    token_id[rows], finish[rows] = token.int(), ended.to(finish.dtype)
    slots.tokens[at, place] = token.int()
    slots.done[at] = (ended > 0).int()
    counted = _penalized(sampling, at)
    sampling.output_count[at[counted], token[counted]] += 1


def _adjusted(
    raw: torch.Tensor,
    at: torch.Tensor,
    place: torch.Tensor,
    sampling: SlotSampling,
    grammar: GrammarMasks | None,
) -> torch.Tensor:
    """Steps 1 to 4 and the grammar."""
    logits, vocab_size = raw.clone(), raw.shape[1]
    banned = torch.where(place < sampling.ban_until[at], -torch.inf, 0.0)
    for ids, values in (
        (sampling.bias_ids[at], sampling.bias[at]),
        (sampling.stop_ids[at], banned[:, None].expand(len(at), sampling.stop_ids.shape[1])),
    ):
        row, entry = ((ids >= 0) & (ids < vocab_size)).nonzero(as_tuple=True)
        steps.add_at_(logits, row, ids[row, entry].long(), values[row, entry])
    rows = _penalized(sampling, at).nonzero()[:, 0]
    if len(rows):
        slot = at[rows]
        tables = PenaltyTables(unpacked(sampling.in_prompt, vocab_size), sampling.output_count)
        penalties = torch.stack(
            (sampling.repetition[slot], sampling.presence[slot], sampling.frequency[slot])
        )
        logits[rows] = steps.penalize_specification(logits[rows], slot, tables, penalties)
    if grammar is not None:
        forbidden = ~unpacked(grammar.allowed[at], vocab_size)
        logits[(grammar.constrained[at] > 0)[:, None] & forbidden] = -torch.inf
    return logits


def _penalized(sampling: SlotSampling, at: torch.Tensor) -> torch.Tensor:
    repeats = sampling.repetition[at] != 1
    return repeats | (sampling.presence[at] != 0) | (sampling.frequency[at] != 0)


def _chosen(
    logits: torch.Tensor, at: torch.Tensor, place: torch.Tensor, sampling: SlotSampling
) -> torch.Tensor:
    """Steps 5 to 9."""
    token = logits.argmax(dim=1)  # the first of several
    rows = (sampling.temperature[at] > 0).nonzero()[:, 0]
    drawn = at[rows]
    params = DrawParams(
        temperature=sampling.temperature[drawn],
        top_k=sampling.top_k[drawn].long(),
        top_p=sampling.top_p[drawn],
        min_p=sampling.min_p[drawn],
        seed=sampling.seed[drawn],
    )
    token[rows] = steps.draw_specification(logits[rows], params, place[rows])
    return token
