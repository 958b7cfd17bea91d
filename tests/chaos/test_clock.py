"""The clock on the wall jumps by an hour under every process: nothing expires, nobody is given up.

With libfaketime, which leaves the monotonic clock alone; skipped where it is not installed
(`apt-get install faketime`). `tests/protos/test_clocks.py` holds what this rests on.
"""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.chaos.small import small_model
from tests.chaos.stack import Served, running

pytestmark = pytest.mark.chaos

HOUR_S = 3600
BODY = {"prompt": "xyz", "max_tokens": 150, "ignore_eos": True, "temperature": 0}


@pytest.fixture
def wall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with how far the clock of the processes is off."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not found:
        pytest.skip("no libfaketime")
    file = tmp_path / "wall"
    file.write_text("+0")
    monkeypatch.setenv("LD_PRELOAD", str(found[0]))
    monkeypatch.setenv("FAKETIME_TIMESTAMP_FILE", str(file))
    monkeypatch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    monkeypatch.setenv("FAKETIME_CACHE_DURATION", "1")
    return file


@pytest.fixture
def stack(wall: Path, tmp_path: Path) -> Iterator[Served]:
    model = small_model(tmp_path / "small")
    flags = ("--served-model-name", "small", "--step-timeout", "5")
    with running(model, tmp_path / "run", *flags) as served:
        yield served


def set_wall(wall: Path, hours: int) -> None:
    """So many hours off."""
    wall.write_text(f"{hours * HOUR_S:+d}")


async def test_the_wall_clock_jumps(stack: Served, wall: Path) -> None:
    before = stack.processes()
    async with httpx.AsyncClient(base_url=stack.url, timeout=60) as http:

        async def asked() -> httpx.Response:
            return await http.post("/v1/completions", json=BODY)

        first = (await asked()).raise_for_status().json()
        for hours in (1, -1, 0):
            under_way = [asyncio.create_task(asked()) for _ in range(8)]
            set_wall(wall, hours)
            async with asyncio.timeout(30):
                while True:
                    answer = (await asked()).raise_for_status().json()
                    assert answer["choices"] == first["choices"]
                    assert (await http.get("/ready")).status_code == 200
                    if abs(answer["created"] - time.time() - hours * HOUR_S) < 60:
                        break
            for task in under_way:
                assert (await task).raise_for_status().json()["choices"] == first["choices"]
            await asyncio.sleep(1.5)  # what waits would notice now
            assert (await http.get("/ready")).status_code == 200
    await stack.until_idle()
    assert stack.metric("scheduler", "quire:fenced_replicas_total") == 0
    assert {name: (one.pid, one.restarts) for name, one in stack.processes().items()} == {
        name: (one.pid, 0) for name, one in before.items()
    }
