"""Nothing that waits looks at the clock on the wall, which may jump.

`time.time` and `datetime` are for what people and OpenAI's `created` fields read; the places that
have them are listed here, each with what for.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("protos", "gateway", "router", "scheduler", "worker", "kernels", "quire")
WALL_CLOCKS = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today"}
ALLOWED = {
    "gateway/openai/call.py": "the field `created`",
    "gateway/openai/embeddings.py": "the field `created`",
    "gateway/template.py": "`strftime_now`, which templates on the hub call",
    "scheduler/cell.py": "an incarnation, compared for equality alone",
    "scheduler/attachments.py": "an epoch, compared for equality alone",
    "router/server.py": "the field `created` of models",
    "router/tls.py": "when a session began, which TLS says by that clock",
    "worker/packed_cache.py": "the age of files, which have that clock's times",
    "quire/process.py": "since when `quire ps` says that it runs",
    "quire/stack.py": "the same",
    "quire/commands/ps.py": "the same, as an age",
    "quire/commands/serve.py": "how long a start took, for its last line",
}


def wall_clocks(path: Path) -> list[int]:
    """Lines that name one."""
    tree = ast.parse(path.read_text())
    lines = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and f"{_owner(node)}.{node.attr}" in WALL_CLOCKS
    ]
    lines += [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        and node.module == "time"
        and any(alias.name in ("time", "time_ns") for alias in node.names)
    ]
    return lines


def _owner(node: ast.Attribute) -> str:
    """The last name before the dot."""
    return ast.unparse(node.value).rpartition(".")[2]


def test_only_what_is_shown_is_by_the_clock_on_the_wall() -> None:
    found = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if wall_clocks(path)
    }
    assert found == ALLOWED.keys()


def test_it_is_found_however_it_is_named(tmp_path: Path) -> None:
    for index, source in enumerate(
        (
            "import time\ntime.time()",
            "from time import time",
            "import datetime as d\nd.datetime.now()",
        )
    ):
        path = tmp_path / f"{index}.py"
        path.write_text(source)
        assert wall_clocks(path)
