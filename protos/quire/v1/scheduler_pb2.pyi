from protos.quire.v1 import sampling_pb2 as _sampling_pb2
from protos.quire.v1 import worker_pb2 as _worker_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RefusalCode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REFUSAL_CODE_UNSPECIFIED: _ClassVar[RefusalCode]
    REFUSAL_CODE_INVALID: _ClassVar[RefusalCode]
    REFUSAL_CODE_OVERLOADED: _ClassVar[RefusalCode]
REFUSAL_CODE_UNSPECIFIED: RefusalCode
REFUSAL_CODE_INVALID: RefusalCode
REFUSAL_CODE_OVERLOADED: RefusalCode

class ConnectRequest(_message.Message):
    __slots__ = ("hello", "submit", "abort", "finish", "leaving")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    SUBMIT_FIELD_NUMBER: _ClassVar[int]
    ABORT_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    hello: RouterHello
    submit: Submit
    abort: Abort
    finish: Finish
    leaving: RouterLeaving
    def __init__(self, hello: _Optional[_Union[RouterHello, _Mapping]] = ..., submit: _Optional[_Union[Submit, _Mapping]] = ..., abort: _Optional[_Union[Abort, _Mapping]] = ..., finish: _Optional[_Union[Finish, _Mapping]] = ..., leaving: _Optional[_Union[RouterLeaving, _Mapping]] = ...) -> None: ...

class ConnectResponse(_message.Message):
    __slots__ = ("welcome", "frame", "refusal", "status")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    welcome: RouterWelcome
    frame: Frame
    refusal: Refusal
    status: CellStatus
    def __init__(self, welcome: _Optional[_Union[RouterWelcome, _Mapping]] = ..., frame: _Optional[_Union[Frame, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ..., status: _Optional[_Union[CellStatus, _Mapping]] = ...) -> None: ...

class RouterHello(_message.Message):
    __slots__ = ("protocol_version", "router_id")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    ROUTER_ID_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    router_id: str
    def __init__(self, protocol_version: _Optional[int] = ..., router_id: _Optional[str] = ...) -> None: ...

class RouterLeaving(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RouterWelcome(_message.Message):
    __slots__ = ("incarnation",)
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    incarnation: int
    def __init__(self, incarnation: _Optional[int] = ...) -> None: ...

class Submit(_message.Message):
    __slots__ = ("sequence_id", "num_samples", "token_id", "num_prompt_tokens", "max_tokens", "seed", "sampling", "priority", "cache_salt", "adapter", "request_id", "probe", "score_from", "tenant", "deadline_s", "resubmitted")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    NUM_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    NUM_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PROBE_FIELD_NUMBER: _ClassVar[int]
    SCORE_FROM_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    RESUBMITTED_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    num_samples: int
    token_id: bytes
    num_prompt_tokens: int
    max_tokens: int
    seed: int
    sampling: _sampling_pb2.SamplingParams
    priority: int
    cache_salt: str
    adapter: str
    request_id: str
    probe: bool
    score_from: int
    tenant: str
    deadline_s: float
    resubmitted: bool
    def __init__(self, sequence_id: _Optional[int] = ..., num_samples: _Optional[int] = ..., token_id: _Optional[bytes] = ..., num_prompt_tokens: _Optional[int] = ..., max_tokens: _Optional[int] = ..., seed: _Optional[int] = ..., sampling: _Optional[_Union[_sampling_pb2.SamplingParams, _Mapping]] = ..., priority: _Optional[int] = ..., cache_salt: _Optional[str] = ..., adapter: _Optional[str] = ..., request_id: _Optional[str] = ..., probe: _Optional[bool] = ..., score_from: _Optional[int] = ..., tenant: _Optional[str] = ..., deadline_s: _Optional[float] = ..., resubmitted: _Optional[bool] = ...) -> None: ...

class Abort(_message.Message):
    __slots__ = ("sequence_id",)
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    sequence_id: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, sequence_id: _Optional[_Iterable[int]] = ...) -> None: ...

class Finish(_message.Message):
    __slots__ = ("sequence_id", "num_tokens")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    num_tokens: int
    def __init__(self, sequence_id: _Optional[int] = ..., num_tokens: _Optional[int] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("sequence_id", "token_id", "logprobs", "finished", "scores")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    sequence_id: bytes
    token_id: bytes
    logprobs: _sampling_pb2.LogprobColumns
    finished: _containers.RepeatedCompositeFieldContainer[Finished]
    scores: PromptScores
    def __init__(self, sequence_id: _Optional[bytes] = ..., token_id: _Optional[bytes] = ..., logprobs: _Optional[_Union[_sampling_pb2.LogprobColumns, _Mapping]] = ..., finished: _Optional[_Iterable[_Union[Finished, _Mapping]]] = ..., scores: _Optional[_Union[PromptScores, _Mapping]] = ...) -> None: ...

class PromptScores(_message.Message):
    __slots__ = ("sequence_id", "start", "length", "logprobs")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    sequence_id: bytes
    start: bytes
    length: bytes
    logprobs: _sampling_pb2.LogprobColumns
    def __init__(self, sequence_id: _Optional[bytes] = ..., start: _Optional[bytes] = ..., length: _Optional[bytes] = ..., logprobs: _Optional[_Union[_sampling_pb2.LogprobColumns, _Mapping]] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("sequence_id", "reason", "num_prompt_tokens", "num_output_tokens", "num_cached_tokens", "num_preemptions", "queue_s", "prefill_s", "decode_s", "message", "vector")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    NUM_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    PREFILL_S_FIELD_NUMBER: _ClassVar[int]
    DECODE_S_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    reason: _sampling_pb2.FinishReason
    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int
    num_preemptions: int
    queue_s: float
    prefill_s: float
    decode_s: float
    message: str
    vector: bytes
    def __init__(self, sequence_id: _Optional[int] = ..., reason: _Optional[_Union[_sampling_pb2.FinishReason, str]] = ..., num_prompt_tokens: _Optional[int] = ..., num_output_tokens: _Optional[int] = ..., num_cached_tokens: _Optional[int] = ..., num_preemptions: _Optional[int] = ..., queue_s: _Optional[float] = ..., prefill_s: _Optional[float] = ..., decode_s: _Optional[float] = ..., message: _Optional[str] = ..., vector: _Optional[bytes] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("sequence_id", "code", "message", "field", "retry_after_s")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    code: RefusalCode
    message: str
    field: str
    retry_after_s: float
    def __init__(self, sequence_id: _Optional[int] = ..., code: _Optional[_Union[RefusalCode, str]] = ..., message: _Optional[str] = ..., field: _Optional[str] = ..., retry_after_s: _Optional[float] = ...) -> None: ...

class CellStatus(_message.Message):
    __slots__ = ("model", "replicas", "num_running", "num_waiting", "num_generated_tokens", "draining")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    NUM_RUNNING_FIELD_NUMBER: _ClassVar[int]
    NUM_WAITING_FIELD_NUMBER: _ClassVar[int]
    NUM_GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    model: _worker_pb2.ModelCard
    replicas: _containers.RepeatedCompositeFieldContainer[ReplicaStatus]
    num_running: int
    num_waiting: int
    num_generated_tokens: int
    draining: bool
    def __init__(self, model: _Optional[_Union[_worker_pb2.ModelCard, _Mapping]] = ..., replicas: _Optional[_Iterable[_Union[ReplicaStatus, _Mapping]]] = ..., num_running: _Optional[int] = ..., num_waiting: _Optional[int] = ..., num_generated_tokens: _Optional[int] = ..., draining: _Optional[bool] = ...) -> None: ...

class ReplicaStatus(_message.Message):
    __slots__ = ("replica_id", "epoch", "device", "last_seen_s", "num_blocks_total", "num_blocks_free", "num_blocks_cached", "num_blocks_used", "num_running", "num_waiting", "block_size", "pids", "num_steps", "step_age_s", "step_patience_s", "num_generated_tokens", "num_vectors")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_S_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FREE_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_CACHED_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_USED_FIELD_NUMBER: _ClassVar[int]
    NUM_RUNNING_FIELD_NUMBER: _ClassVar[int]
    NUM_WAITING_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    PIDS_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    STEP_AGE_S_FIELD_NUMBER: _ClassVar[int]
    STEP_PATIENCE_S_FIELD_NUMBER: _ClassVar[int]
    NUM_GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_VECTORS_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    epoch: int
    device: str
    last_seen_s: float
    num_blocks_total: int
    num_blocks_free: int
    num_blocks_cached: int
    num_blocks_used: int
    num_running: int
    num_waiting: int
    block_size: int
    pids: _containers.RepeatedScalarFieldContainer[int]
    num_steps: int
    step_age_s: float
    step_patience_s: float
    num_generated_tokens: int
    num_vectors: int
    def __init__(self, replica_id: _Optional[str] = ..., epoch: _Optional[int] = ..., device: _Optional[str] = ..., last_seen_s: _Optional[float] = ..., num_blocks_total: _Optional[int] = ..., num_blocks_free: _Optional[int] = ..., num_blocks_cached: _Optional[int] = ..., num_blocks_used: _Optional[int] = ..., num_running: _Optional[int] = ..., num_waiting: _Optional[int] = ..., block_size: _Optional[int] = ..., pids: _Optional[_Iterable[int]] = ..., num_steps: _Optional[int] = ..., step_age_s: _Optional[float] = ..., step_patience_s: _Optional[float] = ..., num_generated_tokens: _Optional[int] = ..., num_vectors: _Optional[int] = ...) -> None: ...

class GetStateRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStateResponse(_message.Message):
    __slots__ = ("status", "incarnation", "num_routers", "uptime_s", "num_preemptions", "num_prefix_query_tokens", "num_prefix_hit_tokens", "num_overrun_tokens", "num_replays", "num_suspects", "num_convicted", "num_expired", "num_distrusted", "num_draft_tokens", "num_accepted_tokens")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    NUM_ROUTERS_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    NUM_PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_PREFIX_QUERY_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_PREFIX_HIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_OVERRUN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_REPLAYS_FIELD_NUMBER: _ClassVar[int]
    NUM_SUSPECTS_FIELD_NUMBER: _ClassVar[int]
    NUM_CONVICTED_FIELD_NUMBER: _ClassVar[int]
    NUM_EXPIRED_FIELD_NUMBER: _ClassVar[int]
    NUM_DISTRUSTED_FIELD_NUMBER: _ClassVar[int]
    NUM_DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_ACCEPTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    status: CellStatus
    incarnation: int
    num_routers: int
    uptime_s: float
    num_preemptions: int
    num_prefix_query_tokens: int
    num_prefix_hit_tokens: int
    num_overrun_tokens: int
    num_replays: int
    num_suspects: int
    num_convicted: int
    num_expired: int
    num_distrusted: int
    num_draft_tokens: int
    num_accepted_tokens: int
    def __init__(self, status: _Optional[_Union[CellStatus, _Mapping]] = ..., incarnation: _Optional[int] = ..., num_routers: _Optional[int] = ..., uptime_s: _Optional[float] = ..., num_preemptions: _Optional[int] = ..., num_prefix_query_tokens: _Optional[int] = ..., num_prefix_hit_tokens: _Optional[int] = ..., num_overrun_tokens: _Optional[int] = ..., num_replays: _Optional[int] = ..., num_suspects: _Optional[int] = ..., num_convicted: _Optional[int] = ..., num_expired: _Optional[int] = ..., num_distrusted: _Optional[int] = ..., num_draft_tokens: _Optional[int] = ..., num_accepted_tokens: _Optional[int] = ...) -> None: ...
