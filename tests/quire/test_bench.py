"""`quire bench`: what is sent, what is counted, what is saved."""

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from quire import registry
from quire.bench.load import Load, Run, Trace, run_load
from quire.bench.report import Report
from quire.cli import app, main
from quire.http import Endpoint
from tests.quire.conftest import Answer, Json, Server


def load(**changes: Any) -> Load:
    settings: dict[str, Any] = {
        "model": "tiny",
        "num_prompts": 6,
        "input_len": 5,
        "output_len": 2,
        "seed": 1,
    }
    return Load(**(settings | {"num_warmups": 0} | changes))


def two_tokens(answer: Answer, payload: Json) -> None:
    usage = {"prompt_tokens": len(payload["prompt"]), "completion_tokens": 2}
    answer.events(
        {"choices": [{"text": "a"}]}, {"choices": [{"text": "b"}]}, {"choices": [], "usage": usage}
    )


@pytest.fixture
def completions(server: Server) -> Server:
    server.answers["/v1/completions"] = two_tokens
    server.answers["/v1/models"] = lambda answer, _: answer.json({"data": [{"id": "tiny"}]})
    return server


def prompts(server: Server) -> list[list[int]]:
    return [request["prompt"] for request in server.requests if "prompt" in request]


async def test_every_prompt_is_sent_once_and_every_token_counted(completions: Server) -> None:
    advanced: list[int] = []
    run = await run_load(Endpoint(completions.url), load(), advanced.append)
    report = Report.of(run)
    assert (report.completed, report.failed) == (6, 0)
    assert (report.input_tokens, report.output_tokens) == (30, 12)
    assert advanced == [2] * 6
    assert len({tuple(prompt) for prompt in prompts(completions)}) == 6


async def test_prompts_begin_with_what_they_share(completions: Server) -> None:
    asked = load(input_len=7, shared_len=3, num_warmups=1)
    await run_load(Endpoint(completions.url), asked, lambda tokens: None)
    sent = prompts(completions)
    assert {len(prompt) for prompt in sent} == {7}
    assert len({tuple(prompt[:3]) for prompt in sent}) == 1
    assert len({tuple(prompt[3:]) for prompt in sent}) == 7


async def test_a_seed_repeats_the_prompts_and_another_does_not(completions: Server) -> None:
    for seed in (1, 1, 2):
        await run_load(Endpoint(completions.url), load(num_prompts=1, seed=seed), lambda _: None)
    first, second, third = prompts(completions)
    assert first == second != third


async def test_warm_ups_are_other_prompts_and_are_not_counted(completions: Server) -> None:
    run = await run_load(Endpoint(completions.url), load(num_warmups=2), lambda _: None)
    assert Report.of(run).completed == 6
    assert len({tuple(prompt) for prompt in prompts(completions)}) == 8


async def test_no_more_than_the_limit_is_in_flight(completions: Server) -> None:
    lock, now, most = threading.Lock(), 0, 0

    def counted(answer: Answer, payload: Json) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        two_tokens_but_count(answer, payload)

    def two_tokens_but_count(answer: Answer, payload: Json) -> None:
        nonlocal now
        with lock:
            now -= 1  # before the answer: the client may send the next at once
        two_tokens(answer, payload)

    completions.answers["/v1/completions"] = counted
    run = await run_load(
        Endpoint(completions.url), load(num_prompts=12, max_concurrency=2), lambda _: None
    )
    assert most <= 2
    assert run.max_in_flight == 2


async def test_a_request_that_fails_is_counted_as_failed(completions: Server) -> None:
    def refuse_odd(answer: Answer, payload: Json) -> None:
        if len(completions.requests) % 2:
            answer.json({"error": {"message": "the queue is full"}}, status=429)
        else:
            two_tokens(answer, payload)

    completions.answers["/v1/completions"] = refuse_odd
    run = await run_load(Endpoint(completions.url), load(max_concurrency=1), lambda _: None)
    report = Report.of(run)
    assert (report.completed, report.failed, report.output_tokens) == (3, 3, 6)


def test_the_four_latencies_are_what_they_say() -> None:
    trace = Trace(sent_at=1.0, arrivals=[1.5, 1.6, 1.8], ended_at=1.9, num_output_tokens=4)
    failed = Trace(sent_at=0.0, ended_at=99.0, error="gone")
    report = Report.of(Run(load(), [trace, failed], duration_s=2.0, max_in_flight=1))
    assert report.ttft is not None
    assert report.itl is not None
    assert report.tpot is not None
    assert report.e2el is not None
    assert report.ttft.p50_ms == pytest.approx(500)
    assert report.itl.mean_ms == pytest.approx(150)
    assert report.tpot.mean_ms == pytest.approx(100)
    assert report.e2el.p99_ms == pytest.approx(900)
    assert report.output_tokens_per_s == 2.0


def test_nothing_completed_has_no_latencies() -> None:
    report = Report.of(Run(load(), [Trace(error="gone")], duration_s=1.0, max_in_flight=1))
    assert report.ttft is report.itl is report.tpot is report.e2el is None


def test_the_command_prints_and_saves(completions: Server, tmp_path: Path) -> None:
    saved = tmp_path / "result.json"
    arguments = ["bench", "serve", "--url", completions.url, "--num-prompts", "4", "--seed", "7"]
    result = CliRunner().invoke(app, [*arguments, "--save", str(saved)])
    assert result.exit_code == 0, result.output
    assert "output tokens/s" in result.output
    assert "TTFT" in result.output
    written = json.loads(saved.read_text())
    assert written["load"]["seed"] == 7
    assert written["results"]["completed"] == 4
    assert set(written) >= {"command", "machine", "taken_at", "quire", "target"}


def test_the_server_is_named_before_it_is_loaded(
    completions: Server, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Above all where the command chose it: a benchmark is no small thing to happen upon."""
    told: list[str] = []

    def asked(answer: Answer, payload: Json) -> None:
        told.append(capfd.readouterr().err)
        two_tokens(answer, payload)

    completions.answers["/v1/completions"] = asked
    registry.publish(
        registry.StackRecord(
            pid=os.getpid(),
            start_ticks=registry.start_ticks(os.getpid()),
            model="tiny",
            url=completions.url,
            grpc="",
            scheduler="",
            admin="",
            run_dir=str(tmp_path),
            started_at=1.0,
            processes=(),
        )
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["quire", "bench", "serve", "--num-prompts", "1"])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 0
    assert told[0] == f"measuring tiny at {completions.url}\n"


def test_throughput_prints_no_latencies(completions: Server) -> None:
    result = CliRunner().invoke(app, ["bench", "throughput", "--url", completions.url])
    assert "output tokens/s" in result.output
    assert "TTFT" not in result.output


def test_failures_are_the_exit_code(completions: Server) -> None:
    error = {"error": {"message": "the queue is full"}}
    completions.answers["/v1/completions"] = lambda answer, _: answer.json(error, status=429)
    arguments = ["bench", "serve", "--url", completions.url, "--num-warmups", "0"]
    result = CliRunner().invoke(app, [*arguments, "--num-prompts", "2"])
    assert result.exit_code == 1
    assert "error: the queue is full" in result.output
