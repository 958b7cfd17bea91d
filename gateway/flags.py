"""Flags of a router that decide how its model's conversations are written and read."""

from gateway.parsing.formats import AUTO, CALL_FORMATS, NONE, THOUGHTS
from protos.flags import Flag, one_of, readable_file

CHAT_TEMPLATE: Flag[str | None] = Flag(
    "chat_template",
    "Jinja file to use in place of the model's own chat template.",
    "FILE",
    readable_file,
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
