"""LlamaIndex: OpenAILike, told where the server is and what the model can do.

OPENAI_BASE_URL=http://127.0.0.1:8000/v1 python use_llamaindex.py
"""

import os
from typing import Literal

from expect import expect
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, Field

QUESTION = ChatMessage(role="user", content="What is the capital of France?")

llm = OpenAILike(
    api_base=os.environ["OPENAI_BASE_URL"],
    api_key="none",
    model=os.environ.get("MODEL", "smollm2"),
    context_window=2048,
    is_chat_model=True,
    is_function_calling_model=True,
    should_use_structured_outputs=True,
    temperature=0,
    max_tokens=100,
    max_retries=0,
)


class Visit(BaseModel):
    """A visit to a city."""

    city: Literal["Paris", "London", "Rome"]
    days: int = Field(ge=1, le=30)


def get_weather(city: Literal["Paris", "London", "Rome"]) -> str:
    """Tells the weather in a city."""
    return f"It is sunny in {city}, 25 °C."


def chat() -> str:
    text = llm.chat([QUESTION]).message.content
    expect("Paris" in text, "Paris", text)
    completion = llm.complete("What is the capital of France?").text
    expect(completion == text, f"the words of the chat, {text!r}", completion)
    return text


def stream(whole: str) -> None:
    pieces = list(llm.stream_chat([QUESTION]))
    expect(len(pieces) > 2, "several pieces", pieces)
    text = "".join(piece.delta for piece in pieces)
    expect(text == whole, f"the words of the whole answer, {whole!r}", text)


def call_a_tool() -> None:
    tool = FunctionTool.from_defaults(get_weather)
    question = ChatMessage(role="user", content="What is the weather in Paris?")
    answer = llm.chat_with_tools([tool], chat_history=[question], tool_required=True)
    calls = llm.get_tool_calls_from_response(answer)
    expect(bool(calls), "a call", answer)
    expect({call.tool_name for call in calls} == {"get_weather"}, "get_weather", calls)
    *_, last = llm.stream_chat_with_tools([tool], chat_history=[question], tool_required=True)
    streamed = llm.get_tool_calls_from_response(last)
    expect(
        [call.tool_kwargs for call in streamed] == [call.tool_kwargs for call in calls],
        f"the same calls in pieces, {calls}",
        streamed,
    )
    results = [
        ChatMessage(
            role="tool",
            content=str(tool(**call.tool_kwargs)),
            additional_kwargs={"tool_call_id": call.tool_id},
        )
        for call in calls
    ]
    words = llm.chat([question, answer.message, *results]).message.content
    expect(bool(words), "words about the result", words)


def answer_in_a_structure() -> None:
    prompt = PromptTemplate("I will be in {city} for three days.")
    visit = llm.structured_predict(Visit, prompt, city="Rome")
    expect(isinstance(visit, Visit), "a Visit", visit)
    raw = llm.as_structured_llm(Visit).chat([QUESTION]).raw
    expect(isinstance(raw, Visit), "a Visit", raw)


if __name__ == "__main__":
    stream(chat())
    call_a_tool()
    answer_in_a_structure()
