"""Each flag reaches the processes that use it, and no other; a flag not given reaches none."""

import dataclasses
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

import scheduler.__main__
import worker.__main__
from quire.commands import flags
from quire.commands.processes import _with_model_resolved
from quire.errors import ModelNotFound
from quire.models import ResolvedModel
from quire.options import StackOptions


def test_nothing_given_leaves_every_default_to_the_processes() -> None:
    arguments = {role: StackOptions().arguments(role) for role in ("scheduler", "worker", "router")}
    drain = ["--drain-timeout", "30.0"]
    assert arguments == {"scheduler": drain, "worker": [], "router": drain}


def test_a_flag_reaches_those_who_use_it() -> None:
    options = StackOptions(max_num_seqs=8, device="cpu", max_in_flight=3)
    assert options.arguments("scheduler")[:2] == ["--max-num-seqs", "8"]
    assert options.arguments("worker") == ["--device", "cpu", "--max-num-seqs", "8"]
    assert options.arguments("router")[:2] == ["--max-in-flight", "3"]
    dummy = StackOptions(load_format="dummy")
    assert dummy.arguments("worker") == ["--load-format", "dummy"]
    assert not dummy.needs_weights


def test_limits_are_handed_to_the_router_one_by_one() -> None:
    arguments = StackOptions(limit=["n=4", "stop=2"]).arguments("router")
    assert arguments[-4:] == ["--limit", "n=4", "--limit", "stop=2"]


def test_prefix_caching_is_turned_off_at_the_scheduler() -> None:
    assert "--no-enable-prefix-caching" in StackOptions(enable_prefix_caching=False).arguments(
        "scheduler"
    )


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (flags.Device, worker.__main__.Device),
        (flags.Dtype, worker.__main__.DType),
        (flags.LoadFormat, worker.__main__.LoadFormat),
        (flags.Pooling, worker.__main__.Pooling),
        (flags.Policy, scheduler.__main__.Policy),
    ],
)
def test_choices_are_spelled_as_the_processes_spell_them(
    ours: type[Enum], theirs: type[Enum]
) -> None:
    assert [choice.value for choice in ours] == [choice.value for choice in theirs]


def test_every_option_is_used_by_some_process() -> None:
    default = StackOptions()
    for field in dataclasses.fields(StackOptions):
        if field.name in ("replicas", "router_processes", "metrics_port"):  # the stack's own
            continue
        flipped: Any = False if getattr(default, field.name) is True else 7
        if field.name == "limit":
            flipped = ["n=7"]
        options = StackOptions(**{field.name: flipped})
        roles = ("scheduler", "worker", "router")
        assert any(options.arguments(r) != default.arguments(r) for r in roles), field.name


@pytest.fixture
def resolved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    monkeypatch.setattr(
        "quire.models.resolve", lambda model, say, weights: ResolvedModel(tmp_path, model)
    )
    return str(tmp_path)


@pytest.mark.parametrize("given", [["smollm2"], ["--model", "smollm2"], ["--model=smollm2"]])
def test_a_process_gets_the_directory_and_the_name_of_its_model(
    resolved: str, given: list[str]
) -> None:
    arguments = _with_model_resolved("worker", [*given, "--threads", "1"])
    assert arguments == ["--model", resolved, "--served-model-name", "smollm2", "--threads", "1"]


def test_a_name_that_was_given_is_kept(resolved: str) -> None:
    arguments = _with_model_resolved("router", ["smollm2", "--served-model-name=mine"])
    assert arguments == ["--model", resolved, "--served-model-name=mine"]


@pytest.mark.parametrize("asked", [["--load-format", "dummy"], ["--load-format=dummy"]])
def test_a_worker_with_random_weights_needs_no_others(tmp_path: Path, asked: list[str]) -> None:
    (tmp_path / "config.json").write_text("{}")
    given = [str(tmp_path), *asked]
    assert _with_model_resolved("worker", given)[:2] == ["--model", str(tmp_path)]
    with pytest.raises(ModelNotFound, match=r"no \.safetensors"):
        _with_model_resolved("worker", given[:1])


def test_a_router_needs_no_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert _with_model_resolved("router", [str(tmp_path)])[:2] == ["--model", str(tmp_path)]


def test_help_and_the_scheduler_need_no_model() -> None:
    assert _with_model_resolved("worker", ["--help"]) == ["--help"]
    assert _with_model_resolved("scheduler", ["--max-queued", "3"]) == ["--max-queued", "3"]


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(ModelNotFound):
        _with_model_resolved("worker", ["/no/such/dir"])
