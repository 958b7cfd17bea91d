"""What people write of a conversation, and what is sent of it; and what comes back."""

import json
import re
from typing import Any

import numpy as np
import pytest

from protos.quire.v1 import inference_pb2, sampling_pb2
from quire import Chat, SamplingParams, StructuredOutputsParams, ToolCall
from quire.client.pieces import chunk_of
from quire.client.wire import Terms, embed_request, generate_request
from quire.outputs import Logprob, output_of

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA, "strict": True}}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}


def sent(prompt: Any, whole: bool = True, **params: Any) -> inference_pb2.GenerateRequest:
    return generate_request(prompt, SamplingParams(**params), Terms(), whole=whole)


def test_a_conversation_with_tools_is_sent_whole() -> None:
    parts = [{"type": "text", "text": "How is"}, {"type": "text", "text": "Rome?"}]
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be kind.", "name": "boss"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "hm",
         "refusal": None, "annotations": []},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]  # fmt: skip
    chat = sent(
        Chat(
            messages,
            tools=[TOOL],
            tool_choice={"type": "function", "function": {"name": "weather"}},
            parallel_tool_calls=False,
            chat_template_kwargs={"enable_thinking": False},
            continue_final_message=True,
            max_thought_tokens=30,
        )
    ).chat
    assert [message.role for message in chat.messages] == ["system", "user", "assistant", "tool"]
    assert chat.messages[0].name == "boss"
    assert chat.messages[1].content == "How is\nRome?"
    assert chat.messages[2].reasoning == "hm"
    assert chat.messages[2].tool_calls[0] == inference_pb2.ToolCall(
        id="c1", name="weather", arguments="{}"
    )
    assert chat.messages[3].tool_call_id == "c1"
    [tool] = chat.tools
    assert (tool.name, json.loads(tool.parameters), tool.strict) == ("weather", SCHEMA, True)
    assert not tool.HasField("description")
    assert chat.tool_choice.mode == inference_pb2.TOOL_CHOICE_MODE_NAMED
    assert chat.tool_choice.name == "weather"
    assert not chat.parallel_tool_calls
    assert json.loads(chat.chat_template_kwargs) == {"enable_thinking": False}
    assert chat.continue_final_message
    assert not chat.HasField("add_generation_prompt")
    assert chat.max_thought_tokens == 30
    assert not sent(Chat([{"role": "user", "content": "hi"}])).chat.HasField("max_thought_tokens")
    assert (
        sent([{"role": "user", "content": "hi"}]).chat
        == sent(Chat([{"role": "user", "content": "hi"}])).chat
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": ["hi"]}, "messages[0] is 'hi'; it must be a dict"),
        ({"messages": [{"content": "x"}]}, "messages[0].role is None; it must be a text"),
        (
            {"messages": [{"role": "user", "content": 5}]},
            "messages[0].content is 5; it must be a text, or a list of parts of type text",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0] is {'type': 'image_url'}; it must be a part of type text",
        ),
        (
            {"messages": [{"role": "user", "audio": {"id": "x"}}]},
            "messages[0].audio is not supported; there are role, content, name, tool_calls, "
            "tool_call_id, reasoning",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "x"}]}]},
            "messages[0].tool_calls[0].function is None; it must be a dict",
        ),
        ({"tools": [{"type": "web"}]}, "tools[0].type is 'web'; it must be \"function\""),
        (
            {"tools": [{"function": {"name": "x", "params": {"a": 1}}}]},
            "tools[0].function.params is not supported; there are name, description, parameters, "
            "strict",
        ),
        (
            {"tools": [{"function": {"name": "x", "parameters": "y"}}]},
            "tools[0].function.parameters is 'y'; it must be a JSON schema",
        ),
        (
            {"tool_choice": "any"},
            'tool_choice is \'any\'; it must be one of ["none", "auto", "required"], or a function',
        ),
        ({"max_thought_tokens": 0}, "max_thought_tokens is 0; it must be 1 to 4294967295"),
        ({"max_thought_tokens": "9"}, "max_thought_tokens is '9'; it must be 1 to 4294967295"),
    ],
)
def test_what_cannot_be_sent_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        sent(Chat(**({"messages": [{"role": "user", "content": "x"}]} | fields)))
    assert str(refused.value) == message


def test_a_prompt_may_be_a_dict_as_vllm_has_it() -> None:
    assert sent({"prompt": "hi"}) == sent("hi")
    assert sent({"prompt_token_ids": [1, 2], "prompt": None}) == sent([1, 2]) == sent((1, 2))
    assert sent(np.array([1, 2])) == sent([1, 2])
    inputs = embed_request([{"prompt_token_ids": [3]}, {"prompt": "x"}], None, Terms()).inputs
    assert ([*inputs[0].tokens.ids], inputs[1].text) == ([3], "x")
    piece = inference_pb2.GenerateResponse(
        finish_reason=sampling_pb2.FINISH_REASON_LENGTH, usage=inference_pb2.Usage()
    )
    chunk = chunk_of(piece, SamplingParams())
    answered = [
        output_of(said, [chunk], 1) for said in ({"prompt": "hi"}, {"prompt_token_ids": [1]})
    ]
    assert [(each.prompt, each.prompt_token_ids) for each in answered] == [
        ("hi", None),
        (None, [1]),
    ]


_KINDS = "it must be a text, token ids or messages"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (5, f"prompt is 5; {_KINDS}"),
        (None, f"prompt is None; {_KINDS}"),
        (b"hi", f"prompt is b'hi'; {_KINDS}"),
        ([1, "a"], f"prompt is [1, 'a']; {_KINDS}"),
        ({}, "prompt has nothing; a dict must have either prompt or prompt_token_ids"),
        (
            {"prompt": "a", "multi_modal_data": {}},
            "prompt has prompt and multi_modal_data; a dict must have either prompt or "
            "prompt_token_ids",
        ),
        ({"prompt": [1]}, "prompt.prompt is [1]; it must be a text"),
        ({"prompt_token_ids": "a"}, "prompt.prompt_token_ids is 'a'; it must be token ids"),
        ({"prompt_token_ids": {1: 2}}, "prompt.prompt_token_ids is {1: 2}; it must be token ids"),
    ],
)
def test_what_is_no_prompt_is_named(prompt: Any, message: str) -> None:
    with pytest.raises(ValueError, match="prompt") as refused:
        sent(prompt)
    assert str(refused.value) == message
    if prompt is not None:
        with pytest.raises(ValueError, match=re.escape(message.replace("prompt", "inputs[1]", 1))):
            embed_request(["fine", prompt], None, Terms())


def test_every_sampling_parameter_is_sent() -> None:
    """Each of its fields changes the message, or is what the message says by itself."""
    values: dict[str, Any] = {
        "n": 2, "temperature": 0.5, "top_p": 0.5, "top_k": 5, "min_p": 0.5, "seed": 5,
        "max_tokens": 5, "min_tokens": 5, "stop": ["a"], "include_stop_str_in_output": True,
        "stop_token_ids": [5], "ignore_eos": True, "presence_penalty": 1.5,
        "frequency_penalty": 1.5, "repetition_penalty": 1.5, "logit_bias": {5: 1.5},
        "logprobs": 5, "prompt_logprobs": 5, "allowed_token_ids": [5], "bad_words": ["a"],
        "structured_outputs": StructuredOutputsParams(regex="a"), "skip_special_tokens": False,
        "truncate_prompt_tokens": -1,
    }  # fmt: skip
    assert set(values) == set(SamplingParams.__dataclass_fields__)
    usual = sent("x").sampling
    seen = set()
    for name, value in values.items():
        said = sent("x", **{name: value}).sampling
        assert said != usual, name
        seen.add(said.SerializeToString(deterministic=True))
    assert len(seen) == len(values)


@pytest.mark.parametrize(
    ("said", "kind", "text"),
    [
        ({"json": SCHEMA}, "JSON_SCHEMA", json.dumps(SCHEMA)),
        ({"json": '{"type": "null"}'}, "JSON_SCHEMA", '{"type": "null"}'),
        ({"json_object": True}, "JSON_SCHEMA", '{"type": "object"}'),
        ({"regex": "a+"}, "REGEX", "a+"),
        ({"grammar": 'start: "a"'}, "LARK", 'start: "a"'),
    ],
)
def test_structures_are_grammars(said: dict[str, Any], kind: str, text: str) -> None:
    grammar = sent("x", structured_outputs=StructuredOutputsParams(**said)).sampling.grammar
    assert inference_pb2.GrammarKind.Name(grammar.kind) == f"GRAMMAR_KIND_{kind}"
    assert (grammar.text, list(grammar.choices)) == (text, [])


def test_choices_are_sent_as_they_are() -> None:
    said = StructuredOutputsParams(choice=["yes", "no"])
    grammar = sent("x", structured_outputs=said).sampling.grammar
    assert (grammar.text, list(grammar.choices)) == ("", ["yes", "no"])


def test_an_answer_is_the_next_turn_of_its_conversation() -> None:
    pieces = [
        inference_pb2.GenerateResponse(reasoning="h"),
        inference_pb2.GenerateResponse(reasoning="m", text="I a"),
        inference_pb2.GenerateResponse(
            text="sk.",
            tool_calls=[
                inference_pb2.ToolCallDelta(index=0, id="c1", name="weather", arguments='{"ci'),
                inference_pb2.ToolCallDelta(index=1, id="c2", name="time"),
            ],
        ),
        inference_pb2.GenerateResponse(
            tool_calls=[inference_pb2.ToolCallDelta(index=0, arguments='ty": "Rome"}')],
            finish_reason=sampling_pb2.FINISH_REASON_STOP,
            stop_text="END",
            usage=inference_pb2.Usage(num_prompt_tokens=3),
        ),
    ]
    params = SamplingParams()
    output = output_of(Chat([]), [chunk_of(piece, params) for piece in pieces], 1)
    [sample] = output.outputs
    assert (sample.reasoning, sample.text, sample.stop_reason) == ("hm", "I ask.", "END")
    assert sample.tool_calls == [
        ToolCall("c1", "weather", '{"city": "Rome"}'),
        ToolCall("c2", "time", ""),
    ]
    back = sent([{"role": "user", "content": "?"}, sample.message()]).chat.messages[1]
    assert (back.role, back.content, back.reasoning) == ("assistant", "I ask.", "hm")
    assert [(call.id, call.name, call.arguments) for call in back.tool_calls] == [
        ("c1", "weather", '{"city": "Rome"}'),
        ("c2", "time", ""),
    ]


def test_a_prompts_logprobs_are_by_token() -> None:
    columns = sampling_pb2.LogprobColumns(
        logprob=np.array([-1, -2], "<f4").tobytes(),
        rank=np.array([1, 9], "<i4").tobytes(),
        num_top=np.array([1, 1], "<i4").tobytes(),
        top_token_id=np.array([11, 50], "<i4").tobytes(),
        top_logprob=np.array([-1, -0.5], "<f4").tobytes(),
    )
    piece = inference_pb2.GenerateResponse(
        prompt_token_ids=[10, 11, 12],
        prompt_logprobs=columns,
        finish_reason=sampling_pb2.FINISH_REASON_LENGTH,
    )
    output = output_of("abc", [chunk_of(piece, SamplingParams(prompt_logprobs=1))], 1)
    assert output.prompt_token_ids == [10, 11, 12]
    assert output.prompt_logprobs == [
        None,
        {11: Logprob(-1.0, 1)},
        {50: Logprob(-0.5, 1), 12: Logprob(-2.0, 9)},
    ]
    assert output.outputs[0].token_ids == []


def test_the_prompts_tokens_are_asked_for_where_they_are_not_known() -> None:
    conversation = [{"role": "user", "content": "x"}]
    assert sent("x").return_prompt_token_ids
    assert sent(conversation).return_prompt_token_ids
    assert not sent([1, 2]).return_prompt_token_ids
    assert not sent("x", whole=False).return_prompt_token_ids
    assert sent([1, 2], whole=False, prompt_logprobs=0).return_prompt_token_ids
