"""The images' own text, carried out without a container engine."""

import subprocess
import sys
from pathlib import Path

import pytest

CHECK = Path(__file__).parents[2] / "deploy" / "check_images.py"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_image_installs_starts_answers_and_ends():
    # The torch that this environment's pip is set up for: the pinned version, whatever its build.
    command = [sys.executable, str(CHECK), "--build-arg", "TORCH_INDEX="]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout[-4000:] + finished.stderr[-4000:]
    assert finished.stdout.endswith("3 images checked\n")
