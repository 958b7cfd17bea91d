"""What workers say and are told: hellos and step results in, batch plans out."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
from google.protobuf.message import DecodeError

from protos.limits import MAX_LOGPROBS
from protos.quire.v1 import sampling_pb2, worker_pb2
from scheduler.core.decisions import Admission, Plan
from scheduler.core.events import (
    Capacity,
    FinishReason,
    Int32Column,
    Inventory,
    StepResult,
)
from scheduler.messages import (
    LogprobTable,
    ModelCard,
    Pooling,
    Result,
    ScoreTable,
    StepTiming,
    VectorTable,
    WorkerHello,
)
from scheduler.wire.columns import (
    MAX_INT32,
    MAX_NAME_LENGTH,
    Malformed,
    all_below,
    checked_name,
    float_column,
    int32_column,
)

_DEVICE_FINISHES = bytes((0, FinishReason.STOP, FinishReason.LENGTH, FinishReason.ERROR))
_VECTOR_FINISHES = bytes((FinishReason.STOP, FinishReason.ERROR))

_NAME_BYTES = 16
_MAX_SEED_BYTES = 64
_MAX_DRAFT_TOKENS = 1024
_MAX_VECTOR_BYTES = 48 * 2**20
"""Of one step's result, within the largest message that is received."""

DRAIN = worker_pb2.AttachResponse(drain=worker_pb2.Drain()).SerializeToString()


def parse_attach(data: bytes) -> worker_pb2.AttachRequest:
    """A worker's message, with one of its kinds set. Raises Malformed."""
    try:
        message = worker_pb2.AttachRequest.FromString(data)
    except DecodeError as error:
        raise Malformed("not an AttachRequest") from error
    if message.WhichOneof("message") is None:
        raise Malformed("the AttachRequest is empty")
    return message


def decode_hello(hello: worker_pb2.Hello) -> WorkerHello:
    """Who dials and what it holds. Raises Malformed."""
    card = hello.model
    _hello_range("world_size", hello.world_size, 1, 4096)
    _hello_range("rank", hello.rank, 0, hello.world_size - 1)
    is_encoder = card.is_encoder
    _hello_range("num_blocks", hello.num_blocks, 0 if is_encoder else 1, 0 if is_encoder else 2**26)
    _hello_range("block_size", hello.block_size, 1, 2**16)
    _hello_range("max_num_seqs", hello.max_num_seqs, 1, 2**16)
    _hello_range("max_num_batched_tokens", hello.max_num_batched_tokens, 1, 2**24)
    _hello_range("model.max_model_len", card.max_model_len, 1, 2**26)
    _hello_range("model.vocab_size", card.vocab_size, 1, MAX_INT32)
    _hello_range("max_draft_tokens", hello.max_draft_tokens, 0, _MAX_DRAFT_TOKENS)
    pooling = _pooling(card)
    most_dims = _MAX_VECTOR_BYTES // (4 * hello.max_num_seqs) if pooling else 0
    _hello_range("model.embedding_dim", card.embedding_dim, 1 if pooling else 0, most_dims)
    return WorkerHello(
        worker_id=checked_name("worker_id", hello.worker_id),
        replica_id=checked_name("replica_id", hello.replica_id),
        rank=hello.rank,
        world_size=hello.world_size,
        model=ModelCard(
            name=checked_name("model.name", card.name),
            revision=card.revision[:MAX_NAME_LENGTH],
            max_model_len=card.max_model_len,
            vocab_size=card.vocab_size,
            dtype=card.dtype[:MAX_NAME_LENGTH],
            pooling=pooling,
            embedding_dim=card.embedding_dim,
            is_encoder=is_encoder,
        ),
        capacity=Capacity(
            num_blocks=hello.num_blocks,
            block_size=hello.block_size,
            max_num_seqs=hello.max_num_seqs,
            max_num_batched_tokens=hello.max_num_batched_tokens,
            max_model_len=card.max_model_len,
            model_revision=card.revision[:MAX_NAME_LENGTH],
            graph_buckets=_graph_buckets(hello),
            max_draft_tokens=hello.max_draft_tokens,
        ),
        pid=hello.pid,
        device=hello.device[:MAX_NAME_LENGTH],
        inventory=_inventory(hello),
    )


def _inventory(hello: worker_pb2.Hello) -> Inventory | None:
    """What the blocks hold, if anything. Raises Malformed."""
    block = int32_column("named_block", hello.named_block)
    if len(hello.block_name) != _NAME_BYTES * block.size:
        raise Malformed(
            f"block_name has {len(hello.block_name)} bytes; "
            f"{block.size} named blocks have {_NAME_BYTES} each"
        )
    if not block.size:
        return None
    if not 0 < len(hello.hash_seed) <= _MAX_SEED_BYTES:
        raise Malformed(
            f"hash_seed has {len(hello.hash_seed)} bytes; "
            f"with named blocks it has 1 to {_MAX_SEED_BYTES}"
        )
    if int(block.min()) < 1 or int(block.max()) > hello.num_blocks:
        raise Malformed(f"named_block names a block that is not in 1 to {hello.num_blocks}")
    data = hello.block_name
    name = tuple(data[i : i + _NAME_BYTES] for i in range(0, len(data), _NAME_BYTES))
    if np.unique(block).size < block.size or len(set(name)) < block.size:
        raise Malformed("a block or a name comes twice among the named blocks")
    return Inventory(hello.hash_seed, block, name)


def _pooling(card: worker_pb2.ModelCard) -> Pooling | None:
    if card.pooling == worker_pb2.POOLING_UNSPECIFIED and not card.is_encoder:
        return None
    try:
        return Pooling(card.pooling)
    except ValueError as error:
        raise Malformed(f"model.pooling is {card.pooling}; this scheduler knows no such") from error


def _graph_buckets(hello: worker_pb2.Hello) -> tuple[int, ...]:
    buckets = tuple(hello.graph_bucket)
    for before, bucket in pairwise((0, *buckets)):
        if not before < bucket <= hello.max_num_seqs:
            raise Malformed(
                f"graph_bucket has {bucket} after {before}; "
                f"they must ascend from 1 to max_num_seqs, {hello.max_num_seqs}"
            )
    return buckets


def decode_result(
    result: worker_pb2.StepResult, *, num_slots: int, vocab_size: int, embedding_dim: int = 0
) -> Result:
    """What a step produced, with slots and tokens that exist. Raises Malformed."""
    slot = int32_column("slot", result.slot)
    generation = int32_column("generation", result.generation)
    token_id = int32_column("token_id", result.token_id)
    finish = np.frombuffer(result.finish, np.uint8)
    if not slot.size == generation.size == token_id.size == finish.size:
        raise Malformed("the columns of a step result differ in length")
    if not all_below(slot, num_slots):
        raise Malformed(f"a step result names a slot that is not below {num_slots}")
    if not all_below(token_id, vocab_size) and not all_below(
        token_id[finish != FinishReason.ERROR], vocab_size
    ):
        raise Malformed(f"a step result has a token that is not below {vocab_size}")
    drafted = int32_column("drafted", result.drafted)
    if not drafted.size and np.count_nonzero(np.bincount(slot) > 1):
        raise Malformed("a step result names a slot twice")
    if result.finish.strip(_DEVICE_FINISHES):
        raise Malformed("a step result has a finish that no device decides")
    step = StepResult(result.step_id, slot, generation, token_id, finish, drafted=drafted)
    vectors = scores = None
    if result.HasField("vectors"):
        step, vectors = _with_vectors(step, result.vectors, num_slots, embedding_dim)
    if result.HasField("scores"):
        step, scores = _with_scores(step, result.scores, num_slots)
    timing = result.timing
    return Result(
        epoch=result.epoch,
        step=step,
        logprobs=(
            _decode_logprobs(
                result.logprobs, int32_column("logprobs.row", result.logprobs.row), slot.size
            )
            if result.HasField("logprobs")
            else None
        ),
        timing=StepTiming(
            wait_s=timing.wait_us / 1e6,
            prepare_s=timing.prepare_us / 1e6,
            forward_s=timing.forward_us / 1e6,
            sample_s=timing.sample_us / 1e6,
        ),
        vectors=vectors,
        scores=scores,
    )


def _with_scores(
    step: StepResult, columns: worker_pb2.ScoreColumns, num_slots: int
) -> tuple[StepResult, ScoreTable]:
    slot = int32_column("scores.slot", columns.slot)
    generation = int32_column("scores.generation", columns.generation)
    start = int32_column("scores.start", columns.start)
    length = int32_column("scores.length", columns.length)
    if not slot.size == generation.size == start.size == length.size:
        raise Malformed("the columns of scores differ in length")
    if not all_below(slot, num_slots):
        raise Malformed(f"scores name a slot that is not below {num_slots}")
    if slot.size and (int(np.bincount(slot).max()) > 1 or length.min() < 1):
        raise Malformed("scores name a slot twice, or a run without a token")
    num_rows = len(columns.logprobs.logprob) // 4
    if int(length.sum(dtype=np.int64)) != num_rows:
        raise Malformed(f"scores have {num_rows} rows; their runs have {length.sum()} tokens")
    rows = np.arange(num_rows, dtype=np.int32)
    table = ScoreTable(start, length, _decode_logprobs(columns.logprobs, rows, num_rows))
    scored = replace(
        step,
        score_slot=slot,
        score_generation=generation,
        score_start=start,
        score_length=length,
    )
    return scored, table


def _with_vectors(
    step: StepResult, columns: worker_pb2.VectorColumns, num_slots: int, embedding_dim: int
) -> tuple[StepResult, VectorTable]:
    slot = int32_column("vectors.slot", columns.slot)
    generation = int32_column("vectors.generation", columns.generation)
    finish = np.frombuffer(columns.finish, np.uint8)
    value = float_column("vectors.value", columns.value)
    if not slot.size == generation.size == finish.size:
        raise Malformed("the columns of vectors differ in length")
    if value.size != slot.size * embedding_dim:
        raise Malformed(
            f"{slot.size} vectors have {value.size} values; they must have {embedding_dim} each"
        )
    if not all_below(slot, num_slots):
        raise Malformed(f"vectors name a slot that is not below {num_slots}")
    if slot.size and int(np.bincount(slot).max()) > 1:
        raise Malformed("vectors name a slot twice")
    if columns.finish.strip(_VECTOR_FINISHES):
        raise Malformed("a vector has a finish that is neither stop nor error")
    embedded = replace(step, vector_slot=slot, vector_generation=generation, vector_finish=finish)
    return embedded, value.reshape(slot.size, embedding_dim)


def _decode_logprobs(
    columns: sampling_pb2.LogprobColumns, row: Int32Column, num_rows: int
) -> LogprobTable:
    table = LogprobTable(
        row=row,
        logprob=float_column("logprobs.logprob", columns.logprob),
        rank=int32_column("logprobs.rank", columns.rank),
        num_top=int32_column("logprobs.num_top", columns.num_top),
        top_token_id=int32_column("logprobs.top_token_id", columns.top_token_id),
        top_logprob=float_column("logprobs.top_logprob", columns.top_logprob),
    )
    if not table.row.size == table.logprob.size == table.rank.size == table.num_top.size:
        raise Malformed("the columns of logprobs differ in length")
    if not all_below(table.row, num_rows):
        raise Malformed(f"logprobs speak of a row that is not below {num_rows}")
    if not all_below(table.num_top, MAX_LOGPROBS + 1):
        raise Malformed(f"a row of logprobs has more than {MAX_LOGPROBS} alternatives")
    if not int(table.num_top.sum()) == table.top_token_id.size == table.top_logprob.size:
        raise Malformed("the alternatives of logprobs do not add up to num_top")
    return table


def _hello_range(field: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise Malformed(f"{field} is {value}; it must be at least {low} and at most {high}")


def encode_welcome(epoch: int, hash_seed: bytes = b"", *, keeps_names: bool = False) -> bytes:
    """An AttachResponse that opens an epoch."""
    welcome = worker_pb2.Welcome(epoch=epoch, hash_seed=hash_seed, keeps_names=keeps_names)
    return worker_pb2.AttachResponse(welcome=welcome).SerializeToString()


def brings_grammar(plan: Plan) -> bool:
    """Whether a sequence is admitted that has to say what a grammar allows."""
    return any(_sampling_of(admission).grammar for admission in plan.admit)


def _sampling_of(admission: Admission) -> sampling_pb2.SamplingParams:
    assert isinstance(admission.sampling, sampling_pb2.SamplingParams)
    return admission.sampling


def encode_plan(plan: Plan, epoch: int) -> bytes:
    """An AttachResponse with the plan; written as it is to every rank."""
    response = worker_pb2.AttachResponse()
    message = response.plan
    message.epoch = epoch
    message.step_id = plan.step_id
    if plan.retire.size:
        message.retire_slot = plan.retire.tobytes()
    for admission in plan.admit:
        entry = message.admit.add(
            slot=admission.slot,
            generation=admission.generation,
            token_id=admission.token_ids.tobytes(),
            num_prompt_tokens=admission.num_prompt_tokens,
            max_total_tokens=admission.max_total_tokens,
            block=admission.blocks.tobytes(),
            num_computed=admission.num_computed,
            seed=admission.seed,
            score_from=admission.score_from,
        )
        entry.sampling.CopyFrom(_sampling_of(admission))
    if plan.append_slot.size:
        message.append_slot = plan.append_slot.tobytes()
        message.append_index = plan.append_index.tobytes()
        message.append_block = plan.append_block.tobytes()
    if plan.decode is not None:
        message.decode_slot = plan.decode.tobytes()
    if plan.chunk_slot.size:
        message.chunk_slot = plan.chunk_slot.tobytes()
        message.chunk_start = plan.chunk_start.tobytes()
        message.chunk_length = plan.chunk_length.tobytes()
    message.graph_bucket = plan.graph_bucket
    if plan.named_block.size:
        message.named_block = plan.named_block.tobytes()
        message.block_name = plan.block_name
    if plan.unnamed_block.size:
        message.unnamed_block = plan.unnamed_block.tobytes()
    if plan.draft_slot.size:
        message.draft_slot = plan.draft_slot.tobytes()
        message.draft_length = plan.draft_length.tobytes()
        message.max_draft_tokens = plan.max_draft_tokens
        message.min_draft_tokens = plan.min_draft_tokens
    return response.SerializeToString()
