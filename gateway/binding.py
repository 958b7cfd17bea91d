"""What binds an answer: the form its content must have, calls that must come or must be right, and
how long the model may think.

All of it becomes one grammar of the whole answer. Where a client only hopes (a tool that is strict
by default), what costs too much is let go; what it asks for is kept to, or refused by name.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.conversation import Conversation, Tool, ToolMode
from gateway.errors import RequestError, invalid, quote
from gateway.grammar import GrammarKind, GrammarSpec, compiled
from gateway.limits import RequestLimits
from gateway.parsing.call_grammars import ThoughtLimit, answer_grammar
from gateway.parsing.call_rules import why_not
from gateway.parsing.formats import CallFormat, Thoughts
from gateway.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Binding:
    """What binds one answer."""

    grammar: GrammarSpec | None
    """What the whole answer must be; None: anything."""
    holds_calls: bool
    """What reads like a call is one: where calls are held, nothing else is let through."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Binder:
    """How one model's answers can be bound."""

    model_name: str
    """For messages."""
    tokenizer: Tokenizer
    call_format: CallFormat | None
    thoughts: Thoughts | None
    limits: RequestLimits

    def thought_limit(self, conversation: Conversation) -> ThoughtLimit | None:
        """Raises RequestError if the model's thoughts cannot be counted."""
        field, most = conversation.max_thought_tokens_field, conversation.max_thought_tokens
        if most is None:
            return None
        name = quote(self.model_name)
        if self.thoughts is None:
            raise invalid(field, f"{field} is {most}; model {name} does not think")
        begin, end = map(self.tokenizer.token_id, (self.thoughts.begin, self.thoughts.end))
        if begin is None or end is None:
            raise invalid(
                field,
                f"{field} is {most}; thoughts of model {name} do not begin and end with"
                " a token of their own, so they cannot be counted",
            )
        return ThoughtLimit(most, begin, end, field)

    def bind(
        self,
        conversation: Conversation,
        tools: Sequence[Tool],
        content: GrammarSpec | None,
        *,
        starts_thinking: bool,
        limit: ThoughtLimit | None,
    ) -> Binding:
        """`tools` are those that may be called, `content` is what the answer's content must be.

        Raises RequestError if what must be cannot be enforced.
        """

        def grammar_of(held: Sequence[Tool]) -> GrammarSpec | None:
            return self._grammar(conversation, tools, held, content, starts_thinking, limit)

        held = self._held(conversation, tools, content)
        grammar = grammar_of(held)
        must = _strict_alone(conversation, held, content)
        if grammar is not None and len(must) < len(held) and not self._compiles(grammar):
            held, grammar = must, grammar_of(must)
        return Binding(grammar, bool(tools) and (bool(held) or content is not None))

    def _compiles(self, grammar: GrammarSpec) -> bool:
        try:
            compiled(grammar, self.limits)
        except RequestError:
            return False
        return True

    def _held(
        self, conversation: Conversation, tools: Sequence[Tool], content: GrammarSpec | None
    ) -> Sequence[Tool]:
        """Those whose calls are held to their schemas: all, where an answer must be of a form or a
        call, and else the strict ones. Raises RequestError if one that must be cannot be."""
        if not tools or conversation.tool_choice.mode is not ToolMode.AUTO:
            return tools
        held = []
        for tool in tools:
            if tool.strict or (tool.strict is None and conversation.strict_by_default):
                reason = self._why_not(tool, content)
                if reason is None:
                    held.append(tool)
                elif tool.strict:
                    field = f"{tool.field}.strict"
                    raise invalid(field, f"{field} is true; {reason}")
        return held if content is None else tools

    def _why_not(self, tool: Tool, content: GrammarSpec | None) -> str | None:
        assert self.call_format is not None
        is_json = content is None or content.kind is GrammarKind.JSON_SCHEMA
        if content is not None and not (is_json and self.call_format.opening):
            return (
                f"what {content.field} lets through may read like a call of model "
                f"{quote(self.model_name)}, so this cannot be enforced beside it"
            )
        return why_not(self.call_format, tool, self.tokenizer.special_token, self.limits)

    def _grammar(
        self,
        conversation: Conversation,
        tools: Sequence[Tool],
        held: Sequence[Tool],
        content: GrammarSpec | None,
        starts_thinking: bool,
        limit: ThoughtLimit | None,
    ) -> GrammarSpec | None:
        choice = conversation.tool_choice
        must_call = choice.mode in (ToolMode.REQUIRED, ToolMode.NAMED)
        is_free = content is None and not must_call and bool(held)
        if content is None and not held and limit is None:
            return None
        named = choice.mode is ToolMode.NAMED
        return answer_grammar(
            content=None if must_call else content,
            form=self.call_format,
            tools=[tool for tool in tools if not named or tool.name == choice.name] if held else [],
            several=conversation.parallel_tool_calls and not named,
            held=held if is_free else None,
            thoughts=self.thoughts,
            starts_thinking=starts_thinking,
            token=self.tokenizer.special_token,
            limits=self.limits,
            thought_limit=limit,
        )


def _strict_alone(
    conversation: Conversation, held: Sequence[Tool], content: GrammarSpec | None
) -> Sequence[Tool]:
    """Those that stay held where all of them together cost too much: not those that are strict by
    default alone."""
    if content is not None or conversation.tool_choice.mode is not ToolMode.AUTO:
        return held
    return [tool for tool in held if tool.strict]
