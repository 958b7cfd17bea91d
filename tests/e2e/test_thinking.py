"""Thoughts that are ended when their budget is spent, with the real model.

SmolLM2 does not think, and never ends thoughts by itself: two tokens that it does not use stand for
their begin and end here, so all that ends them is the budget.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest
from pydantic import BaseModel

from quire.models import resolve
from tests.e2e.server import Server, serve

TEMPLATE = Path(__file__).parents[1] / "gateway" / "templates" / "hermes.jinja"
MODEL = "thinker"
ASKED: dict[str, Any] = {
    "model": MODEL,
    "max_tokens": 48,
    "extra_body": {"temperature": 0},
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
}


class City(BaseModel):
    """What an answer is asked to be."""

    name: str
    is_capital: bool


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("models") / MODEL
    directory.mkdir()
    for path in resolve("smollm2", lambda message: None).path.iterdir():
        (directory / path.name).symlink_to(path)
    tokenizer = directory / "tokenizer.json"
    layout = tokenizer.read_text(encoding="utf-8")
    tokenizer.unlink()
    for unused, tag in (("<reponame>", "<think>"), ("<file_sep>", "</think>")):
        assert unused in layout
        layout = layout.replace(unused, tag)
    tokenizer.write_text(layout, encoding="utf-8")
    flags = ("--max-model-len", "512", "--chat-template", str(TEMPLATE))
    with serve(directory, tmp_path_factory.mktemp("run"), *flags) as running:
        yield running


@pytest.fixture
def claude(server: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


def num_tokens(server: Server, text: str) -> int:
    count: int = httpx.post(f"{server.url}/tokenize", json={"prompt": text}).json()["count"]
    return count


def test_without_a_budget_it_thinks_to_the_end(claude: anthropic.Anthropic) -> None:
    message = claude.messages.create(**ASKED, thinking={"type": "adaptive"})
    assert [block.type for block in message.content] == ["thinking"]


@pytest.mark.parametrize("budget", [6, 12])
def test_the_answer_begins_when_the_budget_is_spent(
    server: Server, claude: anthropic.Anthropic, budget: int
) -> None:
    thinking: Any = {"type": "enabled", "budget_tokens": budget}
    message = claude.messages.create(**ASKED, thinking=thinking)
    thoughts, text = message.content
    assert (thoughts.type, text.type) == ("thinking", "text")
    assert num_tokens(server, getattr(thoughts, "thinking", "")) <= budget
    assert getattr(text, "text", "")
    with claude.messages.stream(**ASKED, thinking=thinking) as stream:
        streamed = stream.get_final_message()
    assert [block.type for block in streamed.content] == ["thinking", "text"]
    assert getattr(streamed.content[0], "thinking", None) == getattr(thoughts, "thinking", "")
    assert getattr(streamed.content[1], "text", None) == getattr(text, "text", "")


def test_what_has_a_form_keeps_it_after_the_thoughts(claude: anthropic.Anthropic) -> None:
    message = claude.messages.parse(
        **(ASKED | {"max_tokens": 150}),
        thinking={"type": "enabled", "budget_tokens": 10},
        output_format=City,
    )
    assert message.stop_reason == "end_turn"
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert isinstance(message.parsed_output, City)
