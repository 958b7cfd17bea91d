"""Whether and how much a model thinks, as far as its chat template can be told.

There is no standard for that: each template reads a variable of its own. What a template has no
variable for is refused, unless it is what the model does anyway.
"""

from collections.abc import Mapping
from typing import Any, Literal

from gateway.errors import RequestError, invalid, quote
from gateway.model import Model

Effort = Literal["low", "medium", "high", "xhigh", "max"]
"""How much, in the words of every dialect; "medium" is what a model does that is told nothing."""

_EFFORT = "reasoning_effort"
_SWITCHES = ("enable_thinking", "thinking")


def effort_arguments(field: str, effort: str | None, model: Model) -> Mapping[str, Any]:
    """The template's variables for this effort: a word of `Effort`, or one that is OpenAI's alone.
    Raises RequestError if it has none."""
    if effort is None:
        return {}
    if _EFFORT in _variables(model):
        return {_EFFORT: effort}
    if effort == "none":
        return thinking_arguments(field, effort, model, thinks=False)
    if effort == "medium":
        return {}
    raise invalid(
        field,
        f"{field} is {quote(effort)}; the chat template of model {quote(model.name)} cannot be "
        "told how much to think",
    )


def thinking_arguments(field: str, said: str, model: Model, *, thinks: bool) -> Mapping[str, Any]:
    """The template's variable that turns thinking on or off; `said` is how the client said it.

    Raises RequestError if the model does not think, or cannot be kept from it.
    """
    switches = [name for name in _SWITCHES if name in _variables(model)]
    if model.thoughts is None:
        if thinks:
            raise _unable(field, said, model, "does not think")
        return {}
    if not switches and not thinks:
        raise _unable(field, said, model, "has a chat template that cannot be told not to think")
    return dict.fromkeys(switches, thinks)


def _variables(model: Model) -> frozenset[str]:
    return model.template.variables if model.template is not None else frozenset()


def _unable(field: str, said: str, model: Model, reason: str) -> RequestError:
    return invalid(field, f"{field} is {quote(said)}; model {quote(model.name)} {reason}")
