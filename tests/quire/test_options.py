"""Each flag reaches the processes that use it, and no other; a flag not given reaches none."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from quire.commands.processes import _with_model_resolved
from quire.errors import ConfigurationError, ModelNotFound
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


_OF_THE_STACK = ("replicas", "router_processes", "metrics_port", "hang_timeout")
_OTHERS: dict[str, Any] = {
    "limit": ["n=7"],
    "device": "cpu",
    "cpu_backend": "torch",
    "cpu_isa": "avx2",
    "kv_cache_dtype": "float16",
    "dtype": "float16",
    "quantization": "int8",
    "packed_cache": "off",
    "load_format": "dummy",
    "pooling": "mean",
    "gpu_memory_utilization": 0.7,
    "watermark": 0.7,
    "scheduling_policy": "priority",
    "max_body_bytes": 7000,
    "chat_template": __file__,
    "tool_call_parser": "hermes",
    "reasoning_parser": "think",
}


_WITH: dict[str, dict[str, Any]] = {
    name: {"allowed_origins": "https://a"}
    for name in ("allowed_methods", "allowed_headers", "allow_credentials")
}
"""Options that mean something only beside another."""


def test_every_option_is_used_by_some_process() -> None:
    default = StackOptions()
    for field in dataclasses.fields(StackOptions):
        if field.name in _OF_THE_STACK:
            continue
        flipped = _OTHERS.get(field.name, False if getattr(default, field.name) is True else 7)
        given = _WITH.get(field.name, {})
        before, options = StackOptions(**given), StackOptions(**given, **{field.name: flipped})
        roles = ("scheduler", "worker", "router")
        assert any(options.arguments(r) != before.arguments(r) for r in roles), field.name


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"threads": 0}, "threads is 0; it must be at least 1"),
        ({"max_model_len": "long"}, "max_model_len is 'long'; it must be a whole number, at lea"),
        ({"served_model_name": ""}, "served_model_name is ''; it must be at least 1 character"),
        ({"kv_cache_memory": "2 gigs"}, "kv_cache_memory is '2 gigs'; it must be a size like 2"),
        ({"replicas": 0}, "replicas is 0; it must be at least 1"),
        ({"allowed_methods": "GET"}, "--allowed-methods, --allowed-headers and --allow-credent"),
        ({"allowed_origins": "*", "allow_credentials": True}, "with --allow-credentials, --allo"),
        ({"drain_timeout": None}, "drain_timeout is 'None'; it must be a number, at least 0"),
    ],
)
def test_what_a_process_would_refuse_is_refused_before_it_starts(
    given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError) as error:
        StackOptions(**given)
    assert str(error.value).startswith(message)


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
