"""OpenAI's own specification as the judge of what we answer.

It is no part of this repository: the path comes from OPENAI_SPEC, or is `shared/openai` beside the
checkout. Where there is none, tests that need it are skipped.
"""

import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from referencing import Registry
from referencing.jsonschema import DRAFT202012

_BESIDE_THE_CHECKOUT = Path(__file__).parents[2] / "shared" / "openai" / "openapi.yaml"
_URI = "urn:openai"


def path() -> Path:
    """Where the specification is, if it is anywhere."""
    return Path(os.environ.get("OPENAI_SPEC") or _BESIDE_THE_CHECKOUT)


needs_spec = pytest.mark.skipif(not path().is_file(), reason="OpenAI's specification is not here")


def check(value: Any, schema: str) -> None:
    """Raises AssertionError, saying where, unless `value` is valid by the schema of that name."""
    worst = jsonschema.exceptions.best_match(_validator(schema).iter_errors(value))
    if worst is not None:
        raise AssertionError(
            f"not a {schema} at {worst.json_path}: {worst.message}\n"
            f"{json.dumps(value, ensure_ascii=False)[:2000]}"
        )


def events(stream: str) -> Iterator[tuple[str, Any]]:
    """Each event of a stream: its name ("message" where it has none) and its data. A last "[DONE]"
    is data, too."""
    for block in stream.split("\n\n"):
        name, data = "message", []
        for line in block.split("\n"):
            field, _, content = line.partition(":")
            if field == "event":
                name = content.removeprefix(" ")
            elif field == "data":
                data.append(content.removeprefix(" "))
        if data:
            text = "\n".join(data)
            yield name, text if text == "[DONE]" else json.loads(text)


@cache
def _validator(schema: str) -> jsonschema.Draft202012Validator:
    registry = _registry()
    assert schema in registry.contents(_URI)["components"]["schemas"], f"no schema {schema}"
    return jsonschema.Draft202012Validator(
        {"$ref": f"{_URI}#/components/schemas/{schema}"}, registry=registry
    )


@cache
def _registry() -> Registry[Any]:
    with path().open(encoding="utf-8") as file:
        document = yaml.load(file, yaml.CSafeLoader)
    schemas = {"components": {"schemas": _as_json_schema(document["components"]["schemas"])}}
    empty: Registry[Any] = Registry()
    filled: Registry[Any] = empty.with_resource(_URI, DRAFT202012.create_resource(schemas))
    return filled


def _as_json_schema(value: Any) -> Any:
    """What OpenAPI says beyond JSON Schema, said in it.

    `nullable` is version 3.0's word for a type that may be null. With a discriminator, `oneOf`
    means the branch of that type; the others may well accept the value, too.
    """
    if isinstance(value, list):
        return [_as_json_schema(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    schema = {key: _as_json_schema(entry) for key, entry in value.items()}
    if isinstance(schema.get("discriminator"), dict) and "oneOf" in schema:
        schema["anyOf"] = schema.pop("oneOf")
    if schema.get("nullable") is True:
        return {"anyOf": [schema, {"type": "null"}]}
    return schema
