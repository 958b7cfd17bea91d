"""deploy/quire.service: systemd takes it, and it leaves Quire the time that Quire needs."""

import configparser
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from protos.flags import DRAIN_TIMEOUT
from quire.stack import FAREWELL_S, STOP_ORDER
from quire.supervisor import NOT_CURABLE

UNIT = Path(__file__).parents[2] / "deploy" / "quire.service"


@pytest.fixture
def service() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[method-assign, assignment]
    parser.read_string(UNIT.read_text())
    return parser["Service"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_it(tmp_path: Path) -> None:
    """With a command that is there."""
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/quire/.venv/bin/quire", sys.executable))
    checked = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")


def test_it_waits_for_a_drain_of_every_kind_of_process(service: configparser.SectionProxy) -> None:
    longest = (float(str(DRAIN_TIMEOUT.default)) + FAREWELL_S) * len(STOP_ORDER)
    assert float(service["TimeoutStopSec"]) > longest


def test_what_cannot_be_cured_is_not_started_again(service: configparser.SectionProxy) -> None:
    assert service["RestartPreventExitStatus"] == str(NOT_CURABLE)


def test_only_the_supervisor_is_told_to_end(service: configparser.SectionProxy) -> None:
    assert service["KillMode"] == "mixed"
