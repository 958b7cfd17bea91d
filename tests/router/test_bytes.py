"""Any bytes on the HTTP port, through the whole router: an answer, a refusal or a hang-up; nothing
that breaks inside, and nothing that stays."""

import asyncio
import contextlib
import json
import re
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.server import Router
from tests.fuzz.messages import FUZZING
from tests.gateway.test_fuzz import JSON
from tests.router.conftest import until

SETTLED_S = 0.01
"""So long nothing came: the router waits for more."""
BODIES: dict[str, dict[str, object]] = {
    "/v1/completions": {"prompt": "xyz", "max_tokens": 3},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 3},
    "/v1/responses": {"input": "xyz", "max_output_tokens": 3},
    "/v1/messages": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 3},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "x"}]},
    "/v1/embeddings": {"input": "xyz"},
    "/tokenize": {"prompt": "xyz"},
    "/detokenize": {"tokens": [5, 6]},
}
HEADERS = st.sampled_from(
    [
        b"content-type: application/json; charset=utf-16",
        b"connection: close",
        b"connection: upgrade\r\nupgrade: websocket",
        b"expect: 100-continue",
        b"content-encoding: gzip",
        b"content-length: 1",
        b"content-length: -1",
        b"transfer-encoding: chunked",
        b"authorization: Bearer \xff",
        b"x-request-timeout: nan",
        b"origin: null",
        b": ",
        b" folded",
    ]
) | st.binary(max_size=12)


def chunked(body: bytes, size: int) -> bytes:
    """In chunks of this size."""
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x;a=b\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """One that is right, or not far from it."""
    path = draw(st.sampled_from([*BODIES, "/health", "/ready", "/metrics", "/v1/models", "/%00"]))
    method = draw(st.sampled_from([b"POST"] * 6 + [b"GET", b"HEAD", b"OPTIONS", b"P\xc3\x96ST"]))
    said: dict[str, Any] = dict(BODIES.get(path, {}))
    streams, is_changed = draw(st.booleans()), draw(st.booleans())
    if streams:
        said["stream"] = draw(st.booleans() | JSON)
    if said and is_changed:
        said[draw(st.sampled_from([*said, "user", "stop", "tools"]))] = draw(JSON)
    body = json.dumps(said).encode()
    head = [b"host: x", b"content-type: application/json", *draw(st.lists(HEADERS, max_size=2))]
    framing = draw(st.sampled_from(["length"] * 3 + ["chunked"] * 2 + ["none"]))
    if framing == "length":
        off = draw(st.sampled_from([0, 0, 0, 0, 1, -1]))
        head.append(b"content-length: %d" % max(0, len(body) + off))
    elif framing == "chunked":
        head.append(b"transfer-encoding: chunked")
        body = chunked(body, draw(st.sampled_from([1, 7, 1000])))
    version = draw(st.sampled_from([b"HTTP/1.1"] * 5 + [b"HTTP/1.0", b"HTTP/9.9"]))
    return b"%s %s %s\r\n%s\r\n\r\n%s" % (
        method, path.encode(), version, b"\r\n".join(head), body,
    )  # fmt: skip


@st.composite
def conversations(draw: st.DrawFn) -> list[bytes]:
    """What one connection says, in the pieces in which it comes."""
    said = bytearray(b"".join(draw(st.lists(requests(), min_size=1, max_size=3))))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 3]))):
        said[draw(st.integers(0, len(said) - 1))] = draw(st.integers(0, 255))
    places = sorted(draw(st.lists(st.integers(0, len(said)), max_size=3)))
    return [
        bytes(said[start:end]) for start, end in zip([0, *places], [*places, None], strict=True)
    ]


@settings(FUZZING, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(said=conversations())
async def test_any_bytes(router: Router, said: list[bytes]) -> None:
    host, _, port = router.address.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    with contextlib.suppress(ConnectionError):
        for piece in said:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
    answer = b""
    with contextlib.suppress(ConnectionError, TimeoutError):
        while True:
            async with asyncio.timeout(SETTLED_S):
                piece = await reader.read(1 << 16)
            if not piece:
                break
            answer += piece
    writer.close()
    assert re.match(rb"HTTP/1\.1 |$", answer), answer[:200]
    assert b"500 Internal" not in answer, answer
    assert b"Traceback" not in answer, answer
    backend = router.backend
    await until(lambda: not (backend.permits.num_taken or backend.uploads.num_taken))
