"""The images' own text, carried out without a container engine."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHECK = ROOT / "deploy" / "check_images.py"


def test_the_builder_is_sent_what_the_images_copy_and_nothing_else() -> None:
    lines = [
        line.split()
        for file in (ROOT / "deploy").glob("Dockerfile.*")
        for line in file.read_text().splitlines()
    ]
    copied = {source for line in lines if line[:1] == ["COPY"] for source in line[1:-1]}
    nothing, *sent = (
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if not line.startswith(("#", "**/"))
    )
    assert nothing == "*"
    assert {line.removeprefix("!") for line in sent} == copied
    assert all((ROOT / source).exists() for source in copied)


@pytest.mark.parametrize("component", ["router", "scheduler", "worker"])
def test_an_image_copies_what_its_programs_import(component: str) -> None:
    """As in the image: what of ours it does not copy cannot be imported."""
    lines = (ROOT / "deploy" / f"Dockerfile.{component}").read_text().splitlines()
    copied = {line.split()[1] for line in lines if line.startswith("COPY")}
    absent = {"protos", "gateway", "router", "scheduler", "worker", "kernels", "quire"} - copied
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({sorted(absent)}))\n"
        f"import quire.cli, {component}.__main__"
    )
    command = [sys.executable, "-c", program]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_image_installs_starts_answers_and_ends() -> None:
    # The torch that this environment's pip is set up for: the pinned version, whatever its build.
    command = [sys.executable, str(CHECK), "--build-arg", "TORCH_INDEX="]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout[-4000:] + finished.stderr[-4000:]
    assert finished.stdout.endswith("3 images checked\n")
