"""A whole text, read at once."""

from gateway.parsing.deltas import Parser, Said, gathered


def read_whole(parser: Parser, text: str) -> Said:
    """What it says."""
    return gathered([*parser.feed(text), *parser.close()])
