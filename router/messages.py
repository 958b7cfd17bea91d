"""What a router and its scheduler tell each other, without protobuf."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from gateway.output import FinishReason, PromptLogprobs, TokenLogprob
from gateway.request import GenerateRequest


@dataclass(frozen=True, slots=True)
class Finished:
    """The one end of a sequence."""

    reason: FinishReason
    num_cached_tokens: int = 0
    message: str = ""
    """For ERROR and TIMEOUT: what happened, fit for a client."""
    vector: bytes = b""
    """The prompt's, as little-endian float32, if it was wanted."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a submission was not accepted."""

    message: str
    field: str
    """Of Submit; empty if none is at fault."""
    retry: bool
    """It may be accepted later."""
    retry_after_s: float = 0.0
    """How much later; 0: nobody knows."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a cell's workers say that they serve."""

    name: str
    vocab_size: int
    max_model_len: int
    """Prompt and output tokens together."""
    embedding_dim: int = 0
    """Numbers in a vector; 0: it embeds nothing."""
    is_encoder: bool = False
    """It generates nothing, and keeps no KV."""


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """An attached replica, when the status was sent."""

    replica_id: str
    epoch: int
    """Of its attachment."""
    kv_tokens: int
    """Tokens that its KV blocks hold together."""
    last_seen_s: float
    """Age of its last sign of life."""
    step_age_s: float | None
    """How long its step in flight has run; None: it has none."""
    step_patience_s: float
    """How long that step may run."""
    num_generated_tokens: int
    """Since it attached."""
    num_vectors: int = 0
    """Since it attached."""
    num_steps: int = 0
    """Since it attached."""

    @property
    def is_proven(self) -> bool:
        """Whether something has come out of it."""
        return self.num_generated_tokens + self.num_vectors > 0


@dataclass(frozen=True, slots=True)
class CellStatus:
    """What is known of the cell, as of a moment."""

    received_at: float
    """On this process's monotonic clock, seconds."""
    model: ServedModel | None
    """None until a replica has attached."""
    replicas: tuple[ReplicaStatus, ...]
    draining: bool


@dataclass(frozen=True, slots=True)
class Submission:
    """`num_samples` consecutive sequences of one request, from sample `first_sample` on."""

    sequence_id: int
    request: GenerateRequest
    first_sample: int
    num_samples: int
    output_token_ids: Sequence[int]
    """What the client already has, when it is submitted anew."""
    score_from: int = 1
    """Where its prompt's logprobs are asked for: the first token whose are not here yet."""
    probe: bool = False
    """No client asked for it: no metric counts it."""
    tenant: str = ""
    """On whose behalf."""
    timeout_s: float = 0.0
    """In which it must have ended; 0: no limit."""
    resubmitted: bool = False
    """It was accepted before: it is not refused for load."""


class Uplink(Protocol):
    """What can be told to the scheduler. While there is no connection, nothing is."""

    def submit(self, submission: Submission) -> None:
        """A request."""

    def abort(self, sequence_ids: Sequence[int]) -> None:
        """The client left."""

    def finish(self, sequence_id: int, num_tokens: int) -> None:
        """A stop string matched; output tokens beyond `num_tokens` do not count."""

    def leave(self) -> None:
        """This router is about to end: a scheduler that ends, too, waits for it."""


class Listener(Protocol):
    """Who hears the scheduler. All calls come from the event loop and return at once."""

    def welcomed(self, incarnation: int) -> None:
        """Connected; nothing of an earlier connection is known there any more."""

    def lost(self) -> None:
        """Disconnected."""

    def status(self, status: CellStatus) -> None:
        """The cell changed, or a second has passed."""

    def tokens(
        self,
        sequence_ids: Sequence[int],
        token_ids: Sequence[int],
        logprobs: Mapping[int, TokenLogprob],
    ) -> None:
        """One step's tokens: columns that share an index, which is the key of `logprobs`."""

    def scored(self, sequence_id: int, logprobs: PromptLogprobs) -> None:
        """Logprobs of some of its prompt's tokens are here, those that come next."""

    def finished(self, sequence_id: int, finished: Finished) -> None:
        """A sequence ended; its tokens have been told before."""

    def refused(self, sequence_id: int, refusal: Refusal) -> None:
        """A submission was not accepted; nothing of it is kept."""
