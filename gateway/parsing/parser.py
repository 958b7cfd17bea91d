"""The parser of one sample: a format's reading, fed with pieces of text."""

from types import MappingProxyType

from gateway.parsing.deltas import Delta
from gateway.parsing.formats import CallFormat, Thoughts, read_answer
from gateway.parsing.reader import Reader, Schemas, call_id, short_call_id

_NO_TOOLS: Schemas = MappingProxyType({})


class AnswerParser:
    """Implements `gateway.parsing.deltas.Parser` for models that reason or call tools."""

    def __init__(
        self,
        *,
        thoughts: Thoughts | None = None,
        starts_thinking: bool = False,
        calls: CallFormat | None = None,
        tools: Schemas = _NO_TOOLS,
        parallel: bool = True,
        exact: bool = False,
        only_calls: bool = False,
        at_start: bool = False,
    ) -> None:
        """`starts_thinking` if the prompt ends inside thoughts; `calls` is None where none are to
        be read. Unless `parallel`, calls after the first are left out. With `exact` the answer
        keeps to `answer_grammar`, and what is no call there is none here; with `only_calls` that
        has no words; with `at_start` calls are only what it begins with."""
        make_id = short_call_id if calls is not None and calls.short_ids else call_id
        self._reader = Reader(
            parallel=parallel, exact=exact, only_calls=only_calls, make_id=make_id
        )
        self._steps = read_answer(self._reader, thoughts, starts_thinking, calls, tools, at_start)

    @property
    def num_calls(self) -> int:
        """Calls that have begun."""
        return self._reader.num_calls

    @property
    def num_kept(self) -> int:
        """Characters that are at hand: what waits for what comes after it, and what came last."""
        return self._reader.num_kept

    def feed(self, text: str) -> list[Delta]:
        """What is certain now."""
        if text:
            self._reader.add(text)
            next(self._steps, None)
        return self._told()

    def close(self) -> list[Delta]:
        """What was held back, when the text has ended."""
        self._reader.ended = True
        next(self._steps, None)
        return self._told()

    def _told(self) -> list[Delta]:
        deltas, self._reader.deltas = self._reader.deltas, []
        return deltas
