"""How long clients waited: printed for people, and kept where the command asks for it.

`make chaos`, which has the machine to itself, holds every target to the letter; other commands let
it be missed by a factor of `LOOSE`, since tests beside each other wait for each other. Targets that
no CPU of two cores reaches are printed, and judge nothing: docs/reliability.md says which and why.
"""

import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.recording import Target, report
from tests.chaos.streams import History

LOOSE = 5.0
SLACK = float(os.environ.get("QUIRE_CHAOS_SLACK", str(LOOSE)))
"""By what factor a target may be missed."""
SAVE_DIR = "QUIRE_CHAOS_RESULTS"
"""A folder, in the environment: figures are kept there, one file for each module of tests."""


LONGEST = "longest pause of any stream, s"


def pauses(
    histories: Sequence[History], since: float, until: float = float("inf")
) -> dict[str, float]:
    """Of the longest pause of each stream that lies in these times, seconds."""
    longest = sorted(history.longest_pause_s(since, until) for history in histories)
    return {
        LONGEST: longest[-1],
        "median stream's, s": statistics.median(longest),
    }


class Figures:
    """What one module of tests measured; `keep` prints all of it, `missed` judges."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._figures: dict[str, Any] = {}
        self._targets: list[Target] = []
        self._judging: list[Target] = []

    def add(
        self, title: str, figures: dict[str, Any], *targets: Target, judging: bool = True
    ) -> None:
        """Of one test; `judging`: whether it matters that the targets are met."""
        self._figures[title] = figures
        self._targets += targets
        if judging:
            self._judging += targets

    def missed(self) -> list[str]:
        """The targets that are, by more than `SLACK`."""
        missed = [target for target in self._judging if not target.is_met(SLACK)]
        return [f"{target.name}: {target.verdict}" for target in missed]

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
