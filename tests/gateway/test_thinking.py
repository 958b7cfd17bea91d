"""Whether and how much a model thinks: what its template is told, and thoughts that are ended."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken, Tokenizer

from gateway.anthropic.messages import parse_messages
from gateway.errors import RequestError
from gateway.model import Model, load_model
from gateway.openai.chat import parse_chat
from gateway.openai.responses import StoredResponse, parse_response
from gateway.request import GenerateRequest
from gateway.wire import parse_generate
from protos.quire.v1 import inference_pb2
from tests.gateway import tiny_model
from tests.gateway.tiny_model import EOS

LENGTH = 4096
VOCAB = 402
BEGIN, END = 400, 401
"""<think> and </think>: tokens of the vocabulary, as in Qwen's, that are not special."""
TEMPLATE = """
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if SWITCH is defined and SWITCH is false %}{{- '<think>\\n\\n</think>\\n\\n' }}
    {%- else %}{{- OPENING }}
    {%- endif %}
{%- endif %}
"""
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def write_thinker(directory: Path, switch: str = "enable_thinking", opening: str = "") -> Path:
    """The tiny model with tokens for thoughts; `opening` is what its template ends with."""
    tiny_model.build(directory)
    path = str(directory / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    tokenizer.add_tokens([AddedToken(text, special=False) for text in ("<think>", "</think>")])
    assert (tokenizer.token_to_id("<think>"), tokenizer.token_to_id("</think>")) == (BEGIN, END)
    tokenizer.save(path)
    tiny_model.write_json(directory / "config.json", {"vocab_size": VOCAB, "eos_token_id": EOS})
    source = TEMPLATE.replace("SWITCH", switch).replace("OPENING", json.dumps(opening))
    (directory / "chat_template.jinja").write_text(source)
    return directory


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_thinker(tmp_path_factory.mktemp("thinkers") / "thinker")


@pytest.fixture(scope="module")
def thinker(directory: Path) -> Model:
    return load_model(directory)


@pytest.fixture(scope="module")
def always(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model whose template begins its thoughts, and cannot be told otherwise."""
    path = tmp_path_factory.mktemp("thinkers") / "always"
    return load_model(write_thinker(path, "nothing", "<think>\n"))


def message(model: Model, /, **fields: Any) -> GenerateRequest:
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 99, **fields}
    content = json.dumps(body).encode()
    return parse_messages(content, model, LENGTH, "r1", random.Random()).requests[0]


def response(model: Model, /, **fields: Any) -> GenerateRequest:
    def find(response_id: str) -> StoredResponse:
        raise AssertionError(response_id)

    content = json.dumps({"input": "hi", **fields}).encode()
    return parse_response(content, model, LENGTH, "r1", random.Random(), find=find).requests[0]


def chat(model: Model, /, **fields: Any) -> GenerateRequest:
    content = json.dumps({"messages": [{"role": "user", "content": "hi"}], **fields}).encode()
    return parse_chat(content, model, LENGTH, "r1", random.Random()).requests[0]


def prompt_of(model: Model, request: GenerateRequest) -> str:
    return model.tokenizer.decode(request.prompt_token_ids.tolist(), skip_special_tokens=False)


def refusal(model: Model, /, **fields: Any) -> tuple[str | None, str]:
    with pytest.raises(RequestError) as refused:
        message(model, **fields)
    return refused.value.field, refused.value.message


class Answering:
    """What may come next in an answer, token by token, as the worker finds it."""

    def __init__(self, directory: Path, grammar: str) -> None:
        tokenizer = LLTokenizer(str(directory / "tokenizer.json"), n_vocab=VOCAB)
        self._matcher = LLMatcher(tokenizer, grammar, log_level=0)

    def allowed(self) -> list[int]:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        tokens = np.flatnonzero(np.unpackbits(bits, bitorder="little")[:VOCAB])
        assert not self._matcher.is_error(), self._matcher.get_error()
        return [token for token in tokens.tolist() if token != EOS]

    def write(self, *tokens: int) -> None:
        for token in tokens:
            assert self._matcher.consume_token(token), self._matcher.get_error()

    @property
    def may_end(self) -> bool:
        return self._matcher.is_accepting()


def budget(count: int) -> dict[str, Any]:
    return {"thinking": {"type": "enabled", "budget_tokens": count}}


WORDS = [30, 31, 32, 33, 34, 35]


@pytest.mark.parametrize("spent", [1, 3, 40])
def test_thoughts_are_ended_when_their_tokens_are_spent(
    directory: Path, thinker: Model, spent: int
) -> None:
    answering = Answering(directory, message(thinker, **budget(spent)).sampling.grammar)
    assert {BEGIN, *WORDS} <= set(answering.allowed())
    answering.write(BEGIN)
    for number in range(spent):
        assert {END, *WORDS} <= set(answering.allowed())
        assert not answering.may_end
        answering.write(WORDS[number % 6])
    assert answering.allowed() == [END]
    answering.write(END)
    assert answering.may_end
    answering.write(*WORDS)
    assert answering.may_end
    assert BEGIN not in answering.allowed()  # there is one budget, and it is spent


def test_thoughts_that_end_by_themselves_are_let(directory: Path, thinker: Model) -> None:
    answering = Answering(directory, message(thinker, **budget(9)).sampling.grammar)
    answering.write(BEGIN, 30, 31, END, *WORDS)
    assert answering.may_end
    unthinking = Answering(directory, message(thinker, **budget(9)).sampling.grammar)
    unthinking.write(*WORDS)
    assert unthinking.may_end
    assert BEGIN not in unthinking.allowed()


def test_thoughts_that_the_prompt_begins_are_counted(always: Model, directory: Path) -> None:
    request = message(always, **budget(2))
    assert prompt_of(always, request).endswith("<think>\n")
    answering = Answering(directory, request.sampling.grammar)
    answering.write(30, 240)  # half a character is no reason to go on
    assert answering.allowed() == [END]


def test_what_has_a_form_keeps_it_after_thoughts(directory: Path, thinker: Model) -> None:
    said = {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}
    request = message(thinker, **budget(2), **said)
    answering = Answering(directory, request.sampling.grammar)
    answering.write(BEGIN, 30, 31)
    assert answering.allowed() == [END]
    answering.write(END, *thinker.tokenizer.encode('\n{"a": 1', add_special_tokens=False))
    assert not answering.may_end
    answering.write(*thinker.tokenizer.encode("}", add_special_tokens=False))
    assert answering.may_end


def test_chats_and_responses_have_vllms_name_for_it(
    directory: Path, thinker: Model, model: Model
) -> None:
    for ask in (chat, response):
        answering = Answering(directory, ask(thinker, thinking_token_budget=2).sampling.grammar)
        answering.write(BEGIN, 30, 31)
        assert answering.allowed() == [END]
        for wrong, told in (
            (thinker, "thinking_token_budget is 0; it must be at least 1"),
            (model, 'thinking_token_budget is 3; model "tiny" does not think'),
        ):
            with pytest.raises(RequestError) as refused:
                ask(wrong, thinking_token_budget=0 if wrong is thinker else 3)
            assert (refused.value.field, refused.value.message) == ("thinking_token_budget", told)


def test_the_same_over_grpc(directory: Path, thinker: Model, model: Model) -> None:
    def ask(model: Model, most: int | None) -> GenerateRequest:
        user = inference_pb2.ChatMessage(role="user", content="hi")
        prompt = inference_pb2.ChatPrompt(messages=[user], max_thought_tokens=most)
        said = inference_pb2.GenerateRequest(chat=prompt)
        return parse_generate(said, model, LENGTH, "r1", random.Random()).request

    answering = Answering(directory, ask(thinker, 2).sampling.grammar)
    answering.write(BEGIN, 30, 31)
    assert answering.allowed() == [END]
    assert ask(thinker, None).sampling.grammar == ""
    for wrong, most, told in (
        (thinker, 0, "chat.max_thought_tokens is 0; it must be at least 1"),
        (model, 3, 'chat.max_thought_tokens is 3; model "tiny" does not think'),
    ):
        with pytest.raises(RequestError) as refused:
            ask(wrong, most)
        assert (refused.value.field, refused.value.message) == ("chat.max_thought_tokens", told)


@pytest.mark.parametrize("strict", [False, True])
def test_calls_are_free_to_come_after_thoughts(
    tmp_path: Path, directory: Path, strict: bool
) -> None:
    """Held to their schema or not."""
    path = write_thinker(tmp_path / "model")
    source = (path / "chat_template.jinja").read_text()
    tools = "{% for tool in tools or [] %}<tool_call>{{ tool | tojson }}{% endfor %}"
    (path / "chat_template.jinja").write_text(tools + source)
    model = load_model(path)
    function = {"name": "f", "parameters": SCHEMA, "strict": strict}
    request = chat(
        model, thinking_token_budget=2, tools=[{"type": "function", "function": function}]
    )
    encode = model.tokenizer.encode
    call = '\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    for text in (call, "words alone"):
        answering = Answering(directory, request.sampling.grammar)
        answering.write(BEGIN, 30, 31)
        assert answering.allowed() == [END]
        answering.write(END, *encode(text, add_special_tokens=False))
        assert answering.may_end
    wrong = Answering(directory, request.sampling.grammar)
    wrong.write(
        BEGIN, END, *encode('<tool_call>\n{"name": "f", "arguments": ', add_special_tokens=False)
    )
    assert (encode("[", add_special_tokens=False)[0] in wrong.allowed()) is not strict


@pytest.mark.parametrize("switch", ["enable_thinking", "thinking"])
def test_what_the_template_is_told(tmp_path: Path, switch: str) -> None:
    model = load_model(write_thinker(tmp_path / "model", switch))
    closed = "<think>\n\n</think>\n\n"
    for said, is_closed in (
        ({}, False),
        (budget(5), False),
        ({"thinking": {"type": "adaptive"}}, False),
        ({"thinking": {"type": "disabled"}}, True),
    ):
        request = message(model, **said)
        assert prompt_of(model, request).endswith(closed) is is_closed
        assert bool(request.sampling.grammar) is ("budget_tokens" in said.get("thinking", {}))
    for effort, is_closed in (("none", True), ("medium", False)):
        request = response(model, reasoning={"effort": effort})
        assert prompt_of(model, request).endswith(closed) is is_closed


def test_a_template_that_knows_how_much(tmp_path: Path) -> None:
    path = write_thinker(tmp_path / "model")
    template = path / "chat_template.jinja"
    template.write_text(template.read_text() + "{{ reasoning_effort | default('plenty') }}")
    model = load_model(path)
    for effort in ("none", "low", "max"):
        assert prompt_of(model, response(model, reasoning={"effort": effort})).endswith(effort)
    assert prompt_of(model, message(model, output_config={"effort": "low"})).endswith("low")
    assert prompt_of(model, message(model)).endswith("plenty")


def test_what_cannot_be_is_refused_by_name(thinker: Model, always: Model, model: Model) -> None:
    field = "thinking.budget_tokens"
    assert refusal(thinker, **budget(99)) == (
        field,
        f"{field} is 99; it must be less than max_tokens, which is 99",
    )
    assert refusal(thinker, **budget(0)) == (field, f"{field} is 0; it must be at least 1")
    assert refusal(thinker, thinking={"type": "enabled"}) == (field, f"{field} is missing")
    adaptive = {"type": "adaptive", "budget_tokens": 5}
    assert refusal(thinker, thinking=adaptive)[1].endswith("it needs thinking.type to be enabled")
    assert refusal(model, **budget(5)) == (
        "thinking.type",
        'thinking.type is "enabled"; model "tiny" does not think',
    )
    assert refusal(always, thinking={"type": "disabled"}) == (
        "thinking.type",
        'thinking.type is "disabled"; model "always" has a chat template that cannot be told not '
        "to think",
    )
    assert refusal(thinker, output_config={"effort": "high"}) == (
        "output_config.effort",
        'output_config.effort is "high"; the chat template of model "thinker" cannot be told how '
        "much to think",
    )
    assert not message(model, thinking={"type": "disabled"}).sampling.grammar
    assert not message(model, thinking={"type": "adaptive"}).sampling.grammar


def test_thoughts_that_are_spelt_out_cannot_be_counted(hermes: Model) -> None:
    """The tiny model has no token for </think>."""
    field, told = refusal(hermes, **budget(5))
    assert field == "thinking.budget_tokens"
    assert "do not begin and end with a token of their own" in told
