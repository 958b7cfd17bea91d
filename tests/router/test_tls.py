"""TLS on both fronts, with a certificate of the test's own, and perhaps one of the client's."""

import asyncio
import contextlib
import json
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from quire import AsyncClient, SamplingParams, Tls
from quire.errors import ConfigurationError, RequestFailed
from quire.http import Endpoint, Unreachable
from router import http_protocol
from router.server import Router
from router.tls import TlsFiles
from tests.certificates import Signed, signed
from tests.router.conftest import StartRouter, until

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Signed:
    return signed(tmp_path_factory.mktemp("tls"))


def target(router: Router) -> str:
    return f"localhost:{router.grpc_address.rpartition(':')[2]}"


def context(files: Signed, *, shows_own: bool = False) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=files.ca)
    if shows_own:
        made.load_cert_chain(files.cert, files.key)
    return made


async def test_both_fronts_speak_tls(start_router: StartRouter, files: Signed) -> None:
    tls = TlsFiles(files.cert, files.key)
    async with start_router(tls=tls, metrics_port=0) as router:
        assert router.address.startswith("https://127.0.0.1:")
        async with httpx.AsyncClient(base_url=router.address, verify=context(files)) as http:
            answer = await http.post("/v1/chat/completions", json=CHAT)
            assert answer.status_code == 200
        async with AsyncClient(target(router), tls=Tls(ca_certs=files.ca)) as client:
            output = await client.generate("xyz", SamplingParams(max_tokens=3))
            assert output.outputs[0].text == "xyz"
        assert (await Endpoint(router.address, ca_certs=files.ca).get("/health"))[0] == 200
        # The port of its own is on loopback, where it is asked in the clear.
        assert router.metrics is not None
        assert router.metrics.startswith("http://127.0.0.1:")
        async with httpx.AsyncClient() as http:
            assert (await http.get(router.metrics)).status_code == 200


async def test_in_the_clear_nobody_gets_in(
    start_router: StartRouter, files: Signed, tmp_path: Path
) -> None:
    async with start_router(tls=TlsFiles(files.cert, files.key)) as router:
        async with httpx.AsyncClient() as http:
            with pytest.raises(httpx.TransportError):
                await http.get(router.address.replace("https:", "http:") + "/health")
        async with AsyncClient(target(router), timeout=20) as client:
            with pytest.raises(RequestFailed):
                await client.models()
        # Who does not know its authority does not speak to it.
        other = signed(tmp_path)
        with pytest.raises(Unreachable, match="the certificate of https://127"):
            await Endpoint(router.address, ca_certs=other.ca).get("/health")
        async with AsyncClient(target(router), tls=Tls(ca_certs=other.ca), timeout=20) as client:
            with pytest.raises(RequestFailed):
                await client.models()


async def test_clients_may_have_to_show_a_certificate(
    start_router: StartRouter, files: Signed
) -> None:
    tls = TlsFiles(files.cert, files.key, files.ca)
    async with start_router(tls=tls) as router:
        own = context(files, shows_own=True)
        async with httpx.AsyncClient(base_url=router.address, verify=own) as http:
            assert (await http.get("/health")).status_code == 200
        async with httpx.AsyncClient(base_url=router.address, verify=context(files)) as http:
            with pytest.raises(httpx.TransportError):
                await http.get("/health")
        ours = Tls(ca_certs=files.ca, certfile=files.cert, keyfile=files.key)
        async with AsyncClient(target(router), tls=ours) as client:
            assert await client.models()
        async with AsyncClient(target(router), tls=Tls(ca_certs=files.ca), timeout=20) as client:
            with pytest.raises(RequestFailed):
                await client.models()


def test_a_client_names_the_file_that_it_cannot_read() -> None:
    with pytest.raises(ConfigurationError, match=r"^ca_certs is '/nope'; it must be a file that"):
        Tls(ca_certs="/nope").credentials()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ssl-keyfile", "KEY"), "--ssl-keyfile is 'KEY'; it needs --ssl-certfile"),
        (("--ssl-ca-certs", "CA"), "--ssl-ca-certs is 'CA'; it needs --ssl-certfile"),
        (("--ssl-certfile", "CERT"), "they must hold a certificate and its key in PEM, without a"),
        (
            ("--ssl-certfile", "CERT", "--ssl-keyfile", "KEY", "--ssl-ca-certs", "KEY"),
            "--ssl-ca-certs is 'KEY'; it must hold certificates in PEM",
        ),
        (
            ("--ssl-certfile", "CERT", "--ssl-keyfile", "KEY", "--uds", "/tmp/x.sock"),
            "--ssl-certfile is for TCP ports, and no Unix sockets",
        ),
        (("--ssl-certfile", "/nope"), "--ssl-certfile is '/nope'; it must be a file that can be"),
    ],
)
def test_what_cannot_be_is_one_line(
    model_dir: Path, files: Signed, arguments: tuple[str, ...], message: str
) -> None:
    paths = {"CERT": files.cert, "KEY": files.key, "CA": files.ca}
    words = [paths.get(word, word) for word in arguments]
    done = subprocess.run(
        [sys.executable, "-m", "router", "--model", str(model_dir), *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    for name, path in paths.items():
        message = message.replace(f"'{name}'", f"{path!r}")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


async def test_who_does_not_read_what_is_encrypted_is_hung_up_on(
    start_router: StartRouter, files: Signed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "SEND_S", 0.3)
    async with start_router(tls=TlsFiles(files.cert, files.key), max_body_bytes=8 << 20) as router:
        url = httpx.URL(router.address)
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, (url.host, url.port))
        reader, writer = await asyncio.open_connection(
            sock=client, ssl=context(files), server_hostname="localhost", limit=1024
        )
        body = json.dumps({"prompt": "xyz" * (1 << 18)}).encode()
        head = f"POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
        writer.write(f"{head}content-type: application/json\r\n\r\n".encode() + body)
        await until(lambda: router.backend.permits.num_taken == 1)
        assert await reader.read(12) == b"HTTP/1.1 200"
        await until(lambda: router.backend.permits.num_taken == 0)
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            assert len(await reader.read(-1)) < 1 << 20, "of several"
        writer.close()
