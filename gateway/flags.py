"""Flags of a router that decide how its model's conversations are written and read."""

from pathlib import Path

from gateway.errors import ModelError
from gateway.parsing.formats import AUTO, CALL_FORMATS, NONE, THOUGHTS
from protos.flag import Flag, one_of, readable_file

_TEMPLATES = Path(__file__).parent / "templates"
"""A template for each format of calls, under its name."""


def _chat_template(text: str) -> str:
    """Parses the name of one of our templates, or the path of a file; gives the path."""
    if text in CALL_FORMATS:
        return str(_TEMPLATES / f"{text}.jinja")
    try:
        source = Path(readable_file(text)).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"a file in UTF-8: {error.reason} at byte {error.start}") from None
    except ValueError as error:
        names = ", ".join(CALL_FORMATS)
        raise ValueError(f"{error}; or one of {names}") from None
    from gateway.template import check_source  # Jinja, for who asks for a template alone

    try:
        check_source(source)
    except ModelError as error:
        raise ValueError(f"a Jinja template; {error}") from None
    return text


CHAT_TEMPLATE: Flag[str | None] = Flag(
    "chat_template",
    "Jinja file to use in place of the model's own chat template, or one of ours by the name of "
    f"the calls that it knows: {', '.join(CALL_FORMATS)}.",
    "FILE|NAME",
    _chat_template,
    None,
    "the model's own",
)
TOOL_CALL_PARSER = Flag(
    "tool_call_parser",
    f"How the model writes calls of tools: {', '.join(CALL_FORMATS)} or none; auto: as its chat "
    "template shows.",
    "FORMAT",
    one_of(AUTO, *CALL_FORMATS, NONE),
    AUTO,
)
REASONING_PARSER = Flag(
    "reasoning_parser",
    f"How the model sets its thoughts apart: {', '.join(THOUGHTS)} or none; auto: as its chat "
    "template shows.",
    "FORMAT",
    one_of(AUTO, *THOUGHTS, NONE),
    AUTO,
)
