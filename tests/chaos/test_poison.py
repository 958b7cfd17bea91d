"""A request on which the worker's process dies ends with a 500, and nobody else notices."""

import time
from pathlib import Path

import pytest

from bench.recording import Target
from tests.chaos.by_hand import Way, laid_out
from tests.chaos.checker import check_ended, check_nothing_left, check_same
from tests.chaos.conftest import SHORT
from tests.chaos.judge import Judge
from tests.chaos.pauses import Figures, pauses
from tests.chaos.poisoned_worker import POISON
from tests.chaos.scene import Scale
from tests.chaos.streams import Load, told
from tests.chaos.traffic import Asked, mixed

pytestmark = pytest.mark.chaos

TOKENS = (9001, 9002, 9003)
SCALES = [
    pytest.param(SHORT, id="short"),
    pytest.param(Scale(num_streams=64, max_tokens=60), id="full", marks=pytest.mark.slow),
]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("scale", SCALES)
async def test_the_culprit_alone_fails(
    model_dir: Path, judge: Judge, figures: Figures, scale: Scale
) -> None:
    poisoned = Way(
        module="tests.chaos.poisoned_worker",
        environment={POISON: ",".join(map(str, TOKENS))},
    )
    ways = {"worker-0": poisoned, "worker-1": poisoned}
    async with laid_out(model_dir, ways) as stack:
        everyone = mixed(scale.num_streams - 1, scale.max_tokens)
        reference = await told(stack.url, everyone)
        for history in reference:
            check_ended(history)
        load = Load(stack.url, [one.salted("poison") for one in everyone])
        await load.until(0.3, reference)
        at = time.monotonic()
        # As a whole: the error of a stream may come when it has begun with a sign of life.
        whole = {"prompt": list(TOKENS), "stream": False, "stream_options": None}
        culprit = Asked("poison", "/v1/completions", everyone[0].body | whole)
        [ended] = await told(stack.url, [culprit])
        histories = await load.ended()
        assert ended.status == 500, ended
        assert "the worker was lost" in ended.errors[0]
        for history, expected in zip(histories, reference, strict=True):
            check_ended(history)
            check_same(history, expected, judge)
        await stack.until_whole()
        await check_nothing_left(stack, num_errors=1)
        num_well = float(len(histories))
        target = Target("streams beside it that end well", num_well, len(everyone), at_least=True)
        figures.add("a poisonous request", pauses(histories, at), target)
