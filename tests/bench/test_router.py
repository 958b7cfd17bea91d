"""`python -m bench.router` runs and counts what it should; its figures decide nothing here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_every_token_of_every_stream_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "router.json"
    arguments = ["--streams", "6", "--steps-per-s", "20", "--seconds", "2", "--rounds", "1"]
    subprocess.run(
        [sys.executable, "-m", "bench.router", *arguments, "--profile", "--save", str(path)],
        check=True,
        capture_output=True,
        timeout=300,
    )
    figures = json.loads(path.read_text())["figures"]
    assert set(figures["targets"]) == {"tokens/s per core at 6 streams"}
    for name in ("router at a pace", "router flat out", "bare writer at the pace"):
        assert figures[name]["us_per_event"] > 0
        assert figures[name]["events_per_s"] > 0
    # Nothing falls behind at this pace: one event a token, but where a character needs several.
    # Tokens and events are counted a moment apart, at both ends of the window: a few steps of 40.
    assert 0.8 < figures["router at a pace"]["tokens_per_event"] < 1.3
    shares = figures["share of the router's time"]
    assert "router.generation" in shares
    *told, rest = shares.values()
    assert sum(told) + rest == pytest.approx(1)
    assert 0 <= rest < 0.5, "what serves is in many small pieces, or not among what is told"
