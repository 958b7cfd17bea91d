"""What gRPC reads when it is loaded is said before."""

import os
import subprocess
import sys

import pytest

from protos.grpc_environment import EXPERIMENTS, WITHOUT_ENGINE, prepare


@pytest.mark.parametrize("process", ["router", "scheduler"])
def test_a_process_has_not_loaded_grpc_before_it_is_run(process: str) -> None:
    code = f"import sys, {process}.__main__; sys.exit('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_process_runs_without_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    prepare()
    assert os.environ == {EXPERIMENTS: WITHOUT_ENGINE}


def test_what_is_given_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {EXPERIMENTS: ""})
    prepare()
    assert os.environ == {EXPERIMENTS: ""}
