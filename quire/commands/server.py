"""Whom `chat` and `bench` talk to: a URL, the stack that runs here, or one started for them."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quire.errors import ConfigurationError
from quire.http import Endpoint

if TYPE_CHECKING:
    from quire.options import StackOptions


@dataclass(frozen=True, slots=True)
class Server:
    """Who answers."""

    endpoint: Endpoint
    model: str
    """The name to put in `model`."""


@contextlib.contextmanager
def server(
    model: str | None,
    url: str | None,
    api_key: str | None,
    options: "StackOptions",
    ca_certs: str | None = None,
) -> Iterator[Server]:
    """A server to talk to; one that had to be started for MODEL ends with the block.

    Raises ConfigurationError if both or neither of MODEL and URL are given and it is not clear
    which running stack is meant.
    """
    if model and url:
        raise ConfigurationError("give MODEL or --url, not both")
    if model:
        from quire.background import BackgroundStack
        from quire.models import resolve
        from quire.progress import announce

        resolved = resolve(model, announce, weights=options.needs_weights)
        announce(f"starting {resolved.name}")
        with BackgroundStack(resolved, options) as background:
            yield Server(Endpoint(background.stack.url), background.stack.name)
        return
    # With /v1, too, as other clients want it and `quire serve` prints it.
    if not url:
        from quire.registry import the_address

        url = the_address(lambda stack: stack.url, "give MODEL, or name a server with --url")
    base = url.rstrip("/").removesuffix("/v1")
    endpoint = Endpoint(base, api_key, ca_certs)
    yield Server(endpoint, _served_model(endpoint))


def check_converses(server: Server) -> None:
    """Raises ConfigurationError if its model answers no conversations, like one that only embeds.

    It is asked without a message: whoever converses refuses that, and computes nothing.
    """
    import asyncio
    import json

    asked = server.endpoint.try_post("/v1/chat/completions", {"model": server.model})
    _, body = asyncio.run(asked)
    with contextlib.suppress(ValueError, KeyError, TypeError):
        error = json.loads(body)["error"]
        if error["param"] == "model":
            raise ConfigurationError(str(error["message"]))


def _served_model(endpoint: Endpoint) -> str:
    import asyncio
    import json

    status, body = asyncio.run(endpoint.get("/v1/models"))
    if status == 401:
        raise ConfigurationError(f"{endpoint.url} asks for a key; give it with --api-key")
    if status != 200:
        raise ConfigurationError(f"{endpoint.url}/v1/models answers HTTP {status}")
    models = json.loads(body)["data"]
    if not models:
        raise ConfigurationError(f"{endpoint.url} serves no model yet")
    return str(models[0]["id"])
