"""How long clients waited: printed for people, and kept where the command asks for it.

Timings decide no test.
"""

import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.recording import Target, report
from tests.chaos.streams import History

SAVE_DIR = "QUIRE_CHAOS_RESULTS"
"""A folder, in the environment: figures are kept there, one file for each module of tests."""


def pauses(
    histories: Sequence[History], since: float, until: float = float("inf")
) -> dict[str, float]:
    """Of the longest pause of each stream that lies in these times, seconds."""
    longest = sorted(history.longest_pause_s(since, until) for history in histories)
    return {
        "longest pause of any stream, s": longest[-1],
        "median stream's, s": statistics.median(longest),
    }


class Figures:
    """What one module of tests measured; `keep` prints all of it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._figures: dict[str, Any] = {}
        self._targets: list[Target] = []

    def add(self, title: str, figures: dict[str, Any], *targets: Target) -> None:
        """Of one test."""
        self._figures[title] = figures
        self._targets += targets

    def keep(self) -> None:
        """Prints them; saves them where the environment says."""
        if not self._figures:
            return
        folder = os.environ.get(SAVE_DIR)
        print()
        report(
            self._figures,
            self._targets,
            Path(folder) / f"chaos_{self._name}.json" if folder else None,
        )
