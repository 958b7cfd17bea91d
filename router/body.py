"""Reading a request's body, with bounds on its size and on the time it takes."""

import asyncio

from starlette.requests import ClientDisconnect, Request

from gateway.errors import Fault, RequestError, quote

BODY_S = 60.0
"""A body that is not here after so long is given up."""
FIRST_S = 5.0
LEAST_BYTES_PER_S = 4096
"""So is one that, from `FIRST_S` on, has come more slowly than this on the whole."""
DISCARD_FACTOR = 4
"""A body over the limit is read on, and forgotten, up to so many limits: a client that is still
sending would not see the answer."""


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body. Raises RequestError if it is not said to be JSON, too large, too slow or
    never complete."""
    _check_content_type(request)
    chunks: list[bytes] = []
    num_bytes = 0
    clock = asyncio.get_running_loop().time
    began_at = clock()
    try:
        async with asyncio.timeout(FIRST_S) as patience:
            async for chunk in request.stream():
                num_bytes += len(chunk)
                may_take_s = min(FIRST_S + num_bytes / LEAST_BYTES_PER_S, BODY_S)
                patience.reschedule(began_at + may_take_s)
                if num_bytes <= max_bytes:
                    chunks.append(chunk)
                else:
                    chunks.clear()
                    if num_bytes > DISCARD_FACTOR * max_bytes:
                        break
    except TimeoutError as error:
        raise RequestError(
            Fault.BODY_TOO_SLOW,
            f"the body comes too slowly: {num_bytes} bytes in {clock() - began_at:.1f} seconds; "
            f"it may take {BODY_S:g}, and must bring {LEAST_BYTES_PER_S} bytes a second",
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


def _check_content_type(request: Request) -> None:
    """A page of another origin may send forms and plain text without asking, but no JSON."""
    said = request.headers.get("content-type")
    media_type = (said or "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise RequestError(
            Fault.WRONG_CONTENT_TYPE,
            f"Content-Type is {'missing' if said is None else quote(said)}; "
            "it must be application/json",
            field="Content-Type",
        )
