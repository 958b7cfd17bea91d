"""The committed modules are what protoc writes from the .proto files."""

from protos import generate


def test_generated_code_is_fresh() -> None:
    assert generate.stale() == []


def test_generated_code_imports_from_protos_not_from_the_quire_package() -> None:
    for path in (generate.ROOT / generate.PACKAGE).glob("*_pb2*.py*"):
        assert "from quire.v1" not in path.read_text(), path.name
