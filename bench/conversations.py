"""Prefix-heavy traffic: conversations that open with a shared system prompt and go on in turns.

Each turn's prompt is everything before it and one more message, so most of a prompt has been
computed before, somewhere. Lengths are log-normal, system prompts are popular unequally (Zipf), and
people think before they answer (exponential).
"""

from dataclasses import dataclass, field

import numpy as np

from bench.modelled_worker import VOCABULARY
from scheduler.core.events import Int32Column


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """The mix."""

    num_system_prompts: int = 64
    mean_system_tokens: int = 400
    mean_message_tokens: int = 120
    mean_output_tokens: int = 150
    mean_turns: float = 3.0
    mean_thinking_s: float = 8.0
    max_total_tokens: int = 8192


@dataclass(slots=True)
class Turn:
    """One request of a conversation."""

    conversation: "Conversation"
    token_ids: Int32Column
    num_output_tokens: int
    max_tokens: int


@dataclass(slots=True)
class Conversation:
    """What was said so far."""

    num_turns_left: int
    history: Int32Column = field(repr=False)


class ConversationSource:
    """Draws conversations; the same seed draws the same ones."""

    def __init__(self, traffic: Traffic, seed: int) -> None:
        self._traffic = traffic
        self._random = np.random.default_rng(seed)
        weights = 1.0 / np.arange(1, traffic.num_system_prompts + 1)
        self._weights = np.cumsum(weights / weights.sum())
        self._system_prompts = [
            self._text(self._length(traffic.mean_system_tokens))
            for _ in range(traffic.num_system_prompts)
        ]

    def open(self) -> Conversation:
        """A new conversation, before its first message."""
        choice = int(np.searchsorted(self._weights, self._random.random()))
        turns = int(self._random.geometric(1.0 / self._traffic.mean_turns))
        return Conversation(turns, self._system_prompts[choice])

    def next_turn(self, conversation: Conversation) -> Turn | None:
        """The next message, or None if the conversation is over or has become too long."""
        if conversation.num_turns_left == 0:
            return None
        conversation.num_turns_left -= 1
        message = self._text(self._length(self._traffic.mean_message_tokens))
        num_output = self._length(self._traffic.mean_output_tokens)
        token_ids = np.concatenate((conversation.history, message))
        max_tokens = max(512, num_output)
        if len(token_ids) + max_tokens > self._traffic.max_total_tokens:
            return None
        return Turn(conversation, token_ids, num_output, max_tokens)

    def thinking_s(self) -> float:
        """Seconds until the next turn."""
        return float(self._random.exponential(self._traffic.mean_thinking_s))

    def gap_s(self, rate: float) -> float:
        """Seconds until the next conversation opens, at `rate` of them per second."""
        return float(self._random.exponential(1.0 / rate))

    def _length(self, mean: int) -> int:
        sigma = 0.6
        return 1 + int(self._random.lognormal(np.log(mean) - sigma**2 / 2, sigma))

    def _text(self, num_tokens: int) -> Int32Column:
        return self._random.integers(0, VOCABULARY, num_tokens).astype(np.int32)
