"""LiteLLM: `openai/` before the model's name, and where the server is.

OPENAI_BASE_URL=http://127.0.0.1:8000/v1 python use_litellm.py
"""

import json
import os
from typing import Any, Literal

import litellm
from expect import expect
from pydantic import BaseModel, Field

litellm.suppress_debug_info = True  # else it prints a list of providers

MODEL = os.environ.get("MODEL", "smollm2")
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
CITIES = ["Paris", "London", "Rome"]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": CITIES}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


class Visit(BaseModel):
    city: Literal["Paris", "London", "Rome"]
    days: int = Field(ge=1, le=30)


def ask(messages: list[Any], **fields: Any) -> Any:
    return litellm.completion(
        model=f"openai/{MODEL}",
        api_base=os.environ["OPENAI_BASE_URL"],
        api_key="none",
        messages=messages,
        temperature=0,
        max_tokens=100,
        num_retries=0,
        **fields,
    )


def chat() -> str:
    answer = ask(QUESTION)
    text = answer.choices[0].message.content
    expect("Paris" in text, "Paris", text)
    expect(answer.usage.completion_tokens > 0, "a usage", answer.usage)
    return text


def stream(whole: str) -> None:
    pieces = list(ask(QUESTION, stream=True, stream_options={"include_usage": True}))
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    expect(text == whole, f"the words of the whole answer, {whole!r}", text)
    expect(len(pieces) > 2, "several pieces", pieces)
    expect(pieces[-1].usage.completion_tokens > 0, "a usage at the end", pieces[-1])


def call_a_tool() -> None:
    question = {"role": "user", "content": "What is the weather in Paris?"}
    fields = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False}
    message = ask([question], **fields).choices[0].message
    expect(len(message.tool_calls) == 1, "one call", message)
    (call,) = message.tool_calls
    expect(call.function.name == "get_weather", "get_weather", call)
    expect(json.loads(call.function.arguments)["city"] in CITIES, f"one of {CITIES}", call)

    pieces = list(ask([question], **fields, stream=True))
    rebuilt = litellm.stream_chunk_builder(pieces).choices[0].message.tool_calls
    expect(
        [said.function.arguments for said in rebuilt] == [call.function.arguments],
        f"the same call in pieces, {call}",
        rebuilt,
    )

    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny, 25 °C"}
    messages = [question, message, result]
    answer = ask(messages, tools=[WEATHER], tool_choice="none").choices[0].message
    expect(bool(answer.content) and not answer.tool_calls, "words about the result", answer)


def answer_in_a_structure() -> None:
    question = {"role": "user", "content": "I will be in Rome for three days."}
    text = ask([question], response_format=Visit).choices[0].message.content
    expect(isinstance(Visit.model_validate_json(text), Visit), "a Visit", text)


if __name__ == "__main__":
    stream(chat())
    call_a_tool()
    answer_in_a_structure()
