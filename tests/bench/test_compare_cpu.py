"""Quire and its peers: how figures are summed up and compared, and that nothing outlives a run."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import typer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from bench.compare_cpu.engines import MAX_MODEL_LEN, Engine, Mode, quire
from bench.compare_cpu.limits import Limits
from bench.compare_cpu.loads import CASES, TINY, Case, Sample
from bench.compare_cpu.running import EngineFailed, running
from bench.compare_cpu.tables import Row, ratios, table
from bench.compare_cpu.watch import Watch
from tests.worker.builders import write_tiny_llama

ALONE, EIGHT = CASES[0], CASES[1]
LIMITS = Limits(
    bytes_per_s=4e9,
    flops_per_s={"float32": 1e9, "bfloat16": 2e9, "int8": 4e9},
    num_weights=1_000_000,
    kv_elements=1000,
)


def sample(tokens_per_s: float, ms: float = 10.0, **changes: Any) -> Sample:
    return replace(Sample(tokens_per_s, ms, ms, ms, peak_bytes=2**20, others_cores=0.0), **changes)


def row(system: str, mode: str, middles: dict[Case, Sample]) -> Row:
    return Row(Engine(system, mode, (), ()), middles)


def test_a_mode_says_what_its_matrices_are_read_in() -> None:
    mode = Mode.parse("int8 Q8_0=--model 'a b.gguf' --ctk=q8_0")
    assert mode == Mode("int8 Q8_0", ("--model", "a b.gguf", "--ctk=q8_0"))
    assert Engine("llama.cpp", mode.name, (), ()).precision == "int8"
    assert Mode.parse("float32=").flags == ()


def test_a_mode_of_quire_may_name_another_model(tmp_path: Path) -> None:
    for flags, model, rest in (
        ("", "a", ()),
        ("--quantization none", "a", ("--quantization", "none")),
        ("b --quantization int8", "b", ("--quantization", "int8")),
    ):
        command = quire("a", Mode.parse(f"int8={flags}"), 1, tmp_path).command
        assert command[4] == model
        assert command[len(command) - len(rest) :] == rest


@pytest.mark.parametrize("text", ["Q8_0=--model x", "int8", "int80=--model x"])
def test_a_mode_that_does_not_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="must be NAME=FLAGS"):
        Mode.parse(text)


def test_the_middle_of_repeats_is_the_median_but_the_most_memory_and_disturbance() -> None:
    runs = [
        sample(10.0, 1.0, peak_bytes=5, others_cores=0.2),
        sample(30.0, 2.0, peak_bytes=7, others_cores=0.0),
        sample(20.0, 9.0, peak_bytes=6, others_cores=0.1),
    ]
    assert Sample.middle(runs) == Sample(20.0, 2.0, 2.0, 2.0, 7, 0.2)


def test_best_is_held_against_best_and_more_than_one_is_always_good() -> None:
    rows = [
        row("Quire", "float32", {ALONE: sample(30.0, 20.0), EIGHT: sample(50.0)}),
        row("Quire", "int8", {ALONE: sample(60.0, 10.0)}),
        row("A", "float32", {ALONE: sample(40.0, 25.0)}),
        row("B", "int4 Q4_1", {ALONE: sample(20.0, 5.0)}),
    ]
    found = {ratio.column: ratio for ratio in ratios(rows, [ALONE, EIGHT])}
    assert {ratio.case for ratio in found.values()} == {ALONE}, "no peer finished the other"
    rate, ttft = found["output tokens/s"], found["TTFT p50"]
    assert (rate.ratio, rate.ours, rate.theirs) == (1.5, "Quire int8", "A float32")
    assert (ttft.ratio, ttft.ours, ttft.theirs) == (0.5, "Quire int8", "B int4 Q4_1")
    in_floats = {ratio.column: ratio.ratio for ratio in ratios(rows, [ALONE], "float32")}
    assert (in_floats["output tokens/s"], in_floats["TTFT p50"]) == (0.75, 1.25)


def test_a_table_has_who_finished_and_marks_who_was_disturbed() -> None:
    case = Case(1, 4, 256, 128)
    rows = [
        row("Quire", "float32", {case: sample(123.4, LIMITS.step_ms(case, "float32") * 2)}),
        row("A", "int8", {case: sample(99.0, others_cores=0.5)}),
        row("B", "int8", {}),
    ]
    ours, peer = table(case, rows, LIMITS).splitlines()[3:]
    assert ours.split()[:3] == ["Quire", "float32", "123.4"]
    assert ours.endswith("50%")
    assert peer.startswith("A ")
    assert peer.endswith("* others: 0.50 cores")


def test_a_step_is_bound_by_what_it_reads_or_by_what_it_multiplies() -> None:
    alone, many = Case(1, 1, 200, 100), Case(100, 1, 200, 100)
    assert LIMITS.step_ms(alone, "float32") == pytest.approx(2.0), "2 MFLOP at 1 GFLOP/s"
    assert LIMITS.step_ms(many, "float32") == pytest.approx(200.0)
    assert LIMITS.step_ms(alone, "int4") == pytest.approx(0.5), "at int8's rate, the best"
    slow = replace(LIMITS, bytes_per_s=1e9)
    assert slow.step_ms(alone, "float32") == pytest.approx(5.0), "4 MB, and KV of 250 tokens"
    assert slow.step_ms(alone, "int8") == pytest.approx(1.25)


def test_what_prompts_share_is_read_once() -> None:
    slow = replace(LIMITS, bytes_per_s=1e6)
    case = Case(8, 1, 1088, 32, shared_len=1024)
    assert slow.step_ms(case, "int8") == pytest.approx(1000 * (1 + (1024 + 8 * 80) / 1000))


def test_others_work_is_seen_and_ours_is_not_theirs() -> None:
    spin, rest = [sys.executable, "-c", "while True: pass"], ["sleep", "60"]
    with subprocess.Popen(spin) as spinning, subprocess.Popen(rest) as idle:
        try:
            with Watch(spinning.pid) as ours, Watch(idle.pid) as not_ours:
                time.sleep(1.0)
        finally:
            spinning.kill()
            idle.kill()
    # What is starved of a core is so by others, who count as well.
    assert not_ours.others_cores > 0.3
    assert not_ours.others_cores > ours.others_cores
    assert ours.peak_bytes > not_ours.peak_bytes > 0


def test_what_a_server_leaves_behind_is_ended(tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = "sleep 1000 & echo left $!; exit 3"
    engine = Engine("A", "int8", ("sh", "-c", script, "sh"), ())
    with pytest.raises(EngineFailed, match="it ended with 3: left"), running(engine, log):
        pass
    left = int(log.read_text().split()[1])
    assert not psutil.pid_exists(left) or psutil.Process(left).status() == psutil.STATUS_ZOMBIE


@pytest.fixture
def tiny_model(tmp_path: Path) -> Path:
    """Every id that a prompt of the load may have is in its vocabulary, and is some text."""
    size = 10_000
    directory = write_tiny_llama(tmp_path / "tiny", vocab_size=size)
    config = json.loads((directory / "config.json").read_text())
    config["max_position_embeddings"] = MAX_MODEL_LEN
    (directory / "config.json").write_text(json.dumps(config))
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [f"w{number}" for number in range(size - len(letters))]
    vocabulary = {text: number for number, text in enumerate([*letters, *words])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


@pytest.mark.slow
def test_a_real_run_is_kept_with_all_its_tokens_counted(tiny_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "figures.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "bench.compare_cpu", "--tiny", "--threads", "1"),
            *("--repeats", "1", "--output", str(output), "--model", str(tiny_model)),
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "vLLM is left out: no --vllm-python" in done.stdout
    figures = json.loads(output.read_text())["figures"]
    assert set(figures["loads"]) == {case.name for case in TINY}
    for rows in figures["loads"].values():
        assert rows["Quire float32"]["output_tokens_per_s"] > 0
        assert rows["Quire float32"]["peak_bytes"] > 2**20
    assert figures["systems"]["Quire float32"]["version"].startswith("quire ")
    assert not figures["failures"]


@pytest.mark.slow
def test_ctrl_c_ends_the_server_and_keeps_what_there_is(tiny_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "figures.json"
    command = [sys.executable, "-m", "bench.compare_cpu", "--tiny", "--threads", "1"]
    command += ["--model", str(tiny_model), "--repeats", "1000", "--output", str(output)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("16 in, 8 out"):
                break
        servers = psutil.Process(process.pid).children(recursive=True)
        assert len(servers) >= 4, "quire serve and its three"
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(timeout=60) == 130
    assert not [server for server in servers if server.is_running()]
    assert "Quire float32" in json.loads(output.read_text())["figures"]["systems"]
