"""What pydantic does not know of a request's fields: the model's defaults, and what their numbers,
lists and names may be, with the limits that the operator has set."""

from typing import Any

from gateway.model import Model
from gateway.ranges import COUNTS, RANGES, Count, Range
from gateway.request import REQUEST_ID, SALT

Schema = dict[str, Any]

_OF_THE_MODEL = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_TOKENS = ("stop_token_ids", "allowed_token_ids", "tokens")
_PATTERNS = {"cache_salt": SALT, "request_id": REQUEST_ID}
_FIRST = ("model", "messages", "prompt", "input")


def completed(body: Schema, model: Model, max_model_len: int | None) -> None:
    """Adds to the schema of a body; fields that everybody needs come first."""
    fields: dict[str, Schema] = body["properties"]
    for name, field in fields.items():
        if name in _OF_THE_MODEL:
            field["default"] = getattr(model.defaults, name)
        if name in RANGES and field.get("type") in ("integer", "number"):
            _add_range(field, RANGES[name], model)
        if name in COUNTS:
            _add_count(field, COUNTS[name], model)
        if name in _TOKENS:
            field["items"] |= {"minimum": 0, "maximum": model.tokenizer.vocab_size - 1}
        if name in _PATTERNS:
            field["pattern"] = f"^{_PATTERNS[name].pattern}$"
        if name == "messages":
            field["minItems"] = 1
        if name == "truncate_prompt_tokens" and max_model_len is not None:
            field["maximum"] = max_model_len
    first = [name for name in (*body.get("required", ()), *_FIRST) if name in fields]
    body["properties"] = {name: fields[name] for name in dict.fromkeys([*first, *fields])}


def _add_range(field: Schema, known: Range, model: Model) -> None:
    bounds = {
        "minimum": known.low,
        "exclusiveMinimum": known.above,
        "maximum": known.most(model.limits),
    }
    for key, bound in bounds.items():
        if bound is not None:
            field.setdefault(key, bound)


def _add_count(field: Schema, known: Count, model: Model) -> None:
    most = getattr(model.limits, known.limit)
    bounds = {}
    if known.characters is not None:
        bounds = {"minLength": 1, "maxLength": getattr(model.limits, known.characters)}
    for kind in field.get("anyOf", [field]):
        if kind.get("type") == "object":
            kind["maxProperties"] = most
        elif kind.get("type") == "array":
            kind["items"] |= bounds
            is_one_of_several = "anyOf" in field and kind["items"].get("type") == "integer"
            if not is_one_of_several:  # tokens of one prompt: the model's length is their limit
                kind["maxItems"] = most
        else:
            kind |= bounds
