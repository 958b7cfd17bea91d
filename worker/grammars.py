"""Grammars, compiled: what turns a language and the tokens so far into the tokens that may come.

llguidance does it, in Rust, without the interpreter lock. A grammar is compiled on a thread of its
own while the prompt is computed; the compiled form is kept, so that the samples of a request and
all requests of a client share it. Fuel bounds what a grammar may cost, not a clock: every rank
comes to the same masks, and a grammar that runs out of fuel ends its one sequence.

The compiled form is a lexer that makes its states as they are needed, for all that share it, and
may make only so many. So a sequence is given up only where it fails on a form of its own, too.
"""

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer

from protos.grammar import GRAMMAR_LIMITS, GrammarLimits

Words = npt.NDArray[np.int32]
_Value = TypeVar("_Value")

MAX_KEPT = 32
"""Compiled grammars that are kept, at most; with every state it may have, one takes about 25 MB."""

MAX_KEPT_BYTES = 1 << 20
"""Text of all of them together, at most."""


class GrammarError(Exception):
    """A grammar cannot be read or costs too much, or the output so far is none of its."""


class Matcher:
    """One sequence's place in its grammar.

    Attributes:
        native: the library's, which tells of a failure only when asked, and stays failed.
        compiled: what it was made from.
    """

    def __init__(self, compiled: LLMatcher) -> None:
        self.compiled = compiled
        self.native = _guarded(compiled.deep_copy)

    def advance(self, token_ids: list[int]) -> None:
        """These tokens have come. Raises GrammarError."""
        _guarded(lambda: self.native.consume_tokens(token_ids))
        self.check()

    def check(self) -> None:
        """Raises GrammarError if it has failed."""
        if self.native.is_error():
            raise GrammarError(self.native.get_error().partition("\n")[0])

    @property
    def has_failed(self) -> bool:
        """Whether it can say nothing any more."""
        return self.native.is_error()

    @property
    def may_end(self) -> bool:
        """Whether the output is complete as it is; never, if it has failed."""
        return self.native.is_accepting() and not self.native.is_error()


class Grammars:
    """The compiler of one model's grammars.

    Args:
        tokenizer: the model's tokenizer.json.
        vocab_size: columns of the logits.
        num_threads: that may make masks at once.
        limits: of one grammar.
    """

    def __init__(
        self,
        tokenizer: Path,
        vocab_size: int,
        num_threads: int = 1,
        limits: GrammarLimits = GRAMMAR_LIMITS,
    ) -> None:
        self._path = tokenizer
        self._vocab_size = vocab_size
        self._limits = LLParserLimits(**limits, verbose_errors=False)
        self._executor = LLExecutor(num_threads)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammars")
        # A large vocabulary takes a second: it is read long before the first grammar comes.
        self._tokenizer = self._thread.submit(self._read_tokenizer)
        self._kept: OrderedDict[str, LLMatcher] = OrderedDict()
        self._kept_bytes = 0

    @property
    def num_kept(self) -> int:
        """Compiled grammars at hand."""
        return len(self._kept)

    def begin(
        self, grammar: str, output: list[int], failed: Matcher | None = None
    ) -> "Future[Matcher]":
        """Starts a sequence whose output begins so. Returns at once; the future may hold a
        GrammarError.

        Args:
            grammar: in the library's form.
            output: its tokens so far.
            failed: a matcher with which the sequence cannot go on; its compiled form is dropped.
        """
        return self._thread.submit(self._begin, grammar, list(output), failed)

    def ends(self) -> list[int]:
        """The tokens that the library itself lets come where an output is complete."""
        return self._tokenizer.result().eos_tokens

    def fill(self, masks: Words, slots: list[int], matchers: list[Matcher]) -> None:
        """Writes what may come next: bit t % 32 of ``masks[slot, t // 32]`` for each token t.

        Raises GrammarError. Without that, single matchers may have failed afterwards.

        Args:
            masks: [slots, words], contiguous.
            slots: a row for each matcher.
            matchers: have not failed.
        """
        assert masks.flags.c_contiguous
        assert masks.shape[1] == -(-self._vocab_size // 32)
        pairs = [(matcher.native, slot) for matcher, slot in zip(matchers, slots, strict=True)]
        row_bytes = masks.shape[1] * masks.itemsize
        _guarded(
            lambda: self._executor.unsafe_compute_mask_ptr(
                pairs, masks.ctypes.data, row_bytes, len(masks)
            )
        )

    def _begin(self, grammar: str, output: list[int], failed: Matcher | None) -> Matcher:
        if failed is not None and self._kept.get(grammar) is failed.compiled:
            self._drop(grammar)
        matcher = Matcher(self._compiled(grammar))
        matcher.advance(output)
        return matcher

    def _compiled(self, grammar: str) -> LLMatcher:
        """One of those kept, or a new one; always on the one thread."""
        if grammar in self._kept:
            self._kept.move_to_end(grammar)
            return self._kept[grammar]
        tokenizer = self._tokenizer.result()
        compiled = _guarded(lambda: LLMatcher(tokenizer, grammar, log_level=0, limits=self._limits))
        Matcher(compiled).check()
        self._kept[grammar] = compiled
        self._kept_bytes += len(grammar)
        while len(self._kept) > MAX_KEPT or self._kept_bytes > MAX_KEPT_BYTES:
            self._drop(next(iter(self._kept)))
        return compiled

    def _drop(self, grammar: str) -> None:
        del self._kept[grammar]
        self._kept_bytes -= len(grammar)

    def _read_tokenizer(self) -> LLTokenizer:
        return _guarded(lambda: LLTokenizer(str(self._path), n_vocab=self._vocab_size))


def _guarded(call: Callable[[], _Value]) -> _Value:
    """Its value. Raises GrammarError for whatever it raises, a panic of the library too."""
    try:
        return call()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in Rust is no Exception
        raise GrammarError(f"{type(error).__name__}: {error}") from error
