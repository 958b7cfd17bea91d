"""Tools, structured outputs, scores and errors with the real model, through `quire.Client`."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from quire import Chat, Client, SamplingParams, StructuredOutputsParams
from quire.errors import InvalidRequest, ModelNotServed
from quire.outputs import calls_of
from tests.e2e.server import Server, serve

TEMPLATE = Path(__file__).parents[1] / "gateway" / "templates" / "hermes.jinja"
CITIES = ["Paris", "London", "Rome"]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": CITIES}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}]
QUESTION = [{"role": "user", "content": "What will the weather be in Paris?"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    runtime_dir = tmp_path_factory.mktemp("run")
    flags = ("--max-model-len", "2048", "--chat-template", str(TEMPLATE))
    with serve("smollm2", runtime_dir, *flags) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(f"127.0.0.1:{server.grpc_port}", timeout=120) as client:
        yield client


def test_a_call_goes_to_the_client_and_its_result_back(client: Client) -> None:
    params = SamplingParams(temperature=1, seed=3, max_tokens=200, n=2)
    asked = Chat(QUESTION, tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
    whole = client.generate(asked, params)
    chunks = list(client.stream(asked, params))
    for sample in whole.outputs:
        assert (sample.text, sample.finish_reason) == ("", "stop")
        [call] = sample.tool_calls
        assert call.name == "get_weather"
        assert json.loads(call.arguments)["city"] in CITIES
        own = [chunk for chunk in chunks if chunk.index == sample.index]
        [streamed] = calls_of(delta for chunk in own for delta in chunk.tool_calls)
        assert (streamed.name, streamed.arguments) == (call.name, call.arguments)
        assert len(own) > 1
    [call] = whole.outputs[0].tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny, 25 °C"}
    messages = [*QUESTION, whole.outputs[0].message(), result]
    answer = client.generate(
        Chat(messages, tools=TOOLS, tool_choice="none"),
        SamplingParams(temperature=0, max_tokens=40),
    )
    assert answer.outputs[0].text
    assert answer.outputs[0].tool_calls == []


@pytest.mark.parametrize(
    "said",
    [
        {"json": SCHEMA},
        {"json_object": True},
        {"regex": "[a-c]{3,5}"},
        {"choice": ["yes", "no", "東京"]},
        {"grammar": 'start: "<" /[0-9]{1,4}/ ">"'},
    ],
)
@pytest.mark.parametrize("prompt", ["Answer: ", QUESTION])
def test_outputs_have_their_structure(client: Client, said: dict[str, Any], prompt: Any) -> None:
    structure = StructuredOutputsParams(**said)
    params = SamplingParams(seed=1, n=3, max_tokens=120, structured_outputs=structure)
    ended = [s for s in client.generate(prompt, params).outputs if s.finish_reason == "stop"]
    assert ended or "json_object" in said  # which may go on for long
    for sample in ended:
        match said:
            case {"json": _}:
                value = json.loads(sample.text)
                assert value["city"] in CITIES
                assert isinstance(value["days"], int)
            case {"json_object": _}:
                assert isinstance(json.loads(sample.text), dict)
            case {"regex": pattern}:
                assert re.fullmatch(pattern, sample.text)
            case {"choice": texts}:
                assert sample.text in texts
            case _:
                assert re.fullmatch("<[0-9]{1,4}>", sample.text)


def test_scores_are_those_of_the_http_door(client: Client, server: Server) -> None:
    prompt = "The capital of France is Paris. 東京"
    scored = client.generate(prompt, SamplingParams(max_tokens=0, prompt_logprobs=2))
    body = {"model": "smollm2", "prompt": prompt, "max_tokens": 0, "prompt_logprobs": 2}
    answer = httpx.post(f"{server.url}/v1/completions", json=body).json()
    over_http = answer["choices"][0]["prompt_logprobs"]
    assert scored.prompt_logprobs is not None
    assert len(over_http) == len(scored.prompt_logprobs) == scored.num_prompt_tokens
    assert over_http[0] is scored.prompt_logprobs[0] is None
    for told, row in zip(over_http[1:], scored.prompt_logprobs[1:], strict=True):
        assert row is not None
        assert {int(token): entry["rank"] for token, entry in told.items()} == {
            token: entry.rank for token, entry in row.items()
        }
        for token, entry in told.items():
            assert entry["logprob"] == pytest.approx(row[int(token)].logprob, abs=1e-3)


def test_what_must_not_come_does_not_come(client: Client) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=4)
    assert "Paris" in client.generate("The capital of France is", greedy).outputs[0].text
    without = SamplingParams(temperature=0, max_tokens=4, bad_words=["Paris"])
    assert "Paris" not in client.generate("The capital of France is", without).outputs[0].text
    only = client.tokenize("A", add_special_tokens=False)
    params = SamplingParams(max_tokens=4, allowed_token_ids=only)
    assert client.generate("x", params).outputs[0].token_ids == only * 4


def test_errors_tell_field_and_code(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="5000 tokens") as caught:
        client.generate([1] * 5000)
    assert (caught.value.field, caught.value.code) == ("tokens", "context_length_exceeded")
    structure = StructuredOutputsParams(regex="(")
    with pytest.raises(InvalidRequest, match=r"grammar\.text is not a regular exp") as wrong:
        client.generate("x", SamplingParams(structured_outputs=structure))
    assert (wrong.value.field, wrong.value.code) == ("grammar.text", "invalid_request")
    with pytest.raises(ModelNotServed) as elsewhere:
        client.generate("x", model="gpt-5")
    assert (elsewhere.value.field, elsewhere.value.code) == ("model", "model_not_found")
    assert elsewhere.value.retry_after_s is None
