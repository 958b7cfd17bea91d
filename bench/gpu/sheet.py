"""One suite's figures: shown and kept on disk part by part, so that what fails takes nothing along.

sheet.part("decode", lambda: (figures, targets))      an error is noted, the next part goes on
"""

import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.recording import Target, report, save

Outcome = tuple[dict[str, Any], list[Target]]
"""Figures, nested, and what was promised of some of them."""


class Sheet:
    """Gathers outcomes.

    Args:
        machine: what the record says of the device.
        destination: where the record goes; None: nowhere.
        time_limit_s: parts are not begun later than so long from now.
    """

    def __init__(
        self, machine: dict[str, Any], destination: Path | None, time_limit_s: float
    ) -> None:
        self._machine = machine
        self._destination = destination
        self._ends_at = time.monotonic() + time_limit_s
        self.figures: dict[str, Any] = {}
        self.targets: list[Target] = []
        self.num_failed = 0
        """Parts that raised."""

    def part(self, name: str, measure: Callable[[], Outcome]) -> None:
        """Runs one part, unless time is up."""
        began = time.monotonic()
        if began > self._ends_at:
            self._add(name, {"skipped": "time was up"}, [])
            return
        try:
            figures, targets = measure()
        # Whatever goes wrong with one part says nothing about the others.
        except Exception as error:
            traceback.print_exc()
            self.num_failed += 1
            said = str(error).strip().splitlines() or [""]
            figures, targets = {"error": f"{type(error).__name__}: {said[0]}"}, []
        self._add(name, {**figures, "took_s": round(time.monotonic() - began, 1)}, targets)

    def _add(self, name: str, figures: dict[str, Any], targets: list[Target]) -> None:
        self.figures[name] = figures
        self.targets += targets
        report({name: figures}, targets)
        if self._destination is not None:
            save(self.figures, self.targets, self._destination, self._machine)
