"""What a grammar may cost: known to the router, which refuses others, and to those behind it.

The numbers are llguidance's, by its own names. They count work, not time: whatever passes at the
router passes at every rank of every worker. Together they allow some tens of milliseconds for
compiling a grammar and about ten for one mask.
"""

from typing import TypedDict

MAX_GRAMMAR_BYTES = 1 << 17
"""Of `SamplingParams.grammar`."""


class GrammarLimits(TypedDict):
    """Limits of one grammar, as llguidance names them."""

    max_items_in_row: int
    initial_lexer_fuel: int
    step_lexer_fuel: int
    step_max_items: int
    max_lexer_states: int
    max_grammar_size: int


GRAMMAR_LIMITS: GrammarLimits = {
    "max_items_in_row": 10_000,
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 200_000,
}
