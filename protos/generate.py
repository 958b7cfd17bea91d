"""Write the Python modules of `protos/quire/v1/*.proto`: messages, services and type stubs.

protoc's output imports `quire.v1`, which here is the name of another package (`quire`, what people
import); this is the one place that rewrites those imports to `protos.quire.v1`.

    python -m protos.generate            # write beside the .proto files
    python -m protos.generate --check    # exit 1 if what is committed differs
"""

import re
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

ROOT = Path(__file__).resolve().parent
PACKAGE = Path("quire/v1")
_IMPORT = re.compile(r"^(from|import) quire\.v1\b", re.MULTILINE)


def generate(into: Path) -> list[Path]:
    """Generate all modules under `into / quire/v1` and return their paths."""
    from grpc_tools import protoc

    sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / PACKAGE).glob("*.proto"))
    arguments = [
        "protoc",
        f"--proto_path={ROOT}",
        f"--proto_path={files('grpc_tools') / '_proto'}",
        f"--python_out={into}",
        f"--pyi_out={into}",
        f"--grpc_python_out={into}",
        *sources,
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed")
    (into / PACKAGE / "sampling_pb2_grpc.py").unlink()  # protoc writes one even without a service
    written = sorted((into / PACKAGE).glob("*_pb2*.py*"))
    for path in written:
        path.write_text(_IMPORT.sub(r"\1 protos.quire.v1", path.read_text()))
    return written


def stale() -> list[str]:
    """Names of generated files whose committed text is not what protoc writes now."""
    with tempfile.TemporaryDirectory() as scratch:
        fresh = {path.name: path.read_text() for path in generate(Path(scratch))}
    committed = {path.name: path.read_text() for path in (ROOT / PACKAGE).glob("*_pb2*.py*")}
    names = fresh.keys() | committed.keys()
    return sorted(name for name in names if fresh.get(name) != committed.get(name))


def main() -> int:
    if "--check" not in sys.argv[1:]:
        generate(ROOT)
        return 0
    names = stale()
    if names:
        print(f"generated code is not fresh: {', '.join(names)}; run `make protos`")
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main())
