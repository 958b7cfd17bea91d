"""LangChain: ChatOpenAI and OpenAIEmbeddings, told where the server is.

OPENAI_BASE_URL=http://127.0.0.1:8000/v1 python use_langchain.py
"""

import asyncio
import math
import os
from typing import Literal

from expect import expect
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field

URL = os.environ["OPENAI_BASE_URL"]
MODEL = os.environ.get("MODEL", "smollm2")
QUESTION = "What is the capital of France?"

llm = ChatOpenAI(
    base_url=URL,
    api_key="none",
    model=MODEL,
    temperature=0,
    max_tokens=100,
    max_retries=0,
    stream_usage=True,
)


class Visit(BaseModel):
    city: Literal["Paris", "London", "Rome"]
    days: int = Field(ge=1, le=30)


@tool
def get_weather(city: Literal["Paris", "London", "Rome"]) -> str:
    """Tells the weather in a city."""
    return f"It is sunny in {city}, 25 °C."


def chat() -> str:
    answer = llm.invoke(QUESTION)
    expect("Paris" in answer.text, "Paris", answer)
    expect(answer.usage_metadata["output_tokens"] > 0, "a usage", answer.usage_metadata)
    expect(answer.response_metadata["finish_reason"] == "stop", "an end by itself", answer)
    return answer.text


async def stream(whole: str) -> None:
    pieces = [piece async for piece in llm.astream(QUESTION)]
    text = "".join(piece.text for piece in pieces)
    expect(text == whole, f"the words of the whole answer, {whole!r}", text)
    expect(len(pieces) > 2, "several pieces", pieces)
    usages = [piece.usage_metadata for piece in pieces if piece.usage_metadata]
    expect(len(usages) == 1, "one usage", usages)


def call_a_tool() -> None:
    question = HumanMessage("What is the weather in Paris?")
    with_tool = llm.bind_tools([get_weather], tool_choice="required", parallel_tool_calls=False)
    message = with_tool.invoke([question])
    expect(len(message.tool_calls) == 1, "one call", message)
    expect(message.tool_calls[0]["name"] == "get_weather", "get_weather", message)

    streamed = None
    for piece in with_tool.stream([question]):
        streamed = piece if streamed is None else streamed + piece
    arguments = [call["args"] for call in streamed.tool_calls]
    expect(arguments == [message.tool_calls[0]["args"]], "the same call in pieces", streamed)

    result = get_weather.invoke(message.tool_calls[0])
    expect(isinstance(result, ToolMessage), "a result for the model", result)
    answer = llm.bind_tools([get_weather], tool_choice="none").invoke([question, message, result])
    expect(bool(answer.text) and not answer.tool_calls, "words about the result", answer)


def answer_in_a_structure() -> None:
    question = "I will be in Rome for three days."
    for method in ("json_schema", "function_calling"):
        visit = llm.with_structured_output(Visit, method=method).invoke(question)
        expect(isinstance(visit, Visit), f"a Visit by {method}", visit)


def speak_responses(whole: str) -> None:
    """The same by /v1/responses."""
    other = llm.model_copy(update={"use_responses_api": True})
    text = "".join(piece.text for piece in other.stream(QUESTION))
    expect(text == whole, f"the words of the chat, {whole!r}", text)
    calls = other.bind_tools([get_weather], tool_choice="required").invoke(QUESTION).tool_calls
    expect(bool(calls), "a call", calls)
    visit = other.with_structured_output(Visit, method="json_schema").invoke("Three days in Rome.")
    expect(isinstance(visit, Visit), "a Visit", visit)


def embed() -> None:
    # OpenAI's own token counting downloads a vocabulary; the server counts for itself.
    embeddings = OpenAIEmbeddings(
        base_url=URL, api_key="none", model=MODEL, check_embedding_ctx_length=False, max_retries=0
    )
    texts = ["A river runs past old bridges.", "東京 is a city."]
    vectors = embeddings.embed_documents(texts)
    expect(len(vectors) == 2, "two vectors", len(vectors))
    for text, vector in zip(texts, vectors, strict=True):
        expect(math.isclose(math.hypot(*vector), 1, abs_tol=1e-4), "length 1", math.hypot(*vector))
        distance = math.dist(vector, embeddings.embed_query(text))
        expect(distance < 1e-3, "the same vector alone", distance)
    expect(math.dist(*vectors) > 0.01, "two different vectors", math.dist(*vectors))


if __name__ == "__main__":
    said = chat()
    asyncio.run(stream(said))
    speak_responses(said)
    call_a_tool()
    answer_in_a_structure()
    embed()
