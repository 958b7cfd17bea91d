"""A conversation that is too long loses as few of its first turns as may be."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.conversation import ChatMessage
from gateway.errors import RequestError, invalid
from gateway.model import ChatPrompt
from gateway.openai.truncation import fitting_prompt

ROLES = st.lists(st.sampled_from(["user", "assistant", "tool", "system"]), min_size=1, max_size=9)


def numbered(roles: list[str]) -> list[ChatMessage]:
    return [ChatMessage(role, str(number)) for number, role in enumerate(roles)]


def prompt_of(turns: Sequence[ChatMessage]) -> ChatPrompt:
    """Ten tokens a turn, the first of which says which turn it is."""
    return ChatPrompt([int(turn.content) for turn in turns for _ in range(10)])


@given(roles=ROLES, most=st.integers(1, 100))
def test_as_few_as_may_be(roles: list[str], most: int) -> None:
    turns = numbered(roles)
    prompt = fitting_prompt(turns, prompt_of, most)
    start = prompt.token_ids[0]
    fits = len(prompt.token_ids) <= most
    others = [index for index in range(1, len(roles)) if roles[index] != "tool"]
    fitting = [index for index in [0, *others] if 10 * (len(roles) - index) <= most]
    users = [index for index in fitting if index == 0 or roles[index] == "user"]
    if users:
        assert start == users[0]
    elif fitting:
        assert start == fitting[0]
    else:
        assert not fits
        assert start == max([0, *others])


def test_results_of_tools_go_with_their_call() -> None:
    turns = numbered(["user", "assistant", "tool", "tool", "assistant", "tool"])
    assert fitting_prompt(turns, prompt_of, 30).token_ids[0] == 4
    assert fitting_prompt(turns, prompt_of, 50).token_ids[0] == 1


def test_what_a_template_refuses_is_not_kept() -> None:
    def alternating(turns: Sequence[ChatMessage]) -> ChatPrompt:
        if turns[0].role != "user":
            raise invalid("input", "the first must be a user's")
        return prompt_of(turns)

    turns = numbered(["user", "assistant"] * 4 + ["user"])
    assert fitting_prompt(turns, alternating, 40).token_ids[0] == 6
    with pytest.raises(RequestError, match="must be a user's"):
        fitting_prompt(numbered(["assistant"]), alternating, 40)


def test_what_is_wrong_is_not_cut_away() -> None:
    def strict(turns: Sequence[ChatMessage]) -> ChatPrompt:
        if turns[0].content == "0":
            raise invalid("input[0]", "wrong")
        return prompt_of(turns)

    with pytest.raises(RequestError, match="wrong"):
        fitting_prompt(numbered(["user", "assistant", "user"]), strict, 10)
