"""What an endpoint is: its route, and what the OpenAPI document says of it."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


@dataclass(frozen=True, slots=True)
class Parameter:
    """What may be said in the address, after the path."""

    name: str
    schema: Mapping[str, Any]
    meaning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One method of one path."""

    method: str
    path: str
    """As starlette writes it: "/v1/models/{name:model}"."""
    handler: Callable[[Request], Awaitable[Response]]
    summary: str
    body: tuple[type[BaseModel], ...] = ()
    """What a body may be; empty: it takes none."""
    query: tuple[Parameter, ...] = ()
    answer: str
    """What a response is, in a line."""
    shape: type[BaseModel] | None = None
    """Of a response that is JSON."""
    media_type: str = "application/json"
    event: type[BaseModel] | None = None
    """What server-sent events carry that `"stream": true` makes of the answer; None: it cannot."""

    @property
    def route(self) -> Route:
        """For the application."""
        return Route(self.path, self.handler, methods=[self.method])
