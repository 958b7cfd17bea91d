"""What makes a request impossible, told at once and with numbers.

Nothing here looks at load: these are the requests that waiting could not help, and the full queue.
"""

from collections.abc import Collection

from scheduler.core.events import Refused, Request
from scheduler.core.replica import Replica

_MAX_SAMPLES = 128
_MAX_SEQUENCE_ID = 2**32 - 1


def check_request(request: Request) -> None:
    """Raises Refused for values that contradict themselves or the contract."""
    num_tokens = len(request.token_ids)
    if num_tokens == 0:
        raise Refused("the prompt is empty; it must have at least 1 token", field="token_id")
    if not 1 <= request.num_prompt_tokens <= num_tokens:
        raise Refused(
            f"num_prompt_tokens is {request.num_prompt_tokens};"
            f" it must be 1 to the {num_tokens} tokens given",
            field="num_prompt_tokens",
        )
    if request.max_tokens < 1:
        raise Refused(
            f"max_tokens is {request.max_tokens}; it must be at least 1", field="max_tokens"
        )
    if num_tokens - request.num_prompt_tokens > request.max_tokens:
        raise Refused(
            f"{num_tokens - request.num_prompt_tokens} output tokens were given;"
            f" max_tokens is {request.max_tokens}",
            field="token_id",
        )
    if not 1 <= request.num_samples <= _MAX_SAMPLES:
        raise Refused(
            f"num_samples is {request.num_samples}; it must be 1 to {_MAX_SAMPLES}",
            field="num_samples",
        )
    if not 0 <= request.sequence_id <= _MAX_SEQUENCE_ID + 1 - request.num_samples:
        raise Refused(
            f"sequence_id is {request.sequence_id} for {request.num_samples} samples;"
            f" ids are 0 to {_MAX_SEQUENCE_ID}",
            field="sequence_id",
        )


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
