"""How the core decides: one frozen object, given once. Its defaults are the command line's."""

from dataclasses import dataclass
from math import inf
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreConfig:
    """Limits and policy of one scheduler. Raises ValueError for values that cannot work."""

    hash_seed: bytes
    """Secret of this cell, at most 64 bytes: nobody outside can make two prefixes collide."""
    max_num_seqs: int = 256
    """Sequences running at once on one replica."""
    max_num_batched_tokens: int = 2048
    """Tokens one step of one replica may compute."""
    enable_prefix_caching: bool = True
    policy: Literal["fcfs", "priority"] = "fcfs"
    aging_s: float = 10.0
    """Seconds of waiting that weigh as much as one step of priority."""
    input_token_weight: float = 1.0
    """What a computed prompt token counts when tenants get even shares (fairness.py)."""
    output_token_weight: float = 2.0
    """The same of an output token."""
    watermark: float = 0.01
    """Share of a replica's blocks that admission leaves free for the sequences already running."""
    max_draft_tokens: int = 8
    """Tokens that may be drafted in one step of one replica, less one for each token beyond the
    first that it computes anyway (speculation.py); 0: none."""
    max_losses: int = 2
    """Lost workers that one sequence may have been running on without progress since; then it is
    tried apart (quarantine.py), and ends if a worker is lost while it is alone there."""
    trial_patience_s: float = 60.0
    """How long such sequences wait for a replica to attach anew before one that serves is cleared
    for them."""
    max_queued: int = 100_000
    """Sequences waiting, over all replicas, beyond which new requests are refused."""
    max_queued_tokens: int = 10_000_000
    """The same, by the tokens that are to be computed before outputs begin."""

    def __post_init__(self) -> None:
        for name in (
            "max_num_seqs",
            "max_num_batched_tokens",
            "max_queued",
            "max_queued_tokens",
            "max_losses",
        ):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if self.max_draft_tokens < 0:
            raise ValueError(f"max_draft_tokens is {self.max_draft_tokens}; it must be at least 0")
        for name in ("input_token_weight", "output_token_weight"):
            value = getattr(self, name)
            if not 0 < value < inf:
                raise ValueError(f"{name} is {value}; it must be above 0 and finite")
        if not 0 <= self.watermark < 1:
            raise ValueError(f"watermark is {self.watermark}; it must be at least 0 and below 1")
        if not 0 <= self.trial_patience_s < inf:
            raise ValueError(
                f"trial_patience_s is {self.trial_patience_s}; it must be at least 0 and finite"
            )
        if not 0 < self.aging_s < inf:
            raise ValueError(f"aging_s is {self.aging_s}; it must be above 0 and finite")
        if len(self.hash_seed) > 64:
            raise ValueError(f"hash_seed has {len(self.hash_seed)} bytes; at most 64 are allowed")
        if self.policy not in ("fcfs", "priority"):
            raise ValueError(f"policy is {self.policy!r}; it must be 'fcfs' or 'priority'")
