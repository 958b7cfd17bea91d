"""`truncation: "auto"`: a conversation that is too long loses its first turns until it fits.

As few as may be, but so that what is left begins with a user's turn, if any such rest fits: many
templates know no other beginning. Results of tools go with the turn that called them. Each try
is a prompt rendered and tokenized, so the place is searched for by halves.
"""

from collections.abc import Callable, Sequence

from gateway.conversation import ChatMessage
from gateway.errors import Fault, RequestError
from gateway.model import ChatPrompt

MakePrompt = Callable[[Sequence[ChatMessage]], ChatPrompt]


def fitting_prompt(
    turns: Sequence[ChatMessage], make_prompt: MakePrompt, max_tokens: int
) -> ChatPrompt:
    """The prompt of the turns, less the first ones if it has more than `max_tokens` tokens.

    What cannot be made to fit is as long as it is. Raises RequestError like `make_prompt`.
    """

    def fitting(start: int) -> ChatPrompt | None:
        try:
            prompt = make_prompt(turns[start:])
        except RequestError as error:  # too long to be tokenized, or nothing that may begin so
            if start == 0 and error.fault is not Fault.TOO_LONG:
                raise
            return None
        return prompt if len(prompt.token_ids) <= max_tokens else None

    if (prompt := fitting(0)) is not None:
        return prompt
    later = range(1, len(turns))
    users = [start for start in later if turns[start].role == "user"]
    others = [start for start in later if turns[start].role not in ("user", "tool")]
    for starts in (users, others):
        if (prompt := _first(starts, fitting)) is not None:
            return prompt
    return make_prompt(turns[max([0, *users, *others]) :])


def _first(starts: Sequence[int], fitting: Callable[[int], ChatPrompt | None]) -> ChatPrompt | None:
    """That of the earliest start that fits: from then on all do."""
    if not starts or (best := fitting(starts[-1])) is None:
        return None
    low, high = 0, len(starts) - 1
    while low < high:
        middle = (low + high) // 2
        if (prompt := fitting(starts[middle])) is None:
            low = middle + 1
        else:
            best, high = prompt, middle
    return best
