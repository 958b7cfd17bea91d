"""Keys and certificates that change while the router serves."""

import asyncio
import shutil
import signal
import socket
import ssl
from pathlib import Path

import grpc
import httpx
import pytest

from gateway.keys import read_keys
from protos.quire.v1 import inference_pb2, inference_pb2_grpc
from router.server import Router
from router.tls import TlsFiles
from tests.certificates import Signed, signed
from tests.router.conftest import StartRouter, until
from tests.router.fake_scheduler import FakeScheduler
from tests.router.test_process import running

XYZ = {"model": "tiny", "prompt": "xyz", "max_tokens": 4}


async def status(http: httpx.AsyncClient, key: str) -> int:
    headers = {"authorization": f"Bearer {key}"}
    return (await http.post("/v1/completions", json=XYZ, headers=headers)).status_code


async def test_keys_come_and_go(
    start_router: StartRouter, scheduler: FakeScheduler, tmp_path: Path
) -> None:
    path = tmp_path / "keys"
    path.write_text("alice sk-a\n")
    async with (
        start_router(read_keys=lambda: read_keys((), str(path), {})) as router,
        httpx.AsyncClient(base_url=router.address, timeout=20) as http,
        grpc.aio.insecure_channel(router.grpc_address) as channel,
    ):
        assert [await status(http, key) for key in ("sk-a", "sk-b")] == [200, 401]
        assert scheduler.submits[-1].cache_salt == ""
        path.write_text("alice sk-a2\nbob sk-b\n")
        assert await status(http, "sk-b") == 401  # nobody has told it to look
        router.renewal.renew()
        assert [await status(http, key) for key in ("sk-a", "sk-a2", "sk-b")] == [401, 200, 200]
        # They are two now, and apart.
        alices, bobs = [submit.cache_salt for submit in scheduler.submits[-2:]]
        assert "" != alices != bobs != ""
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        asked = inference_pb2.GenerateRequest(text="xyz")
        pieces = stub.Generate(asked, metadata=(("x-api-key", "sk-b"),))
        assert [piece async for piece in pieces]
        headers = {"x-api-key": "sk-b"}
        text = (await http.get("/metrics", headers=headers)).text
        assert 'quire:key_requests_total{key_name="bob",model_name="tiny"} 2.0' in text


@pytest.mark.parametrize("wrong", ["", "alice\n", "alice sk-x\nalice sk-x\n"])
async def test_a_file_that_is_wrong_changes_nothing(
    start_router: StartRouter, tmp_path: Path, caplog: pytest.LogCaptureFixture, wrong: str
) -> None:
    path = tmp_path / "keys"
    path.write_text("alice sk-a\n")
    async with (
        start_router(read_keys=lambda: read_keys((), str(path), {})) as router,
        httpx.AsyncClient(base_url=router.address, timeout=20) as http,
    ):
        path.write_text(wrong)
        router.renewal.renew()
        assert "keys and certificates stay as they were: " in caplog.text
        assert "sk-" not in caplog.text
        assert await status(http, "sk-a") == 200


async def test_one_name_turns_from_key_to_key(
    start_router: StartRouter, scheduler: FakeScheduler, tmp_path: Path
) -> None:
    path = tmp_path / "keys"
    path.write_text("bob sk-b\nalice sk-old\nalice sk-new\n")
    async with (
        start_router(read_keys=lambda: read_keys((), str(path), {})) as router,
        httpx.AsyncClient(base_url=router.address, timeout=20) as http,
    ):
        assert [await status(http, key) for key in ("sk-old", "sk-new")] == [200, 200]
        old, new = scheduler.submits[-2:]
        assert old.cache_salt == new.cache_salt != ""
        assert old.tenant == new.tenant == "alice"
        text = (await http.get("/metrics", headers={"x-api-key": "sk-b"})).text
        assert 'quire:key_requests_total{key_name="alice",model_name="tiny"} 2.0' in text
        path.write_text("bob sk-b\nalice sk-new\n")
        router.renewal.renew()
        assert [await status(http, key) for key in ("sk-old", "sk-new")] == [401, 200]
        assert scheduler.submits[-1].cache_salt == new.cache_salt


async def status_of_version(http: httpx.AsyncClient, key: str) -> int:
    return (await http.get("/version", headers={"x-api-key": key})).status_code


def copied(files: Signed, to: Path) -> TlsFiles:
    """The same files at paths that others may take."""
    for source, name in ((files.cert, "cert"), (files.key, "key"), (files.ca, "ca")):
        (to / name).write_bytes(Path(source).read_bytes())
    return TlsFiles(str(to / "cert"), str(to / "key"), str(to / "ca"))


def credentials(files: Signed) -> grpc.ChannelCredentials:
    """Of a client."""
    pem = [Path(path).read_bytes() for path in (files.ca, files.key, files.cert)]
    return grpc.ssl_channel_credentials(*pem)


async def greeted(router: Router, files: Signed) -> tuple[bool, bool]:
    """Whether HTTP and gRPC speak to a client that knows, and shows, these."""
    context = ssl.create_default_context(cafile=files.ca)
    context.load_cert_chain(files.cert, files.key)
    try:
        async with httpx.AsyncClient(base_url=router.address, verify=context, timeout=20) as http:
            over_http = (await http.get("/health")).status_code == 200
    except httpx.TransportError:
        over_http = False
    target = f"localhost:{router.grpc_address.rpartition(':')[2]}"
    async with grpc.aio.secure_channel(target, credentials(files)) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        try:
            await stub.ListModels(inference_pb2.ListModelsRequest(), timeout=20)
        except grpc.aio.AioRpcError:
            return over_http, False
    return over_http, True


async def test_certificates_and_authorities_are_those_of_the_newest_files(
    start_router: StartRouter, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = signed(tmp_path / "old"), signed(tmp_path / "new")
    async with start_router(tls=copied(old, tmp_path)) as router:
        assert await greeted(router, old) == (True, True)
        assert await greeted(router, new) == (False, False)
        # Half of a change is none.
        shutil.copyfile(new.cert, tmp_path / "cert")
        router.renewal.renew()
        assert "stay as they were: --ssl-certfile is " in caplog.text
        assert await greeted(router, old) == (True, True)
        copied(new, tmp_path)
        assert await greeted(router, old) == (True, True)  # nobody has told it to look
        router.renewal.renew()
        assert await greeted(router, new) == (True, True)
        assert await greeted(router, old) == (False, False)


def resumed(
    router: Router, context: ssl.SSLContext, session: ssl.SSLSession | None
) -> tuple[bool, ssl.SSLSession | None]:
    """Asks on a new connection: whether it went on with the session, and what the next one may go
    on with. Raises OSError where nobody answers."""
    url = httpx.URL(router.address)
    with (
        socket.create_connection((url.host, url.port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="localhost", session=session) as client,
    ):
        client.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        if client.recv(12) != b"HTTP/1.1 200":
            raise ConnectionError("no answer")
        return bool(client.session_reused), client.session


@pytest.mark.parametrize(
    "version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=lambda version: version.name
)
async def test_no_session_outlives_the_authority_that_it_was_begun_under(
    start_router: StartRouter, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    old, new = signed(tmp_path / "old"), signed(tmp_path / "new")
    context = ssl.create_default_context(cafile=old.ca)
    context.load_cert_chain(old.cert, old.key)
    context.minimum_version = context.maximum_version = version
    async with start_router(tls=copied(old, tmp_path)) as router:

        async def ask(
            client: ssl.SSLContext, session: ssl.SSLSession | None
        ) -> tuple[bool, ssl.SSLSession | None]:
            return await asyncio.to_thread(resumed, router, client, session)

        _, session = await ask(context, None)
        has_resumed, session = await ask(context, session)
        assert has_resumed is (version is ssl.TLSVersion.TLSv1_2)
        shutil.copyfile(new.ca, tmp_path / "ca")
        router.renewal.renew()
        for shown in (session, None):
            with pytest.raises(OSError):  # noqa: PT011 - of TLS, or of the connection
                await ask(context, shown)
        # Who has a certificate of the new one may come.
        context = ssl.create_default_context(cafile=old.ca)
        context.load_cert_chain(new.cert, new.key)
        await ask(context, None)


async def test_a_process_reads_its_keys_at_sighup_and_goes_on(
    model_dir: Path, tmp_path: Path, served: tuple[FakeScheduler, str]
) -> None:
    path = tmp_path / "keys"
    path.write_text("alice sk-a\n")
    path.chmod(0o600)
    scheduler, address = served
    arguments = ("--scheduler", address, "--api-key-file", str(path))
    async with (
        running("--model", str(model_dir), *arguments) as router,
        httpx.AsyncClient(base_url=router.ready["address"], timeout=20) as http,
    ):
        await until(lambda: scheduler.num_canaries > 0)
        scheduler.hold_at = 2
        asking = asyncio.create_task(status(http, "sk-a"))
        await until(lambda: bool(scheduler.submits))
        path.write_text("bob sk-b\n")
        router.process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(20):
            while await status_of_version(http, "sk-b") != 200:  # noqa: ASYNC110 - it is a process
                await asyncio.sleep(0.01)
        scheduler.hold_at = None
        assert await asking == 200  # what was let in goes on
        assert await status(http, "sk-a") == 401
        router.process.send_signal(signal.SIGTERM)
        assert await router.end() == 0
