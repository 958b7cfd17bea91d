"""The judge of ties knows what the server's sampler does: else it could excuse anything."""

import asyncio
from collections.abc import Iterator

import pytest

from tests.chaos.judge import TIE, Judge
from tests.chaos.stack import Stack, running
from tests.chaos.streams import told
from tests.chaos.traffic import KINDS, mixed

CHECKED_TOKENS = (0, 1, 7, 11)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running("smollm2", tmp_path_factory.mktemp("run")) as stack:
        yield stack


@pytest.mark.slow
def test_what_was_served_has_the_best_score(stack: Stack, judge: Judge) -> None:
    """Where nothing is forbidden by a grammar or filtered: there the best is another one."""
    names = ["greedy", "seeded", "n=2", "penalties", "echo"]
    asked = [one for one in mixed(2 * len(KINDS), 12) if one.kind in names]
    for history in asyncio.run(told(stack.url, asked)):
        for index, choice in history.choices.items():
            for place in CHECKED_TOKENS:
                scores = judge.scores(
                    history.asked, index, choice.prompt_tokens, choice.tokens[:place]
                )
                served = float(scores[choice.tokens[place]])
                assert served >= float(scores.max()) - TIE, (history.asked.kind, index, place)
