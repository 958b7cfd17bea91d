"""gRPC requests that are no messages of their kind: INVALID_ARGUMENT.

gRPC's own library takes one for a defect of the server: it says UNKNOWN, and writes a traceback to
the log for each.
"""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

Context = grpc.aio.ServicerContext[Any, Any]
Refuse = Callable[[Context, str], Awaitable[None]]


async def _abort(context: Context, message: str) -> None:
    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, message)


class MalformedRefused(grpc.aio.ServerInterceptor):
    """For methods that take one request; streams of requests pass."""

    def __init__(self, refuse: Refuse = _abort) -> None:
        """`refuse` ends a call with a message, by raising."""
        self._refuse = refuse

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """See gRPC."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return handler
        malformed = f"the request is no message that {handler_call_details.method} takes"

        def deserialize(data: bytes) -> Any:
            try:
                return handler.request_deserializer(data)
            except DecodeError as error:
                return error

        async def checked(request: Any, context: Context) -> Any:
            if isinstance(request, DecodeError):
                await self._refuse(context, malformed)
            return await (handler.unary_stream or handler.unary_unary)(request, context)

        async def checked_each(request: Any, context: Context) -> AsyncIterator[Any]:
            if isinstance(request, DecodeError):
                await self._refuse(context, malformed)
            async for message in handler.unary_stream(request, context):
                yield message

        serialize = handler.response_serializer
        if handler.unary_stream is None:
            return grpc.unary_unary_rpc_method_handler(checked, deserialize, serialize)
        yields = inspect.isasyncgenfunction(handler.unary_stream)
        behavior = checked_each if yields else checked
        return grpc.unary_stream_rpc_method_handler(behavior, deserialize, serialize)
