"""What the answers of OpenAI's Responses look like: for the OpenAPI document, as in `answers`."""

from typing import Any, Literal

from pydantic import ConfigDict

from gateway.body import Part
from gateway.openai.answers import absent


class Response(Part):
    """The answer of a turn. It also repeats what was asked."""

    model_config = ConfigDict(extra="allow")

    id: str
    """To ask for it again, or to go on from it."""
    object: Literal["response"]
    """Always."""
    created_at: int
    """When, in seconds since 1970."""
    status: str
    """completed; incomplete, where a limit has cut it; in_progress, in events."""
    error: dict[str, Any] | None
    """What went wrong, if something did."""
    incomplete_details: dict[str, Any] | None
    """Which limit has cut it."""
    model: str
    """The served model."""
    output: list[dict[str, Any]]
    """Items: thoughts, messages, calls."""


class ResponseEvent(Part):
    """An event of a response; the specification of OpenAI's Responses has the fields of each."""

    model_config = ConfigDict(extra="allow")

    type: str
    """Such as response.output_text.delta."""
    sequence_number: int = absent()
    """From 0."""


class InputItems(Part):
    """Items of a response's input."""

    object: Literal["list"]
    """Always."""
    data: list[dict[str, Any]]
    """The items."""
    first_id: str
    """Of the first item; empty if there is none."""
    last_id: str
    """Of the last item; empty if there is none."""
    has_more: bool
    """Whether there are items after it."""


class DeletedResponse(Part):
    """It is forgotten."""

    id: str
    """Of the response."""
    object: Literal["response"]
    """Always."""
    deleted: Literal[True]
    """Always."""
