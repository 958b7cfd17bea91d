"""How the examples beside this say that an answer is wrong."""

import sys


def expect(right: bool, wanted: str, answer: object) -> None:
    """Ends the program with a message unless the answer is right."""
    if not right:
        sys.exit(f"wanted {wanted}, but the answer is: {answer!r}")
