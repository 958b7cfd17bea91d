"""What makes a request impossible, told at once and with numbers.

That it makes sense in itself was checked where it came in. Nothing here looks at load: these are
the requests that waiting could not help.
"""

from collections.abc import Collection

from scheduler.core.events import Refused, Request
from scheduler.core.replica import Replica


def check_room(request: Request, replicas: Collection[Replica]) -> None:
    """Raises Refused if some replica is attached and none could ever hold the request."""
    total = request.num_prompt_tokens + request.max_tokens
    if not replicas or any(replica.can_hold(total) for replica in replicas):
        return
    prompt, max_tokens = request.num_prompt_tokens, request.max_tokens
    max_model_len = max(replica.capacity.max_model_len for replica in replicas)
    if prompt >= max_model_len:
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
    largest = max(replicas, key=lambda replica: replica.capacity.num_blocks * replica.block_size)
    raise Refused(
        f"prompt has {prompt} tokens and max_tokens is {max_tokens}:"
        f" {largest.num_blocks_for(total - 1)} KV blocks of {largest.block_size} tokens;"
        f" the largest replica has {largest.capacity.num_blocks}",
        field="max_tokens",
    )
