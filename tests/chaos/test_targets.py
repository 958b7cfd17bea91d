"""A target that is missed fails the tests that it belongs to, unless it judges nothing."""

import pytest

from bench.recording import Target
from tests.chaos import pauses
from tests.chaos.pauses import Figures


def test_targets_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = Figures("here")
    figures.add("fast", {}, Target("pause, s", 1.0, 1.0))
    figures.add("slow", {}, Target("long pause, s", 4.0, 1.0))
    figures.add("few", {}, Target("share", 0.5, 0.9, at_least=True))
    figures.add("out of reach", {}, Target("distance", 9.0, 1.0), judging=False)
    monkeypatch.setattr(pauses, "SLACK", pauses.LOOSE)
    assert figures.missed() == []
    monkeypatch.setattr(pauses, "SLACK", 1.0)
    assert figures.missed() == [
        "long pause, s: 4, at most 1: MISSED",
        "share: 0.5, at least 0.9: MISSED",
    ]
