"""A worker is killed when it has computed half of a long prompt."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from tests.chaos.checker import check_ended, check_nothing_left, check_same
from tests.chaos.judge import Judge
from tests.chaos.stack import PATIENCE_S, Served
from tests.chaos.streams import Load, told
from tests.chaos.test_clients import stories
from tests.e2e.server import serve

pytestmark = [pytest.mark.chaos, pytest.mark.slow]

NUM_PROMPT_TOKENS, STEP_TOKENS = 4000, 256
NUM_STEPS_BEFORE = 8


async def test_a_worker_is_killed_in_a_long_prefill(tmp_path: Path, judge: Judge) -> None:
    """The other computes all of it, and the answer is the same."""
    flags = ("--replicas", "2", "--max-model-len", "4608")
    steps = ("--max-num-batched-tokens", str(STEP_TOKENS))
    with serve("smollm2", tmp_path, *flags, *steps) as server:
        stack = Served(server, tmp_path)
        [asked] = stories(1, 16, "peace")
        asked.body["prompt"] = [100 + 7 * number % 9000 for number in range(NUM_PROMPT_TOKENS)]
        [reference] = await told(stack.url, [asked])
        check_ended(reference)

        before = {one["replica"]: one["steps"] for one in (await stack.state())["replicas"]}
        load = Load(stack.url, [asked.salted("killed")])
        async with asyncio.timeout(PATIENCE_S):
            while True:
                replicas = (await stack.state())["replicas"]
                for replica in replicas:
                    replica["steps"] -= before[replica["replica"]]
                busy = [one for one in replicas if one["steps"] >= NUM_STEPS_BEFORE]
                if busy:
                    break
                await asyncio.sleep(0.02)
        [lost] = busy
        [history] = load.histories
        assert not history.num_tokens, "its prompt was complete"
        [pid] = lost["pids"]
        [name] = [each for each, one in stack.processes().items() if one.pid == pid]
        os.kill(pid, signal.SIGKILL)
        [history] = await load.ended()
        check_ended(history)
        check_same(history, reference, judge)
        assert (await stack.state())["replays"] == 1
        await stack.until_replaced(name, pid)
        await stack.until_whole()
        await check_nothing_left(stack)
