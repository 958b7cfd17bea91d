"""`make bench`: what the control path costs and what the served path reaches, on this machine.

python -m bench                                  # everything, minutes
python -m bench --save-dir bench/results/today   # and keep the figures
"""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer


def main(
    threads: Annotated[int, typer.Option(min=1, help="Compute threads of every system.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Of the served path.")] = 1,
    requests: Annotated[int, typer.Option(min=1, help="Of the simulation.")] = 20_000,
    save_dir: Annotated[Path | None, typer.Option(help="Keep figures as JSON here.")] = None,
) -> None:
    """Runs each stage in a process of its own."""
    stages = {
        "core_step": ("schedule and apply, per step", []),
        "plan_wire": ("plan bytes and round trip", []),
        "simulate": ("a simulated cell", ["--requests", str(requests)]),
        "router": (
            "a router's processor time per token of 256 streams",
            ["--rounds", str(rounds), "--profile"],
        ),
        "served": (
            "the served path, what bounds it and what a user would try first",
            ["--threads", str(threads), "--rounds", str(rounds)],
        ),
        "decode_step": ("where a decode step's time goes", ["--threads", str(threads)]),
        "speculation": ("what drafts are worth", ["--threads", str(threads)]),
        "structured": ("what structured outputs cost", ["--threads", str(threads)]),
    }
    for name, (title, arguments) in stages.items():
        if save_dir is not None:
            arguments += ["--save", str(save_dir / f"{name}.json")]
        print(f"== {title} (python -m bench.{' '.join((name, *arguments))})", flush=True)
        done = subprocess.run([sys.executable, "-m", f"bench.{name}", *arguments], check=False)
        if done.returncode:
            raise typer.Exit(done.returncode)
        print(flush=True)


if __name__ == "__main__":
    typer.run(main)
