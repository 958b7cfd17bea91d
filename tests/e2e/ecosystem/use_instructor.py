"""instructor: around the openai package's client, in each of the modes that it asks for structures.

OPENAI_BASE_URL=http://127.0.0.1:8000/v1 python use_instructor.py
"""

import os
from typing import Any, Literal

import instructor
from expect import expect
from openai import OpenAI
from pydantic import BaseModel, Field

MODEL = os.environ.get("MODEL", "smollm2")
OPENAI = OpenAI(base_url=os.environ["OPENAI_BASE_URL"], api_key="none", max_retries=0)
MESSAGES: list[Any] = [{"role": "user", "content": "I will be in Rome for three days."}]
FIELDS: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": 100}


class Visit(BaseModel):
    """A visit to a city."""

    city: Literal["Paris", "London", "Rome"]
    days: int = Field(ge=1, le=30)


def chat_and_stream() -> None:
    """What instructor hands on as it is."""
    client = instructor.from_openai(OPENAI)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    answer = client.create(response_model=None, messages=question, **FIELDS)
    text = answer.choices[0].message.content
    expect("Paris" in text, "Paris", text)
    pieces = client.create(response_model=None, messages=question, stream=True, **FIELDS)
    streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    expect(streamed == text, f"the words of the whole answer, {text!r}", streamed)


def answer_in_a_structure(mode: instructor.Mode) -> None:
    client = instructor.from_openai(OPENAI, mode=mode)
    visit, completion = client.create_with_completion(
        response_model=Visit, messages=MESSAGES, max_retries=0, **FIELDS
    )
    expect(isinstance(visit, Visit), f"a Visit by {mode}", visit)
    expect(completion.usage.completion_tokens > 0, "a usage", completion)
    *_, last = client.create_partial(
        response_model=Visit, messages=MESSAGES, max_retries=0, **FIELDS
    )
    said = (last.city, last.days)
    expect(said == (visit.city, visit.days), f"{visit!r} in pieces by {mode}", last)


if __name__ == "__main__":
    chat_and_stream()
    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        answer_in_a_structure(mode)
