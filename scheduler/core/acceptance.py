"""Why a request is not accepted, told at once and with numbers.

That it makes sense in itself was checked where it came in. `check_room` finds those that waiting
could not help; `check_load` those for which there is no place in the queue now.
"""

from collections.abc import Collection

from scheduler.core.config import CoreConfig
from scheduler.core.events import Refused, Request
from scheduler.core.replica import Replica
from scheduler.core.throughput import wait_s
from scheduler.core.waiting import WaitingQueue


def check_room(request: Request, replicas: Collection[Replica]) -> None:
    """Raises Refused if some replica is attached and none could ever hold the request."""
    if not replicas or any(replica.can_hold(request) for replica in replicas):
        return
    total = request.max_total_tokens
    prompt, max_tokens = request.num_prompt_tokens, request.max_tokens
    max_model_len = max(replica.capacity.max_model_len for replica in replicas)
    if prompt > max_model_len or (prompt == max_model_len and max_tokens > 0):
        raise Refused(
            f"prompt has {prompt} tokens; this model accepts at most {max_model_len}"
            " for prompt and output together",
            field="token_id",
        )
    if total > max_model_len:
        raise Refused(
            f"prompt has {prompt} tokens and max_tokens is {max_tokens}, {total} together;"
            f" this model accepts at most {max_model_len}",
            field="max_tokens",
        )
    if all(not replica.keeps_kv for replica in replicas):
        most = max(replica.max_step_tokens for replica in replicas)
        raise Refused(
            f"prompt has {prompt} tokens; it is computed whole, and a step has at most {most}",
            field="token_id",
        )
    largest = max(replicas, key=lambda replica: replica.capacity.num_blocks * replica.block_size)
    num_blocks = largest.num_blocks_for(request.num_positions)
    raise Refused(
        f"prompt has {prompt} tokens and max_tokens is {max_tokens}:"
        f" {num_blocks} KV blocks of {largest.block_size} tokens;"
        f" the largest replica has {largest.capacity.num_blocks}",
        field="max_tokens",
    )


def check_load(
    request: Request,
    replicas: Collection[Replica],
    queues: Collection[WaitingQueue],
    config: CoreConfig,
    *,
    mean_output_tokens: float,
) -> None:
    """Raises Refused if too much is queued already. What was accepted once is never refused, and
    nothing is for its size alone. When to come back follows from the replicas' speed and the
    length of an output."""
    num_waiting = sum(len(queue) for queue in queues)
    is_new = not request.resubmitted and len(request.token_ids) == request.num_prompt_tokens
    if num_waiting == 0 or not is_new:
        return
    num_queued_tokens = sum(queue.num_tokens for queue in queues)
    num_tokens = len(request.token_ids) * request.num_samples
    if num_waiting + request.num_samples > config.max_queued:
        message = f"{num_waiting} sequences are queued; the limit is {config.max_queued}"
    elif num_queued_tokens + num_tokens > config.max_queued_tokens:
        message = (
            f"{num_queued_tokens} tokens are queued and this request has {num_tokens};"
            f" the limit is {config.max_queued_tokens}"
        )
    else:
        return
    tokens_per_s = sum(replica.in_flight.throughput.tokens_per_s for replica in replicas)
    backlog = num_queued_tokens + num_waiting * mean_output_tokens
    raise Refused(message, invalid=False, retry_after_s=wait_s(backlog, tokens_per_s))
