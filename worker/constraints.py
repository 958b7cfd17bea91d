"""What may come next in each slot: grammars, allowed tokens and bad words, as one mask of bits.

    allowed    only these tokens, if any are named
    bad words  not the last token of a word whose others have just come
    grammar    only tokens with which the output can still become one of the language's; a stop
               token only where the output is complete, and, while it has fewer than `min_tokens`
               tokens, only if nothing else is left

Masks follow from the tokens alone, so every rank makes the same, and so does a worker that is given
the sequence anew. A mask without any token ends its sequence with an error: the grammar has failed
or cost too much, or the rules contradict each other.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from worker.grammars import GrammarError, Grammars, Matcher, Words
from worker.plans import Admission, BatchPlan, Int32Column, Sampling
from worker.slot_counts import BoolColumn, Int64Column

_ALL = np.int32(-1)


@dataclass(slots=True)
class _Rules:
    """Those of one slot's sequence.

    Attributes:
        base: [words] what the rules that never change let through.
        words: bad words of several tokens: the last one, by those before it.
        output: the output's last tokens, as many as the longest bad word has before its last.
        num_output: tokens of it.
        pending: the grammar, while it is being compiled.
        matcher: the sequence's place in its grammar.
    """

    sampling: Sampling
    generation: int
    base: Words
    words: dict[tuple[int, ...], list[int]]
    output: list[int]
    num_output: int
    pending: Future[Matcher] | None = None
    matcher: Matcher | None = None
    unread: list[int] = field(default_factory=list)
    failed: bool = False
    stale: bool = True
    """The mask is not that of the newest token."""

    @property
    def changes(self) -> bool:
        """Whether the mask depends on the output."""
        return bool(self.words) or bool(self.sampling.grammar)


class Constraints:
    """The masks of all slots.

    Args:
        max_num_seqs: slots.
        vocab_size: columns of the logits.
        grammars: the compiler; None: a sequence with a grammar ends with an error.

    Attributes:
        masks: [slots, ceil(vocab_size / 32)] int32, bit t % 32 of word t // 32: token t may come.
    """

    def __init__(self, max_num_seqs: int, vocab_size: int, grammars: Grammars | None) -> None:
        self._vocab_size = vocab_size
        self._grammars = grammars
        self._rules: dict[int, _Rules] = {}
        self._has_rules: BoolColumn = np.zeros(max_num_seqs, np.bool_)
        self.masks: Words = np.zeros((max_num_seqs, -(-vocab_size // 32)), np.int32)

    # --- plan -> rules ---------------------------------------------------------------------------

    def reset(self) -> None:
        """Forgets every sequence."""
        self._rules.clear()
        self._has_rules[:] = False

    def apply(self, plan: BatchPlan) -> None:
        """Retires and admits; grammars are compiled meanwhile. The plan agrees with the mirror."""
        for slot in plan.retire.tolist():
            self._forget(slot)
        for admission in plan.admit:
            self._forget(admission.slot)
            if admission.sampling.is_constrained:
                self._rules[admission.slot] = self._rules_of(admission)
                self._has_rules[admission.slot] = True

    def _forget(self, slot: int) -> None:
        self._rules.pop(slot, None)
        self._has_rules[slot] = False

    def _rules_of(self, admission: Admission) -> _Rules:
        sampling = admission.sampling
        output = admission.token_ids[admission.num_prompt_tokens :]
        words: dict[tuple[int, ...], list[int]] = {}
        for *beginning, last in sampling.bad_words:
            if beginning:
                words.setdefault(tuple(beginning), []).append(last)
        longest = max(map(len, words), default=0)
        rules = _Rules(
            sampling=sampling,
            generation=admission.generation,
            base=self._base(sampling),
            words=words,
            output=output[len(output) - min(len(output), longest) :].tolist(),
            num_output=len(output),
        )
        if sampling.grammar and self._grammars is None:
            rules.failed = True
        elif sampling.grammar and self._grammars is not None:
            rules.pending = self._grammars.begin(sampling.grammar, output)
        return rules

    def _base(self, sampling: Sampling) -> Words:
        may_come = np.zeros(self.masks.shape[1] * 32, np.bool_)
        if sampling.allowed_token_ids:
            may_come[self._known(sampling.allowed_token_ids)] = True
        else:
            may_come[: self._vocab_size] = True
        may_come[self._known([word[0] for word in sampling.bad_words if len(word) == 1])] = False
        return np.packbits(may_come, bitorder="little").view(np.int32)

    def _known(self, token_ids: Sequence[int]) -> Int64Column:
        ids = np.array(token_ids, np.int64)
        return ids[(ids >= 0) & (ids < self._vocab_size)]

    # --- rules -> masks --------------------------------------------------------------------------

    def among(self, slots: Int64Column) -> Int64Column:
        """Indices of those slots whose sequence has rules."""
        return np.flatnonzero(self._has_rules[slots])

    def follow_output(self, slots: Int64Column) -> bool:
        """Whether a mask of these slots depends on the tokens before."""
        return any(self._rules[slot].changes for slot in slots.tolist())

    def advance(
        self,
        slots: npt.NDArray[np.integer],
        generation: Int32Column,
        token_id: Int32Column,
        finish: npt.NDArray[np.integer],
    ) -> None:
        """A step's tokens, columns that share an index; slots without rules may be among them."""
        for index in np.flatnonzero(self._has_rules[slots]).tolist():
            slot = int(slots[index])
            rules = self._rules[slot]
            if rules.generation != generation[index]:
                continue
            if finish[index]:
                self._forget(slot)  # whatever its rows yield later means nothing
            elif rules.changes:
                self._note(rules, int(token_id[index]))

    def _note(self, rules: _Rules, token: int) -> None:
        rules.stale = True
        rules.num_output += 1
        if rules.words:
            rules.output = [*rules.output, token][-max(map(len, rules.words)) :]
        if rules.sampling.grammar:
            rules.unread.append(token)

    def refresh(self, slots: Int64Column) -> Int64Column:
        """Makes the masks of these slots, which have rules, those of their newest token.

        Waits for a grammar that is still being compiled. Returns the slots whose mask has changed.
        """
        stale = [slot for slot in slots.tolist() if self._rules[slot].stale]
        matching = [slot for slot in stale if self._reach(self._rules[slot])]
        self._match(matching)
        for slot in stale:
            rules = self._rules[slot]
            rules.stale = False
            if rules.failed:
                self.masks[slot] = 0
            elif rules.sampling.grammar:
                self._restrict(slot, rules)
            else:
                self.masks[slot] = rules.base
                self._ban_words(slot, rules)
        return np.array(stale, np.int64)

    def _reach(self, rules: _Rules) -> bool:
        """Brings the matcher to the newest token; whether there is one that has not failed."""
        if not rules.sampling.grammar or rules.failed:
            return False
        try:
            if rules.pending is not None:
                rules.matcher = rules.pending.result()
                rules.pending = None
            assert rules.matcher is not None
            if rules.unread:
                rules.matcher.advance(rules.unread)
        except GrammarError:
            rules.failed = True
        rules.unread = []
        return not rules.failed

    def _match(self, slots: list[int]) -> None:
        if not slots:
            return
        assert self._grammars is not None
        matchers = [self._rules[slot].matcher for slot in slots]
        try:
            self._grammars.fill(self.masks, slots, [m for m in matchers if m is not None])
        except GrammarError:
            for slot in slots:
                self._rules[slot].failed = True

    def _restrict(self, slot: int, rules: _Rules) -> None:
        """The grammar's mask is there: the other rules, and the ends."""
        assert self._grammars is not None
        assert rules.matcher is not None
        mask = self.masks[slot]
        try:
            rules.matcher.check()
            may_end = rules.matcher.may_end()
        except GrammarError:
            rules.failed = True
            mask[:] = 0
            return
        mask &= rules.base
        self._ban_words(slot, rules)
        stops = self._known(rules.sampling.stop_token_ids)
        _clear(mask, self._known(self._grammars.ends()))
        _clear(mask, stops)
        if may_end and (rules.num_output >= rules.sampling.min_tokens or not mask.any()):
            _set(mask, stops)

    def _ban_words(self, slot: int, rules: _Rules) -> None:
        for length in {len(beginning) for beginning in rules.words}:
            if length <= len(rules.output):
                banned = rules.words.get(tuple(rules.output[-length:]), ())
                _clear(self.masks[slot], self._known(banned))


def _clear(mask: Words, token_ids: Int64Column) -> None:
    np.bitwise_and.at(mask, token_ids >> 5, ~_bit(token_ids))


def _set(mask: Words, token_ids: Int64Column) -> None:
    np.bitwise_or.at(mask, token_ids >> 5, _bit(token_ids))


def _bit(token_ids: Int64Column) -> Words:
    return np.left_shift(np.uint32(1), (token_ids & 31).astype(np.uint32)).view(np.int32)
