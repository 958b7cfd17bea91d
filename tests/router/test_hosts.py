"""DNS rebinding: pages that come under a name of their own get nothing from this machine."""

from pathlib import Path

import httpx

from gateway.hosts import parse_hosts
from tests.router.conftest import StartRouter
from tests.router.fake_scheduler import FakeScheduler
from tests.router.test_process import running

EVIL = {"host": "evil.example:8000"}
XYZ = {"prompt": "xyz", "max_tokens": 3}


async def test_without_keys_a_router_on_loopback_answers_to_its_names(
    model_dir: Path, served: tuple[FakeScheduler, str]
) -> None:
    async with (
        running("--model", str(model_dir), "--scheduler", served[1]) as router,
        httpx.AsyncClient(base_url=router.ready["address"]) as http,
    ):
        for path in ("/health", "/v1/models", "/metrics", "/docs", "/nowhere"):
            refused = await http.get(path, headers=EVIL)
            assert refused.status_code == 421, path
            assert refused.json()["error"]["code"] == "misdirected_request"
        assert (await http.get("/health")).status_code == 200
        assert (await http.get("/health", headers={"host": "localhost"})).status_code == 200


async def test_beside_a_unix_socket_the_port_on_loopback_answers_to_its_names(
    model_dir: Path, tmp_path: Path, served: tuple[FakeScheduler, str]
) -> None:
    told = ("--uds", str(tmp_path / "s"), "--metrics-port", "0", "--allowed-hosts", "llm.example")
    async with (
        running("--model", str(model_dir), "--scheduler", served[1], *told) as router,
        httpx.AsyncClient() as http,
    ):
        url = router.ready["metrics"]
        assert (await http.get(url, headers=EVIL)).status_code == 421
        assert (await http.get(url, headers={"host": "llm.example"})).status_code == 200
        assert (await http.get(url)).status_code == 200


async def test_a_key_is_enough(start_router: StartRouter) -> None:
    async with (
        start_router(keys={"alice": "sk-a"}, hosts=parse_hosts(None, "127.0.0.1")) as router,
        httpx.AsyncClient(base_url=router.address) as http,
    ):
        headers = EVIL | {"authorization": "Bearer sk-a"}
        assert (await http.post("/v1/completions", json=XYZ, headers=headers)).status_code == 200
