"""`make fuzz` takes the time it is given, says what it tried, and fails with what it finds."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from tests.fuzz.rounds import SECONDS

ROOT = Path(__file__).parents[2]
FUZZED = """
from hypothesis import given, settings, strategies as st

tried = 0

@settings(max_examples=20)
@given(number=st.integers())
def test_well(number):
    pass

@settings(max_examples=20, database=None)
@given(number=st.integers())
def test_late(number):
    global tried
    tried += 1
    assert tried < 100
"""


def test_rounds_go_on_until_the_time_is_over_or_one_fails(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(FUZZED)
    began_at = time.monotonic()
    here = ("--rootdir", str(tmp_path), "-p", "no:cacheprovider", str(tmp_path / "test_it.py"))
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.fuzz.rounds", *here],
        env={**os.environ, SECONDS: "2"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert time.monotonic() - began_at > 1
    assert ended.returncode == 1, ended.stdout
    counts = re.findall(r"([\d,]+) examples  .*::(test_\w+)", ended.stdout)
    tried = {name: int(count.replace(",", "")) for count, name in counts}
    assert tried["test_well"] > 100
    assert tried["test_late"] >= 100
    assert "1 failed, 1 passed" in ended.stdout
