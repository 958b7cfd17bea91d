"""What a start says of its phases."""

import os
import subprocess
import sys
import time

from worker.phases import phases


def test_people_are_told_what_took_how_long() -> None:
    assert phases({"weights": 1.26, "graphs": 0.04}) == "weights 1.3 s, graphs 0.0 s"


def test_phases_add_up_to_the_age_of_the_process() -> None:
    code = (
        "import time; time.sleep(0.3)\n"
        "from worker.phases import Phases\n"
        "one = Phases(); one.end('imports'); time.sleep(0.2); one.end('weights')\n"
        "print(*one.seconds.values()); print(one)"
    )
    began = time.perf_counter()
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    took = time.perf_counter() - began
    numbers, said = run.stdout.splitlines()
    imports, weights = map(float, numbers.split())
    assert imports >= 0.3
    assert weights >= 0.2
    tick = 1 / os.sysconf("SC_CLK_TCK")  # how exactly a process's creation is known
    assert imports + weights <= took + tick
    assert said.startswith(f"{imports + weights:.1f} s: imports {imports:.1f} s, weights ")
