"""A suite as a process of its own: what every one is told on the command line.

A device's memory is free again when its process has ended, and an error that leaves the device
unusable is over with it.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from bench.gpu.device import Device, facts
from bench.gpu.scale import FULL, SMALLEST, Scale
from bench.gpu.sheet import Sheet


@dataclass(frozen=True, slots=True)
class Suite:
    """What a suite measures with.

    Attributes:
        device: on what.
        scale: how much.
    """

    device: Device
    scale: Scale


def run_suite(measure: Callable[[Sheet, Suite], None]) -> None:
    """Reads the command line and measures; exits with 1 if a part failed, 2 without the device."""

    def main(
        device: Annotated[str, typer.Option(help="auto, cuda or cpu.")] = "auto",
        tiny: Annotated[bool, typer.Option(help="So little that any CPU will do.")] = False,
        time_limit: Annotated[float, typer.Option(help="Seconds; no part begins later.")] = 600.0,
        save: Annotated[
            Path | None, typer.Option(help="Write figures and machine as JSON.")
        ] = None,
    ) -> None:
        try:
            found = Device(device)
        except RuntimeError as error:
            sys.stderr.write(f"error: {error}\n")
            raise typer.Exit(2) from None
        sheet = Sheet(facts(found.torch_device), save, time_limit)
        measure(sheet, Suite(found, SMALLEST if tiny else FULL))
        raise typer.Exit(1 if sheet.num_failed else 0)

    main.__doc__ = sys.modules[measure.__module__].__doc__
    typer.run(main)
