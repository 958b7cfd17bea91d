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
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worker.grammars import GrammarError, Grammars, Matcher, Words
from worker.plans import Admission, BatchPlan, Int32Column, Sampling
from worker.slot_counts import BoolColumn, Int64Column


@dataclass(slots=True)
class _Rules:
    """Those of one slot's sequence.

    Attributes:
        base: [words] what the rules that never change let through.
        words: bad words of several tokens: the last one, by those before it.
        output: its tokens so far.
        num_matched: so many of them the matcher has been told.
        pending: the matcher, while the grammar is being compiled.
        matcher: the sequence's place in its grammar.
        failed: nothing may come any more.
        stale: the mask is not that of the newest token.
    """

    sampling: Sampling
    generation: int
    base: Words
    words: dict[tuple[int, ...], list[int]]
    output: list[int]
    num_matched: int = 0
    pending: Future[Matcher] | None = None
    matcher: Matcher | None = None
    failed: bool = False
    stale: bool = True

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
        words: dict[tuple[int, ...], list[int]] = {}
        for *beginning, last in sampling.bad_words:
            if beginning:
                words.setdefault(tuple(beginning), []).append(last)
        rules = _Rules(
            sampling=sampling,
            generation=admission.generation,
            base=self._base(sampling),
            words=words,
            output=admission.token_ids[admission.num_prompt_tokens :].tolist(),
        )
        if sampling.grammar:
            self._begin(rules)
        return rules

    def _begin(self, rules: _Rules) -> None:
        """Asks for a matcher, in place of one that has failed if there is one."""
        if self._grammars is None:
            rules.failed = True
        else:
            rules.pending = self._grammars.begin(
                rules.sampling.grammar, rules.output, rules.matcher
            )
            rules.num_matched = len(rules.output)

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
                rules.output.append(int(token_id[index]))
                rules.stale = True

    def refresh(self, slots: Int64Column) -> Int64Column:
        """Makes the masks of these slots, which have rules, those of their newest token.

        Waits for a grammar that is still being compiled. Returns the slots whose mask has changed.
        """
        stale = [slot for slot in slots.tolist() if self._rules[slot].stale]
        self._match([slot for slot in stale if self._rules[slot].sampling.grammar])
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

    def _match(self, slots: list[int]) -> None:
        """Writes what the grammars of these slots let through."""
        left = [slot for slot in slots if not self._rules[slot].failed]
        left = self._without_mask(left)
        for slot in left:
            rules = self._rules[slot]
            if rules.matcher is None:
                rules.failed = True  # it cannot be compiled
            else:
                self._begin(rules)
        for slot in self._without_mask([slot for slot in left if not self._rules[slot].failed]):
            self._rules[slot].failed = True

    def _without_mask(self, slots: list[int]) -> list[int]:
        """Those of the slots whose matcher has failed; the others have their masks."""
        matchers: dict[int, Matcher] = {}
        for slot in slots:
            with suppress(GrammarError):
                matchers[slot] = self._reached(self._rules[slot])
        if not matchers:
            return slots
        assert self._grammars is not None
        with suppress(GrammarError):
            self._grammars.fill(self.masks, list(matchers), list(matchers.values()))
            return [slot for slot in slots if slot not in matchers or matchers[slot].has_failed]
        return slots

    def _reached(self, rules: _Rules) -> Matcher:
        """The matcher, told of every token. Raises GrammarError."""
        if rules.pending is not None:
            pending, rules.pending = rules.pending, None
            rules.matcher = pending.result()
        if rules.matcher is None:
            raise GrammarError("it has failed before")
        unmatched = rules.output[rules.num_matched :]
        if unmatched:
            rules.num_matched = len(rules.output)
            rules.matcher.advance(unmatched)
        return rules.matcher

    def _restrict(self, slot: int, rules: _Rules) -> None:
        """The grammar's mask is there: the other rules, and the ends."""
        assert self._grammars is not None
        assert rules.matcher is not None
        mask = self.masks[slot]
        mask &= rules.base
        self._ban_words(slot, rules)
        stops = self._known(rules.sampling.stop_token_ids)
        _clear(mask, self._known(self._grammars.ends()))
        _clear(mask, stops)
        has_enough = len(rules.output) >= rules.sampling.min_tokens
        if rules.matcher.may_end and (has_enough or not mask.any()):
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
