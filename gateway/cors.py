"""Which pages of other origins may ask this server from a browser: none, unless an operator opens
it. The flags are vLLM's."""

import json
from dataclasses import dataclass
from typing import Any

_EXPOSED = ("x-request-id", "retry-after", "allow")
"""Headers of ours that a page may read."""


@dataclass(frozen=True, slots=True)
class CorsPolicy:
    """Whom a browser is told to let in."""

    allowed_origins: tuple[str, ...]
    """Like "https://app.example"; "*" is every page."""
    allowed_methods: tuple[str, ...] = ("*",)
    allowed_headers: tuple[str, ...] = ("*",)
    allow_credentials: bool = False
    """Whether a page may let the browser add what it holds for this server."""

    def arguments(self) -> dict[str, Any]:
        """What starlette's CORSMiddleware takes."""
        return {
            "allow_origins": self.allowed_origins,
            "allow_methods": self.allowed_methods,
            "allow_headers": self.allowed_headers,
            "allow_credentials": self.allow_credentials,
            "expose_headers": _EXPOSED,
        }


def parse_cors(
    origins: str | None, methods: str | None, headers: str | None, *, credentials: bool
) -> CorsPolicy | None:
    """The policy out of the flags; None: closed.

    Raises ValueError, with a message for the operator.
    """
    if origins is None:
        if methods is not None or headers is not None or credentials:
            raise ValueError(
                "--allowed-methods, --allowed-headers and --allow-credentials are about pages of "
                "other origins; there is no --allowed-origins, so none may ask"
            )
        return None
    named = names_of("--allowed-origins", origins)
    if not named:
        return None
    if credentials and "*" in named:
        raise ValueError(
            'with --allow-credentials, --allowed-origins must name each origin; it has "*"'
        )
    return CorsPolicy(
        named,
        names_of("--allowed-methods", methods or "*"),
        names_of("--allowed-headers", headers or "*"),
        credentials,
    )


def names_of(flag: str, value: str) -> tuple[str, ...]:
    """A JSON array as vLLM has it, or names with commas between them. Raises ValueError."""
    if not value.lstrip().startswith("["):
        return tuple(name for part in value.split(",") if (name := part.strip()))
    try:
        names = json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"{flag} is {value}; it is not valid JSON: {error.msg}") from error
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"{flag} is {value}; it must be an array of strings")
    return tuple(names)
