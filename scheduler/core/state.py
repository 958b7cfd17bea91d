"""What the core tells about itself: totals, and the same per replica."""

from dataclasses import dataclass, fields


@dataclass(slots=True)
class Counters:
    """Totals that only grow."""

    num_prefix_query_tokens: int = 0
    """Tokens looked up in the prefix index at first admissions."""
    num_prefix_hit_tokens: int = 0
    """Of those, found."""
    num_preemptions: int = 0
    """Sequences that gave their blocks to one before them."""
    num_overrun_tokens: int = 0
    """Sampled tokens dropped because their sequence had left its slot."""
    num_replays: int = 0
    """Sequences computed again because their replica was lost."""
    num_distrusted: int = 0
    """Sequences computed again because their output was not finite."""
    num_generated_tokens: int = 0
    """Confirmed output tokens."""
    num_vectors: int = 0
    """Confirmed vectors of prompts."""
    num_drafts: int = 0
    """Times that a sequence drafted."""
    num_draft_tokens: int = 0
    """Tokens drafted."""
    num_accepted_tokens: int = 0
    """Of those, confirmed."""

    def add(self, other: "Counters") -> None:
        """Add every total of `other`."""
        for entry in fields(self):
            setattr(self, entry.name, getattr(self, entry.name) + getattr(other, entry.name))


@dataclass(slots=True)
class Ends:
    """Sequences that came to no end of their own."""

    num_expired: int = 0
    """Their deadline passed."""
    num_convicted: int = 0
    """A worker was lost while it computed their request alone."""


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """One attached replica; counts since it attached."""

    replica: str
    block_size: int
    num_blocks_total: int
    num_blocks_free: int
    num_blocks_cached: int
    num_blocks_used: int
    """Referenced by sequences or by limbo; free, cached and used make the total."""
    num_blocks_limbo: int
    """Of the used ones, those that only limbo holds."""
    num_running: int
    num_waiting: int
    num_in_flight: int
    """Plans sent without a result."""
    num_wasted_token_slots: int
    """Places for tokens in running sequences' blocks that hold none."""
    num_prefix_query_tokens: int
    num_prefix_hit_tokens: int
    num_preemptions: int
    num_overrun_tokens: int
    num_replays: int
    num_distrusted: int
    num_generated_tokens: int
    num_vectors: int
    num_drafts: int
    num_draft_tokens: int
    num_accepted_tokens: int


@dataclass(frozen=True, slots=True)
class CoreState:
    """The whole core; counts since it was made, blocks of the replicas attached now."""

    replicas: tuple[ReplicaState, ...]
    num_blocks_total: int
    num_blocks_free: int
    num_blocks_cached: int
    num_blocks_used: int
    num_blocks_limbo: int
    num_running: int
    num_waiting: int
    """Queued at replicas, those for which no replica is there, and suspects."""
    num_suspects: int
    """Sequences that wait for a trial or are on it."""
    num_expired: int
    """Sequences that ended because their deadline passed."""
    num_convicted: int
    """Sequences that ended because a worker was lost while it computed their request alone."""
    num_wasted_token_slots: int
    num_prefix_query_tokens: int
    num_prefix_hit_tokens: int
    num_preemptions: int
    num_overrun_tokens: int
    num_replays: int
    num_distrusted: int
    num_generated_tokens: int
    num_vectors: int
    num_drafts: int
    num_draft_tokens: int
    num_accepted_tokens: int
