"""Reading a request's body, with bounds on its size and on the time it takes."""

import asyncio

from starlette.requests import ClientDisconnect, Request

from gateway.errors import Fault, RequestError

BODY_S = 60.0
"""A body that is not here after so long is given up."""
DISCARD_FACTOR = 4
"""A body over the limit is read on, and forgotten, up to so many limits: a client that is still
sending would not see the answer."""


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body. Raises RequestError if it is too large, too slow or never complete."""
    chunks: list[bytes] = []
    num_bytes = 0
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.stream():
                num_bytes += len(chunk)
                if num_bytes <= max_bytes:
                    chunks.append(chunk)
                else:
                    chunks.clear()
                    if num_bytes > DISCARD_FACTOR * max_bytes:
                        break
    except TimeoutError as error:
        raise RequestError(
            Fault.BODY_TOO_SLOW, f"the body was not complete after {BODY_S:g} seconds"
        ) from error
    except ClientDisconnect as error:
        raise RequestError(Fault.CLIENT_GONE, "the client left before its body ended") from error
    if num_bytes > max_bytes:
        raise RequestError(
            Fault.BODY_TOO_LARGE,
            f"the body has {'at least ' if num_bytes > DISCARD_FACTOR * max_bytes else ''}"
            f"{num_bytes} bytes; this server accepts at most {max_bytes}",
        )
    return b"".join(chunks)
