"""Several keys: each opens both fronts, and its name is what is counted and kept apart."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from protos.quire.v1 import inference_pb2, inference_pb2_grpc
from tests.router.conftest import StartRouter
from tests.router.fake_scheduler import FakeScheduler
from tests.router.test_metrics import scrape

KEYS = {"alice": "sk-a", "bob": "sk-b"}
XYZ: dict[str, Any] = {"model": "tiny", "prompt": "xyz", "max_tokens": 4}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def test_each_key_opens_the_server_and_names_its_tenant(
    start_router: StartRouter, scheduler: FakeScheduler
) -> None:
    async with (
        start_router(keys=KEYS) as router,
        httpx.AsyncClient(base_url=router.address) as http,
        grpc.aio.insecure_channel(router.grpc_address) as channel,
    ):
        scheduler.submits.clear()
        for key in KEYS.values():
            answer = await http.post("/v1/completions", json=XYZ, headers=bearer(key))
            assert answer.status_code == 200
        assert (await http.post("/v1/completions", json=XYZ)).status_code == 401
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        request = inference_pb2.GenerateRequest(text="xyz")
        metadata = (("authorization", "Bearer sk-b"),)
        assert [piece async for piece in stub.Generate(request, metadata=metadata)]
        assert [submit.tenant for submit in scheduler.submits] == ["alice", "bob", "bob"]


async def test_what_is_counted_by_key_bears_its_name_and_never_itself(
    start_router: StartRouter,
) -> None:
    async with (
        start_router(keys=KEYS) as router,
        httpx.AsyncClient(base_url=router.address, headers=bearer("sk-b")) as http,
    ):
        await http.post("/v1/completions", json=XYZ | {"n": 2})
        await http.post("/v1/completions", json=XYZ | {"prompt": ["xyz", "xyz"]})
        await http.post("/v1/completions", json=XYZ | {"use_beam_search": True, "n": 2})
        value = await scrape(http)
        for key_name, requests, prompt, output in (("alice", 0, 0, 0), ("bob", 4, 12, 24)):
            assert value("quire:key_requests_total", key_name=key_name) == requests
            assert value("quire:key_prompt_tokens_total", key_name=key_name) == prompt
            assert value("quire:key_generation_tokens_total", key_name=key_name) == output
        text = (await http.get("/metrics")).text
        assert not any(key in text for key in KEYS.values())


async def test_who_has_a_key_asks_on_nobody_elses_behalf(start_router: StartRouter) -> None:
    async with (
        start_router(keys=KEYS) as router,
        httpx.AsyncClient(base_url=router.address, headers=bearer("sk-b")) as http,
    ):
        for tenant in ("alice", "whoever"):
            refused = await http.post("/v1/completions", json=XYZ, headers={"x-tenant": tenant})
            assert refused.status_code == 400
            assert refused.json()["error"]["message"] == (
                f'X-Tenant is "{tenant}"; the key that was sent makes it "bob"'
            )
        same = await http.post("/v1/completions", json=XYZ, headers={"x-tenant": "bob"})
        assert same.status_code == 200
        assert "quire:tenant_requests_total{" not in (await http.get("/metrics")).text


async def salts(
    start_router: StartRouter, scheduler: FakeScheduler, **settings: Any
) -> list[tuple[str, str]]:
    """What the scheduler hears as the salts of requests that say none, and "s", of each key."""
    async with (
        start_router(**settings) as router,
        httpx.AsyncClient(base_url=router.address) as http,
    ):
        scheduler.submits.clear()
        for key in KEYS.values():
            for said in ({}, {"cache_salt": "s"}):
                await http.post("/v1/completions", json=XYZ | said, headers=bearer(key))
        heard = [submit.cache_salt for submit in scheduler.submits]
        return list(zip(heard[::2], heard[1::2], strict=True))


async def test_several_keys_have_caches_of_their_own(
    start_router: StartRouter, scheduler: FakeScheduler
) -> None:
    first = await salts(start_router, scheduler, keys=KEYS)
    assert len({salt for pair in first for salt in pair}) == 4
    assert all(len(salt) == 64 for pair in first for salt in pair)
    # Routers beside each other, and after each other, agree.
    assert await salts(start_router, scheduler, keys=dict(reversed(KEYS.items()))) == first


@pytest.mark.parametrize(
    "given", [{"keys": KEYS, "shares_prefixes": True}, {}], ids=["when told to", "without keys"]
)
async def test_the_cache_is_shared(
    start_router: StartRouter, scheduler: FakeScheduler, given: dict[str, Any]
) -> None:
    assert await salts(start_router, scheduler, **given) == [("", "s"), ("", "s")]


async def test_grpc_tells_strangers_nothing_of_what_is_there(start_router: StartRouter) -> None:
    async with (
        start_router(keys=KEYS) as router,
        grpc.aio.insecure_channel(router.grpc_address) as channel,
    ):
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await anext(aiter(stub.ServerReflectionInfo(iter([asked]))))
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        metadata = (("x-api-key", "sk-a"),)
        answer = await anext(aiter(stub.ServerReflectionInfo(iter([asked]), metadata=metadata)))
        assert answer.list_services_response.service


def test_a_router_reads_its_keys_before_anything_else(tmp_path: Path, model_dir: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("alice\n")
    done = subprocess.run(
        [sys.executable, "-m", "router", "--model", str(model_dir), "--api-key-file", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: --api-key-file is {str(path)!r}; line 1 has 1 word; it must have a name and a "
        "key\n"
    )


def test_a_router_that_other_machines_reach_in_the_clear_warns_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "router", "--model", str(tmp_path), "--host", "0.0.0.0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2  # there is no model
    assert done.stderr.count("warning --host is 0.0.0.0, which other machines can reach") == 1


def test_a_stack_hands_its_keys_to_its_routers_and_none_twice(tmp_path: Path) -> None:
    from quire.door import TcpDoor

    path = tmp_path / "keys"
    path.write_text("alice sk-a\n")
    door = TcpDoor("127.0.0.1", 1, 2, {"default": ("sk-d",), "alice": ("sk-a",)}, str(path))
    told = dict(door.environment)
    assert told["QUIRE_API_KEY"] == ""
    assert json.loads(told["QUIRE_API_KEYS"]) == {"default": ["sk-d"]}
    assert "sk-" not in repr(door)
