from protos.quire.v1 import sampling_pb2 as _sampling_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Pooling(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POOLING_UNSPECIFIED: _ClassVar[Pooling]
    POOLING_LAST: _ClassVar[Pooling]
    POOLING_MEAN: _ClassVar[Pooling]
    POOLING_CLS: _ClassVar[Pooling]
POOLING_UNSPECIFIED: Pooling
POOLING_LAST: Pooling
POOLING_MEAN: Pooling
POOLING_CLS: Pooling

class AttachRequest(_message.Message):
    __slots__ = ("hello", "result", "telemetry", "farewell")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    TELEMETRY_FIELD_NUMBER: _ClassVar[int]
    FAREWELL_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    result: StepResult
    telemetry: Telemetry
    farewell: Farewell
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., result: _Optional[_Union[StepResult, _Mapping]] = ..., telemetry: _Optional[_Union[Telemetry, _Mapping]] = ..., farewell: _Optional[_Union[Farewell, _Mapping]] = ...) -> None: ...

class AttachResponse(_message.Message):
    __slots__ = ("welcome", "plan", "drain")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    plan: BatchPlan
    drain: Drain
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., plan: _Optional[_Union[BatchPlan, _Mapping]] = ..., drain: _Optional[_Union[Drain, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol_version", "worker_id", "replica_id", "rank", "world_size", "model", "num_blocks", "block_size", "max_num_seqs", "max_num_batched_tokens", "pid", "device", "graph_bucket", "hash_seed", "named_block", "block_name", "max_draft_tokens")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    WORLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_SEQS_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_BATCHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    GRAPH_BUCKET_FIELD_NUMBER: _ClassVar[int]
    HASH_SEED_FIELD_NUMBER: _ClassVar[int]
    NAMED_BLOCK_FIELD_NUMBER: _ClassVar[int]
    BLOCK_NAME_FIELD_NUMBER: _ClassVar[int]
    MAX_DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    worker_id: str
    replica_id: str
    rank: int
    world_size: int
    model: ModelCard
    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    pid: int
    device: str
    graph_bucket: _containers.RepeatedScalarFieldContainer[int]
    hash_seed: bytes
    named_block: bytes
    block_name: bytes
    max_draft_tokens: int
    def __init__(self, protocol_version: _Optional[int] = ..., worker_id: _Optional[str] = ..., replica_id: _Optional[str] = ..., rank: _Optional[int] = ..., world_size: _Optional[int] = ..., model: _Optional[_Union[ModelCard, _Mapping]] = ..., num_blocks: _Optional[int] = ..., block_size: _Optional[int] = ..., max_num_seqs: _Optional[int] = ..., max_num_batched_tokens: _Optional[int] = ..., pid: _Optional[int] = ..., device: _Optional[str] = ..., graph_bucket: _Optional[_Iterable[int]] = ..., hash_seed: _Optional[bytes] = ..., named_block: _Optional[bytes] = ..., block_name: _Optional[bytes] = ..., max_draft_tokens: _Optional[int] = ...) -> None: ...

class ModelCard(_message.Message):
    __slots__ = ("name", "revision", "max_model_len", "vocab_size", "dtype", "pooling", "embedding_dim", "is_encoder")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    POOLING_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_DIM_FIELD_NUMBER: _ClassVar[int]
    IS_ENCODER_FIELD_NUMBER: _ClassVar[int]
    name: str
    revision: str
    max_model_len: int
    vocab_size: int
    dtype: str
    pooling: Pooling
    embedding_dim: int
    is_encoder: bool
    def __init__(self, name: _Optional[str] = ..., revision: _Optional[str] = ..., max_model_len: _Optional[int] = ..., vocab_size: _Optional[int] = ..., dtype: _Optional[str] = ..., pooling: _Optional[_Union[Pooling, str]] = ..., embedding_dim: _Optional[int] = ..., is_encoder: _Optional[bool] = ...) -> None: ...

class Farewell(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("epoch", "hash_seed", "keeps_names")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    HASH_SEED_FIELD_NUMBER: _ClassVar[int]
    KEEPS_NAMES_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    hash_seed: bytes
    keeps_names: bool
    def __init__(self, epoch: _Optional[int] = ..., hash_seed: _Optional[bytes] = ..., keeps_names: _Optional[bool] = ...) -> None: ...

class Drain(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class BatchPlan(_message.Message):
    __slots__ = ("epoch", "step_id", "retire_slot", "admit", "append_slot", "append_index", "append_block", "decode_slot", "chunk_slot", "chunk_start", "chunk_length", "graph_bucket", "named_block", "block_name", "unnamed_block", "draft_slot", "draft_length", "max_draft_tokens", "min_draft_tokens")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    RETIRE_SLOT_FIELD_NUMBER: _ClassVar[int]
    ADMIT_FIELD_NUMBER: _ClassVar[int]
    APPEND_SLOT_FIELD_NUMBER: _ClassVar[int]
    APPEND_INDEX_FIELD_NUMBER: _ClassVar[int]
    APPEND_BLOCK_FIELD_NUMBER: _ClassVar[int]
    DECODE_SLOT_FIELD_NUMBER: _ClassVar[int]
    CHUNK_SLOT_FIELD_NUMBER: _ClassVar[int]
    CHUNK_START_FIELD_NUMBER: _ClassVar[int]
    CHUNK_LENGTH_FIELD_NUMBER: _ClassVar[int]
    GRAPH_BUCKET_FIELD_NUMBER: _ClassVar[int]
    NAMED_BLOCK_FIELD_NUMBER: _ClassVar[int]
    BLOCK_NAME_FIELD_NUMBER: _ClassVar[int]
    UNNAMED_BLOCK_FIELD_NUMBER: _ClassVar[int]
    DRAFT_SLOT_FIELD_NUMBER: _ClassVar[int]
    DRAFT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    MAX_DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MIN_DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    step_id: int
    retire_slot: bytes
    admit: _containers.RepeatedCompositeFieldContainer[Admission]
    append_slot: bytes
    append_index: bytes
    append_block: bytes
    decode_slot: bytes
    chunk_slot: bytes
    chunk_start: bytes
    chunk_length: bytes
    graph_bucket: int
    named_block: bytes
    block_name: bytes
    unnamed_block: bytes
    draft_slot: bytes
    draft_length: bytes
    max_draft_tokens: int
    min_draft_tokens: int
    def __init__(self, epoch: _Optional[int] = ..., step_id: _Optional[int] = ..., retire_slot: _Optional[bytes] = ..., admit: _Optional[_Iterable[_Union[Admission, _Mapping]]] = ..., append_slot: _Optional[bytes] = ..., append_index: _Optional[bytes] = ..., append_block: _Optional[bytes] = ..., decode_slot: _Optional[bytes] = ..., chunk_slot: _Optional[bytes] = ..., chunk_start: _Optional[bytes] = ..., chunk_length: _Optional[bytes] = ..., graph_bucket: _Optional[int] = ..., named_block: _Optional[bytes] = ..., block_name: _Optional[bytes] = ..., unnamed_block: _Optional[bytes] = ..., draft_slot: _Optional[bytes] = ..., draft_length: _Optional[bytes] = ..., max_draft_tokens: _Optional[int] = ..., min_draft_tokens: _Optional[int] = ...) -> None: ...

class Admission(_message.Message):
    __slots__ = ("slot", "generation", "token_id", "num_prompt_tokens", "max_total_tokens", "block", "num_computed", "seed", "sampling", "score_from")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    NUM_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOTAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    NUM_COMPUTED_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    SCORE_FROM_FIELD_NUMBER: _ClassVar[int]
    slot: int
    generation: int
    token_id: bytes
    num_prompt_tokens: int
    max_total_tokens: int
    block: bytes
    num_computed: int
    seed: int
    sampling: _sampling_pb2.SamplingParams
    score_from: int
    def __init__(self, slot: _Optional[int] = ..., generation: _Optional[int] = ..., token_id: _Optional[bytes] = ..., num_prompt_tokens: _Optional[int] = ..., max_total_tokens: _Optional[int] = ..., block: _Optional[bytes] = ..., num_computed: _Optional[int] = ..., seed: _Optional[int] = ..., sampling: _Optional[_Union[_sampling_pb2.SamplingParams, _Mapping]] = ..., score_from: _Optional[int] = ...) -> None: ...

class StepResult(_message.Message):
    __slots__ = ("epoch", "step_id", "slot", "generation", "token_id", "finish", "logprobs", "timing", "vectors", "scores", "drafted")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    DRAFTED_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    step_id: int
    slot: bytes
    generation: bytes
    token_id: bytes
    finish: bytes
    logprobs: _sampling_pb2.LogprobColumns
    timing: StepTiming
    vectors: VectorColumns
    scores: ScoreColumns
    drafted: bytes
    def __init__(self, epoch: _Optional[int] = ..., step_id: _Optional[int] = ..., slot: _Optional[bytes] = ..., generation: _Optional[bytes] = ..., token_id: _Optional[bytes] = ..., finish: _Optional[bytes] = ..., logprobs: _Optional[_Union[_sampling_pb2.LogprobColumns, _Mapping]] = ..., timing: _Optional[_Union[StepTiming, _Mapping]] = ..., vectors: _Optional[_Union[VectorColumns, _Mapping]] = ..., scores: _Optional[_Union[ScoreColumns, _Mapping]] = ..., drafted: _Optional[bytes] = ...) -> None: ...

class ScoreColumns(_message.Message):
    __slots__ = ("slot", "generation", "start", "length", "logprobs")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    slot: bytes
    generation: bytes
    start: bytes
    length: bytes
    logprobs: _sampling_pb2.LogprobColumns
    def __init__(self, slot: _Optional[bytes] = ..., generation: _Optional[bytes] = ..., start: _Optional[bytes] = ..., length: _Optional[bytes] = ..., logprobs: _Optional[_Union[_sampling_pb2.LogprobColumns, _Mapping]] = ...) -> None: ...

class VectorColumns(_message.Message):
    __slots__ = ("slot", "generation", "finish", "value")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    slot: bytes
    generation: bytes
    finish: bytes
    value: bytes
    def __init__(self, slot: _Optional[bytes] = ..., generation: _Optional[bytes] = ..., finish: _Optional[bytes] = ..., value: _Optional[bytes] = ...) -> None: ...

class StepTiming(_message.Message):
    __slots__ = ("wait_us", "prepare_us", "forward_us", "sample_us")
    WAIT_US_FIELD_NUMBER: _ClassVar[int]
    PREPARE_US_FIELD_NUMBER: _ClassVar[int]
    FORWARD_US_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_US_FIELD_NUMBER: _ClassVar[int]
    wait_us: int
    prepare_us: int
    forward_us: int
    sample_us: int
    def __init__(self, wait_us: _Optional[int] = ..., prepare_us: _Optional[int] = ..., forward_us: _Optional[int] = ..., sample_us: _Optional[int] = ...) -> None: ...

class Telemetry(_message.Message):
    __slots__ = ("num_steps", "rss_bytes")
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    RSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    num_steps: int
    rss_bytes: int
    def __init__(self, num_steps: _Optional[int] = ..., rss_bytes: _Optional[int] = ...) -> None: ...
