"""What makes a request impossible, told at once and with numbers.

That it makes sense in itself was checked where it came in. Nothing here looks at load: these are
the requests that waiting could not help.
"""

from collections.abc import Collection

from scheduler.core.events import Refused, Request
from scheduler.core.replica import Replica


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
