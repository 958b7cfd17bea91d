"""What an operator may ask of a scheduler: to give its cell up, to forget the prefix cache."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from protos.channels import dial
from protos.outage import plainly
from protos.quire.v1 import admin_pb2, admin_pb2_grpc
from protos.trust import Trust
from quire.client.wire import CHANNEL_OPTIONS
from quire.errors import RequestFailed


async def drain(target: str, trust: Trust, timeout_s: float | None) -> None:
    """Returns when nothing is in flight and the workers have been told to leave.

    Raises RequestFailed.
    """
    async with _asking(target, trust) as stub:
        request = admin_pb2.DrainRequest()
        await stub.Drain(request, timeout=timeout_s, metadata=trust.metadata)


async def reset_prefix_cache(target: str, trust: Trust, timeout_s: float = 10.0) -> int:
    """How many blocks held a prefix. Raises RequestFailed."""
    async with _asking(target, trust) as stub:
        request = admin_pb2.ResetPrefixCacheRequest()
        answer = await stub.ResetPrefixCache(request, timeout=timeout_s, metadata=trust.metadata)
        return int(answer.num_blocks)


@asynccontextmanager
async def _asking(target: str, trust: Trust) -> AsyncIterator[admin_pb2_grpc.AdminServiceStub]:
    async with dial(trust, target, CHANNEL_OPTIONS) as channel:
        try:
            yield admin_pb2_grpc.AdminServiceStub(channel)
        except grpc.aio.AioRpcError as error:
            reason = plainly(error.code().name, error.details())
            raise RequestFailed(f"the scheduler at {target} did not do it: {reason}") from error
