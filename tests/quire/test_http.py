"""The small HTTP client: whole answers, event streams, and every way a server can fail."""

import asyncio
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from quire.errors import ConfigurationError, RequestFailed
from quire.http import Endpoint, Unreachable
from tests.quire.conftest import Answer, Json, Server


async def collect(endpoint: Endpoint, path: str = "/events") -> list[Json]:
    return [event async for event in endpoint.events(path, {"stream": True})]


async def test_get_gives_status_and_body(server: Server) -> None:
    server.answers["/ready"] = lambda answer, _: answer.json({"why": "loading"}, status=503)
    status, body = await Endpoint(server.url).get("/ready")
    assert (status, body) == (503, b'{"why": "loading"}')


async def test_post_sends_json_and_the_key(server: Server) -> None:
    server.answers["/v1/x"] = lambda answer, payload: answer.json({"twice": payload["n"] * 2})
    assert await Endpoint(server.url, "sesame").post("/v1/x", {"n": 21}) == {"twice": 42}
    assert server.requests[0]["_headers"]["Authorization"] == "Bearer sesame"


async def test_an_error_answer_is_raised_in_the_servers_words(server: Server) -> None:
    error = {"error": {"message": "max_tokens is -1; it must be at least 1"}}
    server.answers["/v1/x"] = lambda answer, _: answer.json(error, status=400)
    with pytest.raises(RequestFailed, match=r"max_tokens is -1; .* \(HTTP 400\)"):
        await Endpoint(server.url).post("/v1/x", {})


async def test_an_error_that_is_not_ours_is_shown_as_it_is(server: Server) -> None:
    server.answers["/v1/x"] = lambda answer, _: answer.json("bad gateway", status=502)
    with pytest.raises(RequestFailed, match='HTTP 502: "bad gateway"'):
        await Endpoint(server.url).post("/v1/x", {})


async def test_events_are_given_one_by_one_until_done(server: Server) -> None:
    server.answers["/events"] = lambda answer, _: answer.events({"a": 1}, {"b": "ü\n"})
    assert await collect(Endpoint(server.url)) == [{"a": 1}, {"b": "ü\n"}]


async def test_events_may_be_cut_anywhere(server: Server) -> None:
    def one_byte_at_a_time(answer: Answer, _: Json) -> None:
        answer.begin_events()
        for byte in 'data: {"a": "é"}\n\n: comment\n\ndata: [DONE]\n\n'.encode():
            answer.chunk(bytes([byte]))
        answer.chunk(b"")

    server.answers["/events"] = one_byte_at_a_time
    assert await collect(Endpoint(server.url)) == [{"a": "é"}]


async def test_only_newlines_end_a_line(server: Server) -> None:
    text = "a\u2028b\u2029c\x85d"

    def unescaped(answer: Answer, _: Json) -> None:
        answer.begin_events()
        answer.chunk(f'data: {{"a": "{text}"}}\r\n\r\ndata: [DONE]\n\n'.encode())
        answer.chunk(b"")

    server.answers["/events"] = unescaped
    assert await collect(Endpoint(server.url)) == [{"a": text}]


async def test_an_answer_that_is_no_event_stream_is_an_error(server: Server) -> None:
    server.answers["/events"] = lambda answer, _: answer.json({"a": 1})
    with pytest.raises(RequestFailed, match=r"/events sent no event stream: .*application/json"):
        await collect(Endpoint(server.url))


async def test_an_error_event_ends_the_stream(server: Server) -> None:
    error = {"error": {"message": "the server had to stop"}}
    server.answers["/events"] = lambda answer, _: answer.events({"a": 1}, error)
    with pytest.raises(RequestFailed, match="the server had to stop"):
        await collect(Endpoint(server.url))


async def test_a_stream_without_its_end_is_an_error(server: Server) -> None:
    server.answers["/events"] = lambda answer, _: answer.events({"a": 1}, done=False)
    with pytest.raises(RequestFailed, match="ended before its end was sent"):
        await collect(Endpoint(server.url))


async def test_a_connection_that_breaks_is_an_error(server: Server) -> None:
    def break_off(answer: Answer, _: Json) -> None:
        answer.send_response(200)
        answer.send_header("Content-Length", "100")
        answer.end_headers()
        answer.wfile.write(b"half")
        answer.close_connection = True

    server.answers["/ready"] = break_off
    with pytest.raises(Unreachable, match=r"the connection to http://127.0.0.1:\d+ broke"):
        await Endpoint(server.url).get("/ready")


async def test_nobody_there_is_told_with_the_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(Unreachable, match=f"nobody answers at http://127.0.0.1:{port}"):
        await Endpoint(f"http://127.0.0.1:{port}").get("/ready")


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://"])
async def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="it must be like http://host:port"):
        await Endpoint(url).get("/ready")


async def test_a_port_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"url is 'http://host:port': .*port"):
        await Endpoint("http://host:port").get("/ready")


async def test_proxies_of_the_environment_are_not_asked(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    server.answers["/ready"] = lambda answer, _: answer.json({})
    assert await Endpoint(server.url).get("/ready") == (200, b"{}")


def test_aiohttp_is_not_loaded_before_something_is_asked() -> None:
    code = "import sys, quire.cli, quire.http; print({'aiohttp', 'yarl'} & {*sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"


async def test_a_unix_socket_is_an_address(tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nhello")  # no length: the end of the stream is the end
        writer.close()

    path = tmp_path / "http.sock"
    async with await asyncio.start_unix_server(answer, path):
        assert await Endpoint(f"http+unix://{path}").get("/") == (200, b"hello")
