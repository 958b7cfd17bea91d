"""Chooses a step's tokens: each slot's sampling parameters, and which functions its rows need.

What a set of rows needs is worked out when the set changes, not each step: a batch of greedy rows
costs one argmax. Penalties read tables of token counts, one row per slot, which a step updates by
one entry per row.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from kernels import sampling
from kernels.sampling import TokenLogprobs
from kernels.sampling_inputs import DrawParams, PenaltyTables
from worker.grammars import Words
from worker.plans import Admission, Float32Column, Logprobs, Sampling
from worker.slot_counts import BoolColumn, Int64Column
from worker.step_state import SampledColumns, SampledRows

_tensor = torch.from_numpy


@dataclass(frozen=True)
class RowLogprobs:
    """Log-probabilities of some sampled rows.

    Attributes:
        rows: indices among the step's sampled rows, ascending.
        num_top: alternatives that each of them asked for.
        values: one row each; as many alternatives as the most asked for.
    """

    rows: Int64Column
    num_top: Int64Column
    values: TokenLogprobs


@dataclass(frozen=True)
class Sampled:
    """Tokens of a step's sampled rows; the columns share an index.

    Attributes:
        token_id: what comes next.
        failed: the logits were not finite, or nothing may come; the token means nothing.
        logprobs: of the rows that asked; None when none did.
    """

    token_id: Int64Column
    failed: BoolColumn
    logprobs: RowLogprobs | None


@dataclass(frozen=True)
class RowMasks:
    """What may come next in some rows.

    Attributes:
        rows: indices among the step's sampled rows.
        allowed: [those rows, ceil(vocab_size / 32)] int32, bit t % 32 of word t // 32.
    """

    rows: Int64Column
    allowed: Words


@dataclass(frozen=True)
class _Bias:
    """Additions to single logits; the columns share an index."""

    row: torch.Tensor
    token_id: torch.Tensor
    value: torch.Tensor


@dataclass(frozen=True)
class _Ban:
    """Stop tokens banned in a row while its new token's position is below `until`."""

    row: Int64Column
    token_id: Int64Column
    until: Int64Column


@dataclass(frozen=True)
class _Penalized:
    """Rows with penalties: repetition, presence and frequency, [3, rows] float32."""

    rows: Int64Column
    penalties: npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Random:
    """Rows that draw, and how."""

    rows: Int64Column
    params: DrawParams


@dataclass(frozen=True)
class _Scored:
    """Rows whose log-probabilities are wanted, each with so many alternatives."""

    rows: Int64Column
    num_top: Int64Column


@dataclass(frozen=True)
class _Needs:
    """What one set of rows needs beyond an argmax; None where no row needs it."""

    bias: _Bias | None = None
    ban: _Ban | None = None
    penalized: _Penalized | None = None
    random: _Random | None = None
    scored: _Scored | None = None


class Sampler:
    """Sampling parameters by slot, and the step's choice of tokens.

    Args:
        max_num_seqs: slots.
        vocab_size: columns of the logits.
    """

    def __init__(self, *, max_num_seqs: int, vocab_size: int) -> None:
        self._max_num_seqs = max_num_seqs
        self._vocab_size = vocab_size
        self._sampling = [Sampling()] * max_num_seqs
        self._is_greedy = np.ones(max_num_seqs, np.bool_)
        self._temperature = np.zeros(max_num_seqs, np.float32)
        self._top_k = np.zeros(max_num_seqs, np.int64)
        self._top_p = np.ones(max_num_seqs, np.float32)
        self._min_p = np.zeros(max_num_seqs, np.float32)
        self._seed = np.zeros(max_num_seqs, np.uint64)
        self._penalties = np.zeros((3, max_num_seqs), np.float32)
        self._is_penalized = np.zeros(max_num_seqs, np.bool_)
        self._is_biased = np.zeros(max_num_seqs, np.bool_)
        self._ban_until = np.zeros(max_num_seqs, np.int64)
        self._wants_logprobs = np.zeros(max_num_seqs, np.bool_)
        self._num_logprobs = np.zeros(max_num_seqs, np.int64)
        # Made when a sequence first needs them: slots × vocabulary is large.
        self._tables: PenaltyTables | None = None
        self._needs: _Needs | None = None
        self._needs_of: int | None = None

    def admit(self, admission: Admission) -> None:
        """Takes the parameters of a slot's new sequence."""
        slot, params = admission.slot, admission.sampling
        self._sampling[slot] = params
        self._is_greedy[slot] = params.is_greedy
        self._temperature[slot] = params.temperature
        self._top_k[slot] = params.top_k
        self._top_p[slot] = params.top_p
        self._min_p[slot] = params.min_p
        self._seed[slot] = admission.seed
        self._is_biased[slot] = bool(params.bias)
        self._ban_until[slot] = admission.num_prompt_tokens + params.num_unstoppable
        self._wants_logprobs[slot] = params.num_logprobs is not None
        self._num_logprobs[slot] = params.num_logprobs or 0
        self._penalties[:, slot] = (
            params.repetition_penalty,
            params.presence_penalty,
            params.frequency_penalty,
        )
        self._is_penalized[slot] = params.is_penalized
        if params.is_penalized:
            self._count_known_tokens(admission)

    def _count_known_tokens(self, admission: Admission) -> None:
        if self._tables is None:
            self._tables = PenaltyTables.empty(self._max_num_seqs, self._vocab_size)
        tokens = admission.token_ids
        in_vocabulary = (tokens >= 0) & (tokens < self._vocab_size)
        tokens = np.where(in_vocabulary, tokens, 0)
        prompt = np.zeros(self._vocab_size, np.bool_)
        prompt[tokens[: admission.num_prompt_tokens]] = True
        output = np.bincount(
            tokens[admission.num_prompt_tokens :], minlength=self._vocab_size
        ).astype(np.int32)
        self._tables.in_prompt[admission.slot] = torch.from_numpy(prompt)
        self._tables.output_count[admission.slot] = torch.from_numpy(output)

    def sample(
        self, logits: torch.Tensor, rows: SampledRows, masks: RowMasks | None = None
    ) -> Sampled:
        """Chooses a token for every row.

        Args:
            logits: [rows, vocab_size] float32, contiguous; changed in place.
            rows: whose they are.
            masks: what may come; None: anything.
        """
        needs = self._needs_for(rows)
        token_id = sampling.argmax(logits).numpy()
        # A NaN is what argmax finds first, and an infinity is the largest: one look at the winner
        # tells whether the row is finite where it matters.
        failed = ~np.isfinite(logits.numpy()[np.arange(len(token_id)), token_id])
        scored, random, penalized = needs.scored, needs.random, needs.penalized
        raw = logits[_tensor(scored.rows)] if scored is not None else None
        changed = self._adjust(logits, needs, rows)
        if masks is not None:
            failed[masks.rows] |= self._mask(logits, masks)
            changed = True
        if changed:
            token_id = sampling.argmax(logits).numpy()
        if random is not None:
            token_id[random.rows] = self._draw(logits, random, rows)
        if penalized is not None:
            assert self._tables is not None, "nobody with penalties was admitted"
            where = (rows.slots[penalized.rows], token_id[penalized.rows])
            np.add.at(self._tables.output_count.numpy(), where, rows.live[penalized.rows])
        logprobs = None
        if scored is not None and raw is not None:
            chosen = _tensor(token_id[scored.rows])
            values = sampling.token_logprobs(raw, chosen, int(scored.num_top.max()))
            logprobs = RowLogprobs(scored.rows, scored.num_top, values)
        return Sampled(token_id, failed, logprobs)

    def _adjust(self, logits: torch.Tensor, needs: _Needs, rows: SampledRows) -> bool:
        """Bias, bans and penalties, in place; whether there were any."""
        changed = False
        if needs.bias is not None:
            sampling.add_at_(logits, needs.bias.row, needs.bias.token_id, needs.bias.value)
            changed = True
        ban = needs.ban
        if (
            ban is not None
            and (bans := rows.live[ban.row] & (rows.position[ban.row] < ban.until)).any()
        ):
            value = np.where(bans, -np.inf, 0.0).astype(np.float32)
            sampling.add_at_(logits, _tensor(ban.row), _tensor(ban.token_id), _tensor(value))
            changed = True
        penalized = needs.penalized
        if penalized is not None:
            assert self._tables is not None, "nobody with penalties was admitted"
            row, slot = _tensor(penalized.rows), _tensor(rows.slots[penalized.rows])
            sampling.penalize_(logits, row, slot, self._tables, _tensor(penalized.penalties))
            changed = True
        return changed

    def _mask(self, logits: torch.Tensor, masks: RowMasks) -> BoolColumn:
        """Applies the masks in place; whether nothing is left, for each of their rows.

        Such a row keeps one token, so that whatever is drawn from it is a number.
        """
        bits = np.unpackbits(masks.allowed.view(np.uint8), axis=1, bitorder="little")
        forbidden = _tensor(bits[:, : self._vocab_size] == 0)
        rows = _tensor(masks.rows)
        masked = logits[rows].masked_fill_(forbidden, -torch.inf)
        nothing = masked.amax(dim=1) == -torch.inf
        masked[nothing, 0] = 0.0
        logits[rows] = masked
        return nothing.numpy()

    def _draw(self, logits: torch.Tensor, random: _Random, rows: SampledRows) -> Int64Column:
        every_row = len(random.rows) == len(logits)
        chosen = logits if every_row else logits[_tensor(random.rows)]
        return sampling.draw(chosen, random.params, _tensor(rows.position[random.rows])).numpy()

    def _needs_for(self, rows: SampledRows) -> _Needs:
        if self._needs is None or rows.membership is None or rows.membership != self._needs_of:
            self._needs = self._work_out_needs(rows)
            self._needs_of = rows.membership
        return self._needs

    def _work_out_needs(self, rows: SampledRows) -> _Needs:
        slots = rows.slots
        if self._is_greedy[slots].all():
            return _Needs()
        return _Needs(
            bias=self._bias_of(slots),
            ban=self._ban_of(rows),
            penalized=self._penalized_of(slots),
            random=self._random_of(slots),
            scored=self._scored_of(slots),
        )

    def _penalized_of(self, slots: Int64Column) -> _Penalized | None:
        rows = np.flatnonzero(self._is_penalized[slots])
        return _Penalized(rows, self._penalties[:, slots[rows]]) if len(rows) else None

    def _random_of(self, slots: Int64Column) -> _Random | None:
        rows = np.flatnonzero(self._temperature[slots] > 0)
        if not len(rows):
            return None
        chosen = slots[rows]
        params = DrawParams(
            temperature=_tensor(self._temperature[chosen]),
            top_k=_tensor(self._top_k[chosen]),
            top_p=_tensor(self._top_p[chosen]),
            min_p=_tensor(self._min_p[chosen]),
            seed=_tensor(self._seed[chosen].view(np.int64)),
        )
        return _Random(rows, params)

    def _scored_of(self, slots: Int64Column) -> _Scored | None:
        rows = np.flatnonzero(self._wants_logprobs[slots])
        return _Scored(rows, self._num_logprobs[slots[rows]]) if len(rows) else None

    def _bias_of(self, slots: Int64Column) -> _Bias | None:
        entries = [
            (row, token, bias)
            for row in np.flatnonzero(self._is_biased[slots]).tolist()
            for token, bias in zip(
                self._sampling[slots[row]].bias_token_ids,
                self._sampling[slots[row]].bias,
                strict=True,
            )
            if 0 <= token < self._vocab_size
        ]
        if not entries:
            return None
        row, token, bias = zip(*entries, strict=True)
        value = np.array(bias, np.float32)
        return _Bias(_tensor(np.array(row)), _tensor(np.array(token)), _tensor(value))

    def _ban_of(self, rows: SampledRows) -> _Ban | None:
        until = self._ban_until[rows.slots]
        entries = [
            (row, token)
            for row in np.flatnonzero(rows.live & (rows.position < until)).tolist()
            for token in set(self._sampling[rows.slots[row]].stop_token_ids)
            if 0 <= token < self._vocab_size
        ]
        if not entries:
            return None
        row, token = (np.array(column) for column in zip(*entries, strict=True))
        return _Ban(row, token, until[row])


def logprob_columns(logprobs: RowLogprobs, columns: SampledColumns) -> Logprobs | None:
    """The logprobs of a step's live rows, as the result carries them; None when there are none."""
    alive = np.isin(logprobs.rows, columns.row)
    if not alive.any():
        return None
    values = logprobs.values
    num_top = logprobs.num_top[alive]
    wanted = np.arange(values.top_token_id.shape[1]) < num_top[:, None]
    top_token_id = values.top_token_id.cpu().numpy()[alive][wanted]
    top_logprob: Float32Column = values.top_logprob.cpu().numpy()[alive][wanted]
    return Logprobs(
        row=np.searchsorted(columns.row, logprobs.rows[alive]).astype(np.int32),
        logprob=values.logprob.cpu().numpy()[alive],
        rank=values.rank.cpu().numpy()[alive].astype(np.int32),
        num_top=num_top.astype(np.int32),
        top_token_id=top_token_id.astype(np.int32),
        top_logprob=top_logprob,
    )
