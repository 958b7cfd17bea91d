"""What an operator may do, on a listener of its own."""

import asyncio
import contextlib
from typing import Any

import grpc

from protos.quire.v1 import admin_pb2
from scheduler.cell import Cell

ADMIN_SERVICE = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name


class AdminService:
    """The handlers of the service over one cell."""

    def __init__(self, cell: Cell) -> None:
        self._cell = cell

    async def drain(
        self, request: admin_pb2.DrainRequest, _context: object
    ) -> admin_pb2.DrainResponse:
        """AdminService.Drain. The cell drains whether or not the caller waits."""
        self._cell.guard.run(self._cell.start_draining)
        timeout_s = request.timeout_s if request.HasField("timeout_s") else None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._cell.wait_drained()
        return admin_pb2.DrainResponse(num_sequences=self._cell.num_sequences)

    async def reset_prefix_cache(
        self, _request: admin_pb2.ResetPrefixCacheRequest, _context: object
    ) -> admin_pb2.ResetPrefixCacheResponse:
        """AdminService.ResetPrefixCache."""
        return admin_pb2.ResetPrefixCacheResponse(
            num_blocks=self._cell.guard.run(self._cell.reset_prefixes)
        )

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """What to register."""
        methods: dict[str, Any] = {
            "Drain": grpc.unary_unary_rpc_method_handler(
                self.drain,
                request_deserializer=admin_pb2.DrainRequest.FromString,
                response_serializer=admin_pb2.DrainResponse.SerializeToString,
            ),
            "ResetPrefixCache": grpc.unary_unary_rpc_method_handler(
                self.reset_prefix_cache,
                request_deserializer=admin_pb2.ResetPrefixCacheRequest.FromString,
                response_serializer=admin_pb2.ResetPrefixCacheResponse.SerializeToString,
            ),
        }
        return (grpc.method_handlers_generic_handler(ADMIN_SERVICE, methods),)
