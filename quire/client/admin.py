"""What an operator may ask of a scheduler: to give its cell up, to forget the prefix cache."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from protos import flags
from protos.channels import dial
from protos.outage import plainly
from protos.quire.v1 import admin_pb2, admin_pb2_grpc
from protos.trust import Trust
from quire.client.wire import CHANNEL_OPTIONS
from quire.errors import RequestFailed

_ANSWER_S = 10.0
"""In which a scheduler answers what it need not wait for."""


async def drain(target: str, trust: Trust, timeout_s: float | None) -> None:
    """Returns when nothing is in flight and the workers have been told to leave.

    Raises RequestFailed, also when that takes longer than `timeout_s`; the scheduler goes on.
    """
    limit_s = None if timeout_s is None else timeout_s + _ANSWER_S
    async with _asking(target, trust) as stub:
        request = admin_pb2.DrainRequest(timeout_s=timeout_s)
        answer = await stub.Drain(request, timeout=limit_s, metadata=trust.metadata)
    if count := answer.num_sequences:
        raise RequestFailed(
            f"the scheduler at {target} is still draining after {timeout_s:g} s: {count} "
            f"sequence{'s' * (count != 1)} left; it goes on, and sends its workers away after that"
        )


async def reset_prefix_cache(target: str, trust: Trust, timeout_s: float = _ANSWER_S) -> int:
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
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                reason = (
                    "that is its address for routers and workers; operators call at its "
                    f"{flags.ADMIN_LISTEN.option}"
                )
            raise RequestFailed(f"the scheduler at {target} did not do it: {reason}") from error
