"""What the scheduler refused, in the client's words.

A refusal names fields of Submit. The client knows none of them: it said them in its dialect, and
its prompt was not even tokens.
"""

import math
import re

from gateway.errors import Fault, RequestError
from gateway.request import GenerateRequest
from router.messages import Refusal

_SAID_AS = {
    # Submit's field: what the gateway calls it
    "token_id": "prompt",
    "num_prompt_tokens": "prompt",
    "num_samples": "n",
    "num_logprobs": "logprobs",
    "num_prompt_logprobs": "prompt_logprobs",
    "logit_bias_token_id": "logit_bias",
    "allowed_token_id": "allowed_token_ids",
    "bad_word_token_id": "bad_words",
    "bad_word_length": "bad_words",
    "deadline_s": "timeout",
    "max_tokens": "max_tokens",
}
_FIELD = re.compile(rf"\b({'|'.join(_SAID_AS)})\b")


def refusal_error(refusal: Refusal, request: GenerateRequest) -> RequestError:
    """The error that the client of `request` gets."""

    def rename(match: re.Match[str]) -> str:
        said_as = _SAID_AS[match[0]]
        return request.field_names.get(said_as, said_as)

    message = _FIELD.sub(rename, refusal.message)
    if refusal.retry:
        retry_after_s = max(1, math.ceil(refusal.retry_after_s))
        return RequestError(Fault.OVERLOADED, message, retry_after_s=retry_after_s)
    return RequestError(Fault.INVALID, message, field=_FIELD.sub(rename, refusal.field) or None)
