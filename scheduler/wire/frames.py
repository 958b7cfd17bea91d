"""What routers are told: welcomes, frames, refusals and the status of the cell."""

from collections.abc import Sequence

from protos.quire.v1 import sampling_pb2, scheduler_pb2, worker_pb2
from scheduler.core.decisions import Finished
from scheduler.core.events import Int32Column, Refused
from scheduler.core.state import CoreState, ReplicaState
from scheduler.messages import (
    CellView,
    LogprobTable,
    ModelCard,
    ReplicaView,
    ScoreTable,
    VectorTable,
)


def encode_welcome(incarnation: int) -> bytes:
    """A ConnectResponse that opens the stream."""
    welcome = scheduler_pb2.RouterWelcome(incarnation=incarnation)
    return scheduler_pb2.ConnectResponse(welcome=welcome).SerializeToString()


def encode_refusal(sequence_id: int, refused: Refused) -> bytes:
    """A ConnectResponse that says why a Submit was not accepted."""
    refusal = scheduler_pb2.Refusal(
        sequence_id=sequence_id,
        code=(
            scheduler_pb2.REFUSAL_CODE_INVALID
            if refused.invalid
            else scheduler_pb2.REFUSAL_CODE_OVERLOADED
        ),
        message=refused.message,
        field=refused.field,
        retry_after_s=refused.retry_after_s,
    )
    return scheduler_pb2.ConnectResponse(refusal=refusal).SerializeToString()


def encode_frame(
    sequence_id: Int32Column,
    token_id: Int32Column,
    logprobs: LogprobTable | None,
    finished: Sequence[Finished],
    vectors: VectorTable | None = None,
    scored: Int32Column | None = None,
    scores: ScoreTable | None = None,
) -> bytes:
    """A ConnectResponse with one step's news for one router; rows of logprobs index token_id.

    `vectors` are the step's; the ends say which is whose. `scored` are the sequences of the runs
    in `scores`.
    """
    response = scheduler_pb2.ConnectResponse()
    frame = response.frame
    frame.SetInParent()
    if sequence_id.size:
        frame.sequence_id = sequence_id.tobytes()
        frame.token_id = token_id.tobytes()
    if logprobs is not None:
        frame.logprobs.row = logprobs.row.tobytes()
        _fill_logprobs(frame.logprobs, logprobs)
    if scores is not None and scored is not None:
        frame.scores.sequence_id = scored.tobytes()
        frame.scores.start = scores.start.tobytes()
        frame.scores.length = scores.length.tobytes()
        _fill_logprobs(frame.scores.logprobs, scores.logprobs)
    for end in finished:
        frame.finished.add(
            sequence_id=end.sequence_id,
            reason=sampling_pb2.FinishReason.Name(end.reason),
            num_prompt_tokens=end.num_prompt_tokens,
            num_output_tokens=end.num_output_tokens,
            num_cached_tokens=end.num_cached_tokens,
            num_preemptions=end.num_preemptions,
            queue_s=end.queue_s,
            prefill_s=end.prefill_s,
            decode_s=end.decode_s,
            message=end.message,
            vector=_vector_of(end, vectors),
        )
    return response.SerializeToString()


def _fill_logprobs(columns: sampling_pb2.LogprobColumns, table: LogprobTable) -> None:
    """All columns but `row`."""
    columns.logprob = table.logprob.tobytes()
    columns.rank = table.rank.tobytes()
    columns.num_top = table.num_top.tobytes()
    columns.top_token_id = table.top_token_id.tobytes()
    columns.top_logprob = table.top_logprob.tobytes()


def _vector_of(end: Finished, vectors: VectorTable | None) -> bytes:
    if end.vector_row is None or vectors is None:
        return b""
    data: bytes = vectors[end.vector_row].tobytes()
    return data


def status_of(view: CellView, state: CoreState) -> scheduler_pb2.CellStatus:
    """What routers may know of the cell."""
    blocks = {replica.replica: replica for replica in state.replicas}
    status = scheduler_pb2.CellStatus(
        num_running=state.num_running,
        num_waiting=state.num_waiting,
        num_generated_tokens=state.num_generated_tokens,
        draining=view.draining,
    )
    if view.model is not None:
        status.model.CopyFrom(_model_card(view.model))
    for replica in view.replicas:
        _add_replica(status, replica, blocks[replica.replica_id])
    return status


def _add_replica(
    status: scheduler_pb2.CellStatus, replica: ReplicaView, state: ReplicaState
) -> None:
    status.replicas.add(
        replica_id=replica.replica_id,
        epoch=replica.epoch,
        device=replica.device,
        last_seen_s=replica.last_seen_s,
        num_blocks_total=state.num_blocks_total,
        num_blocks_free=state.num_blocks_free,
        num_blocks_cached=state.num_blocks_cached,
        num_blocks_used=state.num_blocks_used,
        num_running=state.num_running,
        num_waiting=state.num_waiting,
        block_size=state.block_size,
        pids=replica.pids,
        num_steps=replica.num_steps,
        step_age_s=replica.step_age_s,
        step_patience_s=replica.step_patience_s,
        num_generated_tokens=state.num_generated_tokens,
        num_vectors=state.num_vectors,
    )


def _model_card(model: ModelCard) -> worker_pb2.ModelCard:
    return worker_pb2.ModelCard(
        name=model.name,
        revision=model.revision,
        max_model_len=model.max_model_len,
        vocab_size=model.vocab_size,
        dtype=model.dtype,
        pooling=worker_pb2.Pooling.Name(model.pooling or 0),
        embedding_dim=model.embedding_dim,
        is_encoder=model.is_encoder,
    )


def encode_status(view: CellView, state: CoreState) -> bytes:
    """A ConnectResponse with the status of the cell."""
    return scheduler_pb2.ConnectResponse(status=status_of(view, state)).SerializeToString()


def state_of(view: CellView, state: CoreState) -> scheduler_pb2.GetStateResponse:
    """The totals, for people and `quire state`."""
    return scheduler_pb2.GetStateResponse(
        status=status_of(view, state),
        incarnation=view.incarnation,
        num_routers=view.num_routers,
        uptime_s=view.uptime_s,
        num_preemptions=state.num_preemptions,
        num_prefix_query_tokens=state.num_prefix_query_tokens,
        num_prefix_hit_tokens=state.num_prefix_hit_tokens,
        num_overrun_tokens=state.num_overrun_tokens,
        num_replays=state.num_replays,
        num_suspects=state.num_suspects,
        num_convicted=state.num_convicted,
        num_expired=state.num_expired,
        num_distrusted=state.num_distrusted,
        num_draft_tokens=state.num_draft_tokens,
        num_accepted_tokens=state.num_accepted_tokens,
    )
