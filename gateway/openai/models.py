"""GET /v1/models."""

from typing import Any

from gateway.model import Model


def model_body(model: Model, created: int, max_model_len: int | None) -> dict[str, Any]:
    """One model; its length is null until a worker is attached."""
    return {
        "id": model.name,
        "object": "model",
        "created": created,
        "owned_by": "quire",
        "max_model_len": max_model_len,
    }


def models_body(model: Model, created: int, max_model_len: int | None) -> dict[str, Any]:
    """All models served: one."""
    return {"object": "list", "data": [model_body(model, created, max_model_len)]}
