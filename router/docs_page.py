"""The OpenAPI document as a page that needs no script and nothing from any other server."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;
color:#1c1e21;background:#fff}
h1{margin-bottom:0}h2{margin-top:2.5rem;border-bottom:1px solid #ccc}
code,pre{font:13px/1.45 ui-monospace,monospace}
details{border:1px solid #d5d8dc;border-radius:6px;margin:.5rem 0}
details>*:not(summary){margin-left:1rem;margin-right:1rem}
summary{cursor:pointer;padding:.4rem .8rem}summary b{display:inline-block;width:4.2rem}
table{border-collapse:collapse;width:calc(100% - 2rem);margin-bottom:1rem}
th,td{text-align:left;vertical-align:top;padding:.2rem .6rem;border-top:1px solid #e3e5e8}
@media(prefers-color-scheme:dark){body{color:#e4e6e8;background:#16181b}
details,th,td,h2{border-color:#3a3e44}a{color:#8ab4f8}}
"""


def page(document: Mapping[str, Any]) -> str:
    """The page, as HTML."""
    info = document["info"]
    operations = [
        _operation(method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    schemas = [_schema(*named) for named in document["components"]["schemas"].items()]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(info['title'])}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>"
        f"<p>{escape(info['description'])} For programs: <a href='/openapi.json'>openapi.json</a>."
        f"</p><h2>Endpoints</h2>{''.join(operations)}"
        f"<h2>Bodies and errors</h2>{''.join(schemas)}</body></html>"
    )


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> str:
    rows = [
        (status, escape(response["description"]), _types(response))
        for status, response in operation["responses"].items()
    ]
    body = ""
    if "requestBody" in operation:
        [content] = operation["requestBody"]["content"].values()
        body = f"<p>Body: {_type(content['schema'])}</p>"
    return (
        f"<details><summary><b>{method.upper()}</b> <code>{escape(path)}</code> "
        f"{escape(operation['summary'])}</summary>{body}"
        f"{_table(('status', 'meaning', 'content'), rows)}</details>"
    )


def _types(response: Mapping[str, Any]) -> str:
    return "<br>".join(
        f"<code>{escape(media_type)}</code> {_type(content['schema'])}"
        for media_type, content in response["content"].items()
    )


def _schema(name: str, schema: Mapping[str, Any]) -> str:
    required = schema.get("required", ())
    rows = [
        (
            f"<code>{escape(field)}</code>{' *' if field in required else ''}",
            _type(said),
            escape(said.get("description", "")),
        )
        for field, said in schema.get("properties", {}).items()
    ]
    content = _table(("field", "type", ""), rows) if rows else f"<p>{_type(schema)}</p>"
    return (
        f'<details id="{escape(name)}"><summary><code>{escape(name)}</code></summary>'
        f"<p>{escape(schema.get('description', ''))}</p>{content}</details>"
    )


def _type(schema: Mapping[str, Any]) -> str:
    """A type in a few words, with a link to what has a name."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}"><code>{name}</code></a>'
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return " or ".join(map(_type, schema[union]))
    if "const" in schema:
        return f"<code>{escape(json.dumps(schema['const']))}</code>"
    if "enum" in schema:
        return " or ".join(f"<code>{escape(json.dumps(value))}</code>" for value in schema["enum"])
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"array of {_type(schema.get('items', {}))}"
    return escape(" or ".join(kind) if isinstance(kind, list) else kind)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells of `rows` are HTML."""
    header = "".join(f"<th>{name}</th>" for name in head)
    lines = ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows]
    return f"<table><tr>{header}</tr>{''.join(lines)}</table>"
