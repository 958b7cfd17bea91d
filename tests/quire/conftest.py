"""Every test here keeps its runtime and cache files to itself."""

import pytest


@pytest.fixture(autouse=True)
def _private_directories(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("QUIRE_RUN", str(tmp_path_factory.mktemp("run")))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
