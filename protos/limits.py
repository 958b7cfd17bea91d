"""How much one request may ask of those behind the router: one table for who checks and for who has
the room. What an operator allows is at most this; a grammar's limits are in `protos.grammar`."""

MAX_SAMPLES = 128
"""Of one prompt."""
MAX_LOGPROBS = 20
"""Alternatives of one token."""
MAX_STOP_TOKENS = 160
"""The model's own and the client's together."""
MAX_BIASED_TOKENS = 1024
MAX_BAD_WORD_TOKENS = 16_384
"""Of all words that must not come together, in each of their spellings."""
MAX_REPETITION_PENALTY = 100
MAX_DRAFT_TOKENS = 15
"""Tokens that a sequence may suppose, and have verified, in one step."""
