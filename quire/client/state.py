"""What a scheduler says of itself: for `quire state`, and `LLM.state`."""

from typing import Any

import grpc

from protos.channels import dial
from protos.outage import plainly
from protos.quire.v1 import scheduler_pb2, scheduler_pb2_grpc
from protos.trust import Trust
from quire.client.wire import CHANNEL_OPTIONS
from quire.errors import RequestFailed


async def fetch_state(
    target: str, timeout_s: float = 5.0, trust: Trust | None = None
) -> dict[str, Any]:
    """The scheduler's totals as plain data, for people and `--json`. Raises RequestFailed.

    `trust` is what the scheduler knows its callers by; None: the token in the environment, if any.
    """
    trust = trust or Trust.read()
    async with dial(trust, target, CHANNEL_OPTIONS) as channel:
        stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
        try:
            state = await stub.GetState(
                scheduler_pb2.GetStateRequest(), timeout=timeout_s, metadata=trust.metadata
            )
        except grpc.aio.AioRpcError as error:
            reason = plainly(error.code().name, error.details())
            raise RequestFailed(f"no state of the scheduler at {target}: {reason}") from error
    replicas = [_replica(replica) for replica in state.status.replicas]
    kinds = ("total", "free", "cached", "used")
    return {
        "model": state.status.model.name if state.status.HasField("model") else None,
        "blocks": {kind: sum(r["blocks"][kind] for r in replicas) for kind in kinds},
        "running": state.status.num_running,
        "waiting": state.status.num_waiting,
        "draining": state.status.draining,
        "routers": state.num_routers,
        "only_embeds": state.status.model.is_encoder,
        "generated_tokens": state.status.num_generated_tokens,
        "vectors": sum(replica["vectors"] for replica in replicas),
        "preemptions": state.num_preemptions,
        "prefix_query_tokens": state.num_prefix_query_tokens,
        "prefix_hit_tokens": state.num_prefix_hit_tokens,
        "overrun_tokens": state.num_overrun_tokens,
        "replays": state.num_replays,
        "draft_tokens": state.num_draft_tokens,
        "accepted_tokens": state.num_accepted_tokens,
        "uptime_s": state.uptime_s,
        "replicas": replicas,
    }


def _replica(status: scheduler_pb2.ReplicaStatus) -> dict[str, Any]:
    return {
        "replica": status.replica_id,
        "epoch": status.epoch,
        "device": status.device,
        "pids": list(status.pids),
        "last_seen_s": status.last_seen_s,
        "steps": status.num_steps,
        "vectors": status.num_vectors,
        "running": status.num_running,
        "waiting": status.num_waiting,
        "block_size": status.block_size,
        "blocks": {
            "total": status.num_blocks_total,
            "free": status.num_blocks_free,
            "cached": status.num_blocks_cached,
            "used": status.num_blocks_used,
        },
    }
