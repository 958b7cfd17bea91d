"""Why a request is not accepted, told at once and with numbers.

That it makes sense in itself was checked where it came in. `check_room` finds those that waiting
could not help; `check_load` those for which there is no place in the queue now. One tenant may
fill the queue, and not keep the others out: beyond a limit there is a quarter more for tenants
below an even share of it.

    held < limit / (tenants that wait + 1)   while   all <= limit * 5/4

What was accepted before, by a scheduler that is gone, is refused by neither: it waits.
"""

from collections.abc import Collection

from scheduler.core.config import CoreConfig
from scheduler.core.events import Refused, Request
from scheduler.core.fairness import Account
from scheduler.core.replica import Replica
from scheduler.core.throughput import wait_s
from scheduler.core.waiting import WaitingQueue


def check_room(request: Request, replicas: Collection[Replica]) -> None:
    """Raises Refused if some replica is attached and none could ever hold the request. What was
    accepted before is refused only where no replica of this model could: a larger one may come."""
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
    if _was_accepted(request):
        return
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
    account: Account | None,
    mean_output_tokens: float,
) -> None:
    """Raises Refused if too much is queued already for the tenant, whose account it is if it has
    one. Nothing is refused for its size alone. When to come back follows from the replicas' speed
    and the length of an output."""
    num_waiting = sum(len(queue) for queue in queues)
    if num_waiting == 0 or _was_accepted(request):
        return
    num_queued_tokens = sum(queue.num_tokens for queue in queues)
    num_tokens = len(request.token_ids) * request.num_samples
    num_after, tokens_after = num_waiting + request.num_samples, num_queued_tokens + num_tokens
    if num_after <= config.max_queued and tokens_after <= config.max_queued_tokens:
        return
    num_tenants = len({other for queue in queues for other in queue.tenants()})
    held = sum(queue.num_sequences_of(account) for queue in queues)
    held_tokens = sum(queue.num_tokens_of(account) for queue in queues)
    if not _has_place(num_after, held, num_tenants, config.max_queued):
        message = f"{num_waiting} sequences are queued; the limit is {config.max_queued}"
    elif not _has_place(tokens_after, held_tokens, num_tenants, config.max_queued_tokens):
        message = (
            f"{num_queued_tokens} tokens are queued and this request has {num_tokens};"
            f" the limit is {config.max_queued_tokens}"
        )
    else:
        return
    tokens_per_s = sum(replica.in_flight.throughput.tokens_per_s for replica in replicas)
    backlog = num_queued_tokens + num_waiting * mean_output_tokens
    raise Refused(message, invalid=False, retry_after_s=wait_s(backlog, tokens_per_s))


def _has_place(num_after: int, held: int, num_tenants: int, limit: int) -> bool:
    """Whether there may be so many, for a tenant that holds some of them already."""
    if num_after <= limit:
        return True
    return held * (num_tenants + 1) < limit and 4 * num_after <= 5 * limit


def _was_accepted(request: Request) -> bool:
    """By a scheduler before this one."""
    return request.resubmitted or len(request.token_ids) > request.num_prompt_tokens
