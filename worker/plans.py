"""What the scheduler tells the worker and what the worker answers, as frozen data.

Columns are int32 arrays; parallel columns share an index. `worker.proto` is the contract;
`worker.wire` translates.
"""

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import numpy.typing as npt

Int32Column = npt.NDArray[np.int32]
Float32Column = npt.NDArray[np.float32]
UInt8Column = npt.NDArray[np.uint8]


class FinishReason(IntEnum):
    """Why a row ended: values of the finish column, those of `quire.v1.FinishReason`."""

    STOP = 1
    LENGTH = 2
    ERROR = 4


class Pooling(IntEnum):
    """Which hidden states of a prompt make its vector; the values of `quire.v1.Pooling`."""

    LAST = 1
    MEAN = 2
    CLS = 3


class PlanError(Exception):
    """A plan that contradicts the mirror: scheduler and worker no longer agree on the state."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a sequence's tokens are chosen; see `SamplingParams` in sampling.proto."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    bias_token_ids: tuple[int, ...] = ()
    bias: tuple[float, ...] = ()
    num_logprobs: int | None = None
    num_prompt_logprobs: int | None = None
    grammar: str = ""
    """Empty: none."""
    allowed_token_ids: tuple[int, ...] = ()
    """Empty: all."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Of at least one token each."""

    @property
    def is_constrained(self) -> bool:
        """Whether there are tokens that may not come."""
        return bool(self.grammar or self.allowed_token_ids or self.bad_words)

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token comes, and nothing else is asked of the logits."""
        return not (
            self.temperature > 0
            or self.is_penalized
            or self.bias
            or self.num_unstoppable
            or self.num_logprobs is not None
        )

    @property
    def num_unstoppable(self) -> int:
        """Output tokens before which the sampler bans stop tokens; a grammar sees to it itself."""
        return 0 if self.grammar else self.min_tokens

    @property
    def can_draft(self) -> bool:
        """Whether what may come at a position depends on no token before it but by the model."""
        return not (self.is_constrained or self.is_penalized)

    @property
    def is_penalized(self) -> bool:
        """Whether what was seen before changes what comes."""
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return penalties != (1.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Admission:
    """A sequence takes a slot, in full."""

    slot: int
    generation: int
    token_ids: Int32Column
    """All tokens known so far, prompt first."""
    num_prompt_tokens: int
    max_total_tokens: int
    blocks: Int32Column
    num_computed: int
    seed: int
    """Unsigned, 64 bits."""
    sampling: Sampling
    score_from: int = 0
    """With `num_prompt_logprobs`: the first prompt token whose logprob is wanted."""

    @property
    def wants_vector(self) -> bool:
        """Nothing is sampled: the prompt's vector is wanted, and ends the sequence."""
        return self.max_total_tokens == self.num_prompt_tokens


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """One step: a change to the mirror, then one forward pass over decode rows and chunks."""

    epoch: int
    step_id: int
    retire: Int32Column
    admit: tuple[Admission, ...]
    append_slot: Int32Column
    append_index: Int32Column
    append_block: Int32Column
    decode: Int32Column | None
    """The decode set from this plan on, in batch order; None: as in the plan before."""
    chunk_slot: Int32Column
    chunk_start: Int32Column
    chunk_length: Int32Column
    graph_bucket: int = 0
    """Rows that the captured decode step has; 0: nothing captured fits."""
    named: Int32Column = field(default_factory=lambda: np.empty(0, np.int32))
    """Blocks that hold a named prefix once the step has run (`worker.inventory`)."""
    block_name: bytes = b""
    """Their names, end to end."""
    unnamed: Int32Column = field(default_factory=lambda: np.empty(0, np.int32))
    """Blocks whose name is void."""
    draft_slot: Int32Column = field(default_factory=lambda: np.empty(0, np.int32))
    """Slots of the decode set that may draft (`worker.drafts`)."""
    draft_length: Int32Column = field(default_factory=lambda: np.empty(0, np.int32))
    """Tokens each of them may draft, at least 1."""
    max_draft_tokens: int = 0
    """Tokens that all of them together may draft."""
    min_draft_tokens: int = 0
    """Who would draft fewer drafts none."""


@dataclass(frozen=True, slots=True)
class Welcome:
    """A new attachment: everything of an older epoch is void, but perhaps the blocks' names."""

    epoch: int
    hash_seed: bytes = b""
    """What the names are made with, to be given back."""
    keeps_names: bool = False


@dataclass(frozen=True, slots=True)
class Drain:
    """Finish what was sent, then leave."""


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Log-probabilities of some result rows; see `LogprobColumns` in sampling.proto."""

    row: Int32Column
    logprob: Float32Column
    rank: Int32Column
    num_top: Int32Column
    top_token_id: Int32Column
    top_logprob: Float32Column


@dataclass(frozen=True, slots=True)
class Vectors:
    """Vectors of the prompts that a step completed; see `VectorColumns` in worker.proto."""

    slot: Int32Column
    generation: Int32Column
    finish: UInt8Column
    """`FinishReason.STOP`, or ERROR: the vector is not finite and means nothing."""
    value: npt.NDArray[np.float32]
    """[rows, embedding_dim]"""


@dataclass(frozen=True, slots=True)
class Scores:
    """Logprobs of tokens of prompts, in runs of consecutive tokens; see `ScoreColumns`."""

    slot: Int32Column
    generation: Int32Column
    start: Int32Column
    length: Int32Column
    logprobs: Logprobs
    """Of the runs' tokens, one after another; its `row` is empty."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Microseconds of one step."""

    wait_us: int = 0
    prepare_us: int = 0
    forward_us: int = 0
    sample_us: int = 0


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a plan produced: one entry per live row that sampled; of a slot that drafted, one more
    for each token that was accepted."""

    epoch: int
    step_id: int
    slot: Int32Column
    generation: Int32Column
    token_id: Int32Column
    finish: UInt8Column
    """0 where the row goes on, else its `FinishReason`; after an error the token means nothing."""
    logprobs: Logprobs | None
    timing: Timing
    vectors: Vectors | None = None
    """None: no prompt that wants its vector was completed."""
    scores: Scores | None = None
    drafted: Int32Column = field(default_factory=lambda: np.empty(0, np.int32))
    """Tokens that each slot of the plan's `draft_slot` has drafted."""


@dataclass(frozen=True, slots=True)
class Hello:
    """Who this worker is and what it holds; see `Hello` in worker.proto."""

    worker_id: str
    replica_id: str
    rank: int
    world_size: int
    model_name: str
    model_revision: str
    max_model_len: int
    vocab_size: int
    dtype: str
    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    pid: int
    device: str
    graph_buckets: tuple[int, ...] = ()
    pooling: Pooling | None = None
    """None: no embeddings."""
    embedding_dim: int = 0
    is_encoder: bool = False
    max_draft_tokens: int = 0
    """A slot may draft so many in a step; 0: none."""
