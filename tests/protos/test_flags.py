"""One table of flags: what each takes, and that every command and process has it so."""

import contextlib
import subprocess
import sys
from typing import Any

import pytest
import typer

import router.__main__
import scheduler.__main__
import worker.__main__
from gateway import flags as gateway_flags
from protos import command_line, flags
from protos.flag import Flag, FlagError
from quire.cli import app
from scheduler.core.config import CoreConfig

FLAGS = [
    flag
    for module in (flags, gateway_flags)
    for flag in vars(module).values()
    if isinstance(flag, Flag)
]
PROCESSES: list[Any] = [router.__main__.main, scheduler.__main__.main, worker.__main__.main]


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.name)
def test_a_default_is_a_value_that_may_be_given_and_is_told(flag: Flag[Any]) -> None:
    assert flag.shown_default
    assert flag.default is None or flag.checked(flag.default) == flag.default


@pytest.mark.parametrize(
    ("flag", "given", "message"),
    [
        (flags.THREADS, "0", "--threads is 0; it must be at least 1"),
        (flags.THREADS, "1.5", "--threads is 1.5; it must be a whole number, at least 1"),
        (flags.THREADS, "two", "--threads is 'two'; it must be a whole number, at least 1"),
        (flags.PORT, "65536", "--port is 65536; it must be 0 to 65535"),
        (flags.WATERMARK, "1", "--watermark is 1; it must be 0 to 0.99"),
        (flags.DRAIN_TIMEOUT, "nan", "--drain-timeout is 'nan'; it must be a number, at least 0"),
        (flags.DRAIN_TIMEOUT, "-1", "--drain-timeout is -1; it must be at least 0"),
        (flags.DTYPE, "int8", "--dtype is 'int8'; it must be auto, float32, bfloat16 or float16"),
        (flags.SERVED_MODEL_NAME, " ", "--served-model-name is ' '; it must be at least 1 char"),
        (gateway_flags.CHAT_TEMPLATE, "/nope", "--chat-template is '/nope'; it must be a file th"),
        (gateway_flags.TOOL_CALL_PARSER, "x", "--tool-call-parser is 'x'; it must be auto, her"),
    ],
)
def test_what_cannot_be_is_refused_by_flag_limit_and_value(
    flag: Flag[Any], given: str, message: str
) -> None:
    with pytest.raises(FlagError) as error:
        flag.checked(given)
    assert str(error.value).startswith(message)


def test_in_python_a_flag_has_its_other_name() -> None:
    with pytest.raises(FlagError, match=r"^threads is 0; it must be at least 1$"):
        flags.THREADS.checked(0, "threads")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1024", 1024),
        ("2GiB", 2 << 30),
        ("1.5 gib", 3 << 29),
        ("512MB", 512_000_000),
        ("64kB", 64_000),
        ("10B", 10),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert flags.KV_CACHE_MEMORY.checked(text) == expected


@pytest.mark.parametrize("text", ["", "2 gigs", "-1GiB", "GiB", "1e9", "2GiB2"])
def test_what_is_not_a_size(text: str) -> None:
    with pytest.raises(FlagError, match="it must be a size like 2GiB"):
        flags.KV_CACHE_MEMORY.checked(text)


def test_the_schedulers_defaults_are_its_cores() -> None:
    core = CoreConfig(hash_seed=b"")
    for flag, default in (
        (flags.MAX_NUM_SEQS, core.max_num_seqs),
        (flags.MAX_NUM_BATCHED_TOKENS, core.max_num_batched_tokens),
        (flags.SCHEDULING_POLICY, core.policy),
        (flags.PRIORITY_AGING, core.aging_s),
        (flags.WATERMARK, core.watermark),
        (flags.MAX_QUEUED, core.max_queued),
        (flags.MAX_QUEUED_TOKENS, core.max_queued_tokens),
        (flags.MAX_LOSSES, core.max_losses),
    ):
        assert flag.default == default, flag.name


def options(command: Any) -> dict[str, Any]:
    """The parameters of a command, by flag."""
    return {
        name: parameter
        for parameter in command.params
        for name in getattr(parameter, "opts", ())
        if name.startswith("--")
    }


def commands() -> dict[str, Any]:
    """All that take flags, as typer has them."""
    found: dict[str, Any] = {"quire serve": typer.main.get_command(app).commands["serve"]}  # type: ignore[attr-defined]
    for main in PROCESSES:
        process = typer.Typer()
        process.command()(main)
        found[main.__module__.removesuffix(".__main__")] = typer.main.get_command(process)
    return found


ON_OFF = "bool"
HAVE_NO_DEFAULT = {"--help", "--install-completion", "--show-completion", "--model"}
SAY_IT_THEMSELVES = {"--limit", "--uds", "--grpc-listen", "--listen", "--replica-id", "--api-key"}


@pytest.mark.parametrize("name", ["quire serve", "router", "scheduler", "worker"])
def test_every_flag_tells_its_unit_and_default(name: str) -> None:
    for flag, parameter in options(commands()[name]).items():
        if flag in HAVE_NO_DEFAULT | SAY_IT_THEMSELVES or isinstance(parameter.default, bool):
            continue
        assert "[default: " in parameter.help or parameter.show_default, flag
        assert parameter.metavar, flag


def test_what_serve_takes_is_what_its_processes_take() -> None:
    """Each flag that is handed on exists there: nobody would know it otherwise."""
    processes = [command for name, command in commands().items() if " " not in name]
    known = {flag for command in processes for flag in options(command)}
    of_the_stack = {"--replicas", "--router-processes", "--hang-timeout", "--help", "-h"}
    assert set(options(commands()["quire serve"])) - known - of_the_stack == set()


@pytest.mark.parametrize("process", ["router", "scheduler", "worker"])
def test_a_process_refuses_in_one_line(process: str) -> None:
    needs_model = [] if process == "scheduler" else ["--model", "/nowhere"]
    done = subprocess.run(
        [sys.executable, "-m", process, *needs_model, "--metrics-port", "70000"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --metrics-port is 70000; it must be 0 to 65535\n"


@pytest.mark.parametrize("process", ["router", "scheduler", "worker"])
def test_a_process_reads_its_command_line_as_every_other(process: str) -> None:
    for given, message in (
        (["--metrics_port", "70000"], "--metrics-port is 70000; it must be 0 to 65535"),
        (["--metricsport=1"], "there is no option --metricsport; did you mean --metrics-port?"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", process, *given], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {message}\n")


def test_other_errors_are_not_taken_for_wrong_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["program"])

    def fails() -> None:
        raise FileNotFoundError("x")

    app = typer.Typer()
    app.command()(fails)
    with pytest.raises(FileNotFoundError), contextlib.suppress(SystemExit):
        command_line.run(app)
