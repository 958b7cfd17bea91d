"""`quire chat` from a pipe: each line is a turn of one conversation."""

from collections.abc import Callable

import pytest
from typer.testing import CliRunner, Result

from quire.cli import app
from quire.errors import RequestFailed
from tests.quire.conftest import Json, Respond, Server

Chat = Callable[..., Result]
"""Runs `quire chat`: its lines, then its arguments."""


def say(*pieces: str) -> Respond:
    events = [{"choices": [{"delta": {"content": piece}}]} for piece in pieces]
    return lambda answer, _: answer.events({"choices": [{"delta": {"role": "assistant"}}]}, *events)


@pytest.fixture
def chat(server: Server) -> Chat:
    server.answers["/v1/models"] = lambda answer, _: answer.json({"data": [{"id": "tiny"}]})
    server.answers["/v1/chat/completions"] = say("Par", "is.")

    def run(lines: str, *arguments: str) -> Result:
        return CliRunner().invoke(app, ["chat", "--url", server.url, *arguments], input=lines)

    return run


def asked(server: Server) -> list[Json]:
    return [request for request in server.requests if "messages" in request]


def test_only_the_answer_is_printed(chat: Chat) -> None:
    assert chat("The capital of France?\n").output == "Paris.\n"


def test_the_url_may_be_that_of_the_api(chat: Chat, server: Server) -> None:
    assert chat("The capital of France?\n", "--url", f"{server.url}/v1").output == "Paris.\n"


def test_a_turn_remembers_the_turns_before(chat: Chat, server: Server) -> None:
    assert chat("one\n\ntwo\n", "--system", "Be brief.").output == "Paris.\nParis.\n"
    assert asked(server)[1]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "Paris."},
        {"role": "user", "content": "two"},
    ]


def test_sampling_flags_are_sent_and_absent_ones_are_not(chat: Chat, server: Server) -> None:
    chat("hi\n", "--temperature", "0", "--seed", "7")
    [request] = asked(server)
    assert (request["temperature"], request["seed"]) == (0.0, 7)
    assert "max_tokens" not in request


def test_a_model_that_only_embeds_is_told_before_the_first_turn(chat: Chat, server: Server) -> None:
    message = 'model "tiny" only embeds; use /v1/embeddings'
    error = {"error": {"message": message, "param": "model"}}
    server.answers["/v1/chat/completions"] = lambda answer, _: answer.json(error, status=400)
    result = chat("")
    assert str(result.exception) == message
    assert not asked(server)


def test_a_refused_turn_is_an_error(chat: Chat, server: Server) -> None:
    error = {"error": {"message": "the queue is full"}}
    server.answers["/v1/chat/completions"] = lambda answer, _: answer.json(error, status=429)
    result = chat("hi\n")
    assert isinstance(result.exception, RequestFailed)
    assert "the queue is full" in str(result.exception)
