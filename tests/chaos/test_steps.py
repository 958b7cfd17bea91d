"""A step fails for want of memory, because the model raises, or in its numbers: only the culprit
notices."""

from pathlib import Path

import pytest

from tests.chaos.by_hand import Way, laid_out
from tests.chaos.checker import check_exact, check_nothing_left
from tests.chaos.failing_worker import FAILURE, NOTE, TOKENS
from tests.chaos.small import small_model, streams
from tests.chaos.streams import Load, told
from tests.chaos.traffic import Asked

pytestmark = pytest.mark.chaos

CULPRIT = (391, 392, 393)


SAID = {"memory": None, "error": "the worker was lost", "nan": "was not finite"}
"""To the culprit; None: it is answered."""


@pytest.mark.parametrize(
    "failure",
    [
        "memory",
        pytest.param("error", marks=pytest.mark.slow),
        pytest.param("nan", marks=pytest.mark.slow),
    ],
)
async def test_a_step_fails(tmp_path: Path, failure: str) -> None:
    note = tmp_path / "note"
    environment = {TOKENS: ",".join(map(str, CULPRIT)), FAILURE: failure, NOTE: str(note)}
    failing = Way(module="tests.chaos.failing_worker", environment=environment)
    ways = {"worker-0": failing, "worker-1": failing}
    async with laid_out(small_model(tmp_path / "small"), ways) as stack:
        reference = await told(stack.url, streams(12, 200, "peace"))
        load = Load(stack.url, streams(12, 200, "failure"))
        await load.begun()
        whole = {"prompt": list(CULPRIT), "stream": False, "stream_options": None}
        culprit = Asked("culprit", "/v1/completions", streams(1, 200, "culprit")[0].body | whole)
        [ended] = await told(stack.url, [culprit])
        assert note.exists()
        if (said := SAID[failure]) is None:
            assert ended.status == 200, ended
        else:
            assert ended.status == 500, ended
            assert said in ended.errors[0]
        check_exact(await load.ended(), reference)
        await stack.until_whole()
        await check_nothing_left(stack, num_errors=int(SAID[failure] is not None))
