"""The OpenAPI document as a page that needs no script and nothing from any other server."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_STYLE = """
:root{color-scheme:light dark;--line:#d5d8dc;--soft:#f4f5f7;--dim:#5c6370;--link:#0b57d0}
@media(prefers-color-scheme:dark){:root{--line:#3a3e44;--soft:#1f2227;--dim:#a0a6b0;--link:#8ab4f8}}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}
h1{margin-bottom:0}h2{margin-top:2.5rem;border-bottom:1px solid var(--line)}
h3{font-size:1rem;margin:1rem 0 .3rem}a{color:var(--link)}
code{font:13px/1.45 ui-monospace,monospace;overflow-wrap:anywhere}
details{border:1px solid var(--line);border-radius:6px;margin:.5rem 0}
details>div{padding:0 .8rem .8rem;overflow-x:auto}
summary{cursor:pointer;padding:.4rem .8rem}summary b{display:inline-block;width:4.2rem}
details[open]>summary{background:var(--soft);border-radius:6px 6px 0 0}
summary span,td small{color:var(--dim)}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;vertical-align:top;padding:.25rem .6rem .25rem 0}
td{border-top:1px solid var(--line)}td:first-child{white-space:nowrap}
td small{display:block;font-size:13px}
@media(max-width:44rem){table,tbody,tr,td{display:block}tr{border-top:1px solid var(--line)}
th{display:none}td{border:0;padding:.1rem 0}tr{padding:.3rem 0}
td:nth-child(3):not(:last-child) code::before{content:"default: "}}
"""
_INTRODUCTION = (
    "For programs: <a href='/openapi.json'>openapi.json</a>. "
    "A field with * must be there; the others may be left out or null."
)
_MAX_SHOWN_FIELDS = 6
"""Of an object without a name; more are not a type in a few words."""


def page(document: Mapping[str, Any]) -> str:
    """The page, as HTML."""
    info, schemas = document["info"], document["components"]["schemas"]
    operations = [
        _operation(method, path, operation, schemas)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    inline = set(_bodies(document))
    objects = [_object(*named) for named in schemas.items() if named[0] not in inline]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(info['title'])}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>"
        f"<p>{escape(info['description'])} {_INTRODUCTION}</p>"
        f"<h2>Endpoints</h2>{''.join(operations)}"
        f"<h2>Objects</h2>{''.join(objects)}</body></html>"
    )


def _bodies(document: Mapping[str, Any]) -> list[str]:
    """The names of what is shown where it is asked for."""
    return [
        _name(schema)
        for methods in document["paths"].values()
        for operation in methods.values()
        for schema in _body_schemas(operation)
    ]


def _body_schemas(operation: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if "requestBody" not in operation:
        return []
    [content] = operation["requestBody"]["content"].values()
    return list(content["schema"].get("anyOf", [content["schema"]]))


def _operation(
    method: str, path: str, operation: Mapping[str, Any], schemas: Mapping[str, Any]
) -> str:
    bodies = [_name(schema) for schema in _body_schemas(operation)]
    asked = [
        f'<h3 id="{escape(name)}">Body{" (one of these)" if len(bodies) > 1 else ""}: '
        f"<code>{escape(name)}</code></h3>{_fields(schemas[name])}"
        for name in bodies
    ]
    if parameters := operation.get("parameters"):
        asked.insert(0, f"<h3>Parameters</h3>{_parameters(parameters)}")
    rows = [
        (status, escape(response["description"]), _types(response))
        for status, response in operation["responses"].items()
    ]
    return (
        f"<details><summary><b>{method.upper()}</b> <code>{escape(path)}</code> "
        f"<span>{escape(operation['summary'])}</span></summary><div>{''.join(asked)}"
        f"<h3>Answers</h3>{_table(('status', 'meaning', 'content'), rows)}</div></details>"
    )


def _parameters(parameters: Sequence[Mapping[str, Any]]) -> str:
    fields = {
        each["name"]: each["schema"] | {"description": each.get("description", "In the path.")}
        for each in parameters
    }
    required = [each["name"] for each in parameters if each.get("required")]
    return _fields({"properties": fields, "required": required})


def _types(response: Mapping[str, Any]) -> str:
    return "<br>".join(
        f"<code>{escape(media_type)}</code> {_type(content['schema'])}"
        for media_type, content in response["content"].items()
    )


def _object(name: str, schema: Mapping[str, Any]) -> str:
    return (
        f'<details id="{escape(name)}"><summary><code>{escape(name)}</code> '
        f"<span>{escape(schema.get('description', ''))}</span></summary>"
        f"<div>{_fields(schema)}</div></details>"
    )


def _fields(schema: Mapping[str, Any]) -> str:
    required = schema.get("required", ())
    rows = [
        (
            f"<code>{escape(field)}</code>{' *' if field in required else ''}",
            f"{_type(said)}{_small(_bounds(said))}",
            f"<code>{escape(_written(said['default']))}</code>" if "default" in said else "",
            _prose(said.get("description", "")),
        )
        for field, said in schema.get("properties", {}).items()
    ]
    return _table(("field", "type", "default", "meaning"), rows)


def _type(schema: Mapping[str, Any]) -> str:
    """A type in a few words, with a link to what has a name."""
    if "$ref" in schema:
        name = escape(_name(schema))
        return f'<a href="#{name}"><code>{name}</code></a>'
    if "anyOf" in schema:
        return " or ".join(map(_type, schema["anyOf"]))
    for values in ([schema["const"]] if "const" in schema else (), schema.get("enum", ())):
        if values:
            return " or ".join(f"<code>{escape(_written(value))}</code>" for value in values)
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"array of {_type(schema.get('items', {}))}"
    if kind == "object" and 0 < len(schema.get("properties", ())) <= _MAX_SHOWN_FIELDS:
        return f"{{{', '.join(_entry(schema, *field) for field in schema['properties'].items())}}}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        return f"object of {_type(schema['additionalProperties'])}s"
    return escape(" or ".join(kind) if isinstance(kind, list) else kind)


def _entry(schema: Mapping[str, Any], name: str, said: Mapping[str, Any]) -> str:
    star = "*" if name in schema.get("required", ()) else ""
    return f"<code>{escape(name)}</code>{star}: {_type(said)}"


def _bounds(schema: Mapping[str, Any]) -> str:
    """What a value may be beside its type."""
    told: list[str] = []
    for kind in schema.get("anyOf", [schema]):
        low, high = kind.get("minimum"), kind.get("maximum")
        if "exclusiveMinimum" in kind:
            told.append(f"above {kind['exclusiveMinimum']:g}")
        if low is not None:
            told.append(f"at least {_number(low)}")
        if high is not None:
            told.append(f"at most {_number(high)}")
        for key, words in (
            ("minItems", "not empty"),
            ("maxItems", "at most {} entries"),
            ("maxProperties", "at most {} keys"),
            ("maxLength", "at most {} characters"),
            ("pattern", "{}"),
        ):
            if key in kind:
                told.append(words.format(kind[key]))
        if items := kind.get("items"):
            inner = _bounds(items)
            told += [f"each {inner}"] if inner else []
    return ", ".join(dict.fromkeys(told))


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _written(value: Any) -> str:
    return _number(value) if isinstance(value, float) else json.dumps(value)


def _small(text: str) -> str:
    return f"<small>{escape(text)}</small>" if text else ""


def _prose(text: str) -> str:
    """Words between backticks are code."""
    parts = escape(text).split("`")
    return "".join(
        f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts)
    )


def _name(schema: Mapping[str, Any]) -> str:
    return str(schema["$ref"]).rpartition("/")[2]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells of `rows` are HTML."""
    header = "".join(f"<th>{name}</th>" for name in head)
    lines = ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows]
    return f"<table><tr>{header}</tr>{''.join(lines)}</table>"
