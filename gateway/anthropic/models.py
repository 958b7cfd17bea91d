"""GET /v1/models, as Anthropic's clients read it."""

from datetime import UTC, datetime
from typing import Any

from gateway.model import Model


def model_body(model: Model, created: int, max_model_len: int | None) -> dict[str, Any]:
    """One model; its length is null until a worker is attached."""
    return {
        "type": "model",
        "id": model.name,
        "display_name": model.name,
        "created_at": f"{datetime.fromtimestamp(created, UTC):%Y-%m-%dT%H:%M:%SZ}",
        "lifecycle": "active",
        "max_input_tokens": max_model_len,
    }


def models_body(
    model: Model, created: int, max_model_len: int | None, *, is_past: bool
) -> dict[str, Any]:
    """A page of all models served: one, unless the page lies before or after it."""
    listed = [] if is_past else [model_body(model, created, max_model_len)]
    name = None if is_past else model.name
    return {"data": listed, "first_id": name, "last_id": name, "has_more": False}
