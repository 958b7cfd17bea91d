"""How logprobs are written where tokens are told by their text: in completions, and of prompts."""

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from gateway.detokenizer import TextOffsets
from gateway.errors import invalid
from gateway.output import TokenLogprob
from gateway.request import GenerateRequest
from gateway.tokenizer import Tokenizer

LEAST_LOGPROB = -9999.0
"""What OpenAI writes for "as good as impossible"; JSON has no infinity."""

MAX_PROMPT_LOGPROBS = 1 << 18
"""Of one call: every token of its prompts counts, and every alternative."""


def written(logprob: float) -> float:
    """A number that JSON has, whatever the model computed."""
    return max(LEAST_LOGPROB, logprob)  # in this order: nothing is greater than NaN, nor less


def check_prompt_logprobs(field: str, requests: Sequence[GenerateRequest]) -> None:
    """Raises RequestError if all that a call asks of its prompts is too much for one answer."""
    count = requests[0].sampling.num_prompt_logprobs
    if count is None:
        return
    num_tokens = sum(len(request.prompt_token_ids) for request in requests)
    total = num_tokens * (1 + count)
    if total > MAX_PROMPT_LOGPROBS:
        raise invalid(
            field,
            f"{field} is {count} and the prompts have {num_tokens} tokens, which makes {total} "
            f"logprobs; one request may ask for at most {MAX_PROMPT_LOGPROBS}",
        )


def chat_logprob(token: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    """A token as chat completions and responses write it."""
    content = tokenizer.bytes_of[token]
    return {
        "token": content.decode("utf-8", "replace"),
        "logprob": written(logprob),
        "bytes": list(content),
    }


def chat_logprobs(rows: Iterable[TokenLogprob], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Tokens with their likeliest alternatives, likewise."""
    return [
        chat_logprob(row.token_id, row.logprob, tokenizer)
        | {"top_logprobs": [chat_logprob(*top, tokenizer) for top in row.top]}
        for row in rows
    ]


class LogprobsByText:
    """The logprobs of an answer's tokens, found by the text that they are part of."""

    def __init__(self, bytes_of: Sequence[bytes]) -> None:
        """`bytes_of[token]` is what the token adds to the text."""
        self._bytes_of = bytes_of
        self._offsets = TextOffsets(bytes_of, 0)
        self._rows: deque[tuple[int, int, TokenLogprob]] = deque()
        """Of tokens whose text has not been asked for: its start and end."""

    def add(self, rows: Iterable[TokenLogprob]) -> None:
        """The text goes on with these tokens."""
        for row in rows:
            if not self._bytes_of[row.token_id]:
                continue  # it is no part of any text
            [(start, end)] = self._offsets.spans((row.token_id,))
            self._rows.append((start, end, row))

    def take(self, spans: Iterable[tuple[int, int]]) -> list[TokenLogprob]:
        """Those of these pieces of the text, in order; a token that lies in two is the first's.
        What comes before the last piece is not asked for any more."""
        taken = []
        for start, end in spans:
            while self._rows and self._rows[0][0] < end:
                token_start, token_end, row = self._rows.popleft()
                if token_start >= start or token_end > start:
                    taken.append(row)
        return taken


def prompt_offsets(token_ids: Sequence[int], text: str, tokenizer: Tokenizer) -> list[int]:
    """Where the tokens of a prompt begin in its text.

    What the tokenizer put before the text (a token that begins a sequence, a space) is not in it.
    """
    decoded = tokenizer.decode(token_ids, skip_special_tokens=False)
    before = len(decoded) - len(text) if decoded.endswith(text) else 0
    offsets = TextOffsets(tokenizer.bytes_of, 0).feed(token_ids)
    return [max(0, offset - before) for offset in offsets]


def token_text(token: int, tokenizer: Tokenizer) -> str:
    """A token's own text; the bytes of one that is no whole characters, as OpenAI writes them."""
    content = tokenizer.bytes_of[token]
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)


def top_logprobs(row: TokenLogprob, count: int, tokenizer: Tokenizer) -> dict[str, float]:
    """The `count` likeliest tokens, and the token itself even if it is not among them."""
    pairs = (*islice(row.top, count), (row.token_id, row.logprob))
    return {token_text(token, tokenizer): written(logprob) for token, logprob in pairs}


def prompt_logprobs(
    rows: Iterable[TokenLogprob], count: int, tokenizer: Tokenizer
) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`: by token id, the token itself first; none for the first token."""
    entries: list[dict[str, Any] | None] = [None]
    for row in rows:
        entry = {row.token_id: (row.logprob, row.rank)}
        for rank, (token, logprob) in enumerate(islice(row.top, count), start=1):
            entry.setdefault(token, (logprob, rank))
        entries.append(
            {
                str(token): {
                    "logprob": written(logprob),
                    "rank": rank,
                    "decoded_token": tokenizer.bytes_of[token].decode("utf-8", "replace"),
                }
                for token, (logprob, rank) in entry.items()
            }
        )
    return entries
