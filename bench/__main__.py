"""`make bench`: what the control path costs and what the served path reaches, on this machine."""

import subprocess
import sys

STAGES = (
    ("schedule + apply per step", "bench.core_step"),
    ("plan bytes and round trip", "bench.plan_wire"),
    ("blocks, hit rate and queueing in a simulated cell", "bench.simulate", "--requests", "20000"),
    ("the served path", "bench.served", "--rounds", "1"),
)


def main() -> int:
    """Runs each stage in a process of its own; returns the first failure's exit code."""
    for title, module, *arguments in STAGES:
        print(f"== {title} (python -m {' '.join((module, *arguments))})", flush=True)
        done = subprocess.run([sys.executable, "-m", module, *arguments], check=False)
        if done.returncode:
            return done.returncode
        print(flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
