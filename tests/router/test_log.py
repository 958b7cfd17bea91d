"""What clients send does not reach the log, and what they name does not reach the metrics."""

import asyncio
import json
import random
from pathlib import Path

import httpx

from tests.router.conftest import until
from tests.router.fake_scheduler import FakeScheduler
from tests.router.test_process import running

MARK = "SeCrEt"
ANSI = "\x1b[31m"
MIB = 1 << 20


async def test_prompts_and_forged_lines_stay_out_of_the_log(
    model_dir: Path, served: tuple[FakeScheduler, str]
) -> None:
    """However long, and wherever they stand: in prompts, wrong fields, names, headers, paths."""
    scheduler, address = served
    forged = f"{MARK}\r\n12:00:00 router error forged {ANSI}"
    bodies = [
        {"prompt": MARK * (MIB // len(MARK))},
        {"prompt": forged, "max_tokens": 2},
        {"prompt": forged, "max_tokens": 2, "stream": True, "user": forged},
        {"prompt": "x", "model": forged},
        {"prompt": "x", forged: 1},
        {"prompt": "x", "stop": [forged], "seed": forged},
        {"prompt": "x", "regex": forged * 20},
    ]
    log = asyncio.subprocess.PIPE
    async with (
        running("--model", str(model_dir), "--scheduler", address, stderr=log) as router,
        httpx.AsyncClient(base_url=router.ready["address"], timeout=20) as http,
    ):
        await until(lambda: scheduler.num_canaries > 0)
        for error in (None, "nothing works"):
            scheduler.error = error
            for body in bodies:
                await http.post("/v1/completions", json=body)
            for name in ("X-Request-Id", "Authorization", "X-Tenant", "User-Agent"):
                headers = {name: MARK + ANSI + "x" * 200}
                await http.post("/v1/completions", json={"prompt": "x"}, headers=headers)
            await http.get(f"/{MARK}", params={MARK: forged})
        router.process.terminate()
        _, said = await router.process.communicate()
    lines = said.decode().splitlines()
    assert any("connected to the scheduler" in line for line in lines), "this is not its log"
    assert MARK not in said.decode()
    assert ANSI not in said.decode()
    assert "forged" not in said.decode()
    assert len(lines) < 30
    assert max(map(len, lines)) < 400


async def test_metrics_have_no_more_lines_for_whatever_clients_name(
    http: httpx.AsyncClient,
) -> None:
    body: dict[str, object] = {"prompt": "xyz", "max_tokens": 1}
    assert (await http.post("/v1/completions", json=body)).status_code == 200
    assert (await http.post("/v1/completions", json=body | {"model": "x"})).status_code == 404
    assert (await http.post("/v1/completions", json=body | {"x": 1})).status_code == 400
    assert (await http.get("/nowhere")).status_code == 404
    await _names(http)  # counts itself
    before = await _names(http)
    dice = random.Random(0)
    for _ in range(60):
        name = dice.randbytes(6).hex()
        said: dict[str, object] = dice.choice(
            [{"model": name}, {"user": name}, {"metadata": {name: name}}, {"cache_salt": name}]
        )
        headers = {"user-agent": name, "x-request-id": name, f"x-{name}": name}
        await http.post("/v1/completions", json=body | said, headers=headers)
        await http.get(f"/{name}")
    assert await _names(http) == before


async def _names(http: httpx.AsyncClient) -> set[str]:
    """Of all samples, with their labels."""
    text = (await http.get("/metrics")).text
    names = {line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")}
    assert json.dumps(sorted(names)).count("model_name") > 20
    return names
