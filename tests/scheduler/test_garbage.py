"""Bytes that are no message of ours on the scheduler's port: whoever sends them loses its stream,
and nobody else anything."""

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from scheduler.cell import Cell
from tests.scheduler.conftest import Served
from tests.scheduler.peers import FakeRank, FakeRouter, Peer, token_at

MAX_MESSAGE_BYTES = 64 << 20
NOISE = {
    "HTTP/1": b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
    "TLS": bytes.fromhex("16030100a5010000a10303") + bytes(160),
    "zeros": bytes(1 << 16),
    "noise": random.Random(0).randbytes(1 << 16),
    "HTTP/2 and noise": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + random.Random(1).randbytes(4096),
}


@dataclass
class Others:
    """A worker and a router that were there before."""

    cell: Cell
    router: FakeRouter

    async def are_served(self, number: int) -> None:
        """As if nobody else were there."""
        await self.router.submit(number, [1, 2, 3], max_tokens=2)
        await self.router.until_finished(number)
        assert self.router.tokens[number] == [token_at(3), token_at(4)]
        assert self.cell.metrics.num_integrity_failures == 0


@pytest.fixture
async def others(served: Served) -> AsyncIterator[Others]:
    rank = await FakeRank.attached(served.address)
    router = await FakeRouter.connected(served.address)
    working = asyncio.create_task(rank.work())
    yield Others(served.cell, router)
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)


async def code_of(address: str, method: str) -> grpc.StatusCode:
    """How a call ends whose request is no message."""
    async with grpc.aio.insecure_channel(address) as channel:
        ask: Any = channel.unary_unary(f"/{method}")
        code: grpc.StatusCode = await ask(b"\xff" * 64, timeout=20).code()
        return code


async def test_what_is_no_grpc(served: Served, others: Others) -> None:
    host, _, port = served.address.partition(":")
    loop = asyncio.get_running_loop()
    for number, noise in enumerate(NOISE.values()):
        with socket.create_connection((host, int(port))) as stranger:
            stranger.setblocking(False)
            try:
                async with asyncio.timeout(0.3):
                    await loop.sock_sendall(stranger, noise)
                    while await loop.sock_recv(stranger, 65536):
                        pass
            except (TimeoutError, OSError):
                pass
        await others.are_served(number)


@pytest.mark.parametrize("peer", [FakeRouter, FakeRank])
async def test_a_message_that_is_too_large(
    served: Served, others: Others, peer: type[Peer]
) -> None:
    stranger = peer(served.address)
    await stranger.write(bytes(MAX_MESSAGE_BYTES + 1))
    code, _ = await stranger.end()
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    await others.are_served(1)


@pytest.mark.parametrize(
    ("method", "code"),
    [
        ("quire.v1.SchedulerService/GetState", grpc.StatusCode.INVALID_ARGUMENT),
        ("quire.v1.SchedulerService/Drain", grpc.StatusCode.UNIMPLEMENTED),
        ("grpc.health.v1.Health/Check", grpc.StatusCode.INVALID_ARGUMENT),
        ("grpc.health.v1.Health/Watch", grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_a_call_that_is_none(
    served: Served, others: Others, method: str, code: grpc.StatusCode
) -> None:
    assert await code_of(served.address, method) is code
    assert not served.cell.draining
    await others.are_served(1)


@pytest.mark.parametrize("method", ["Drain", "ResetPrefixCache"])
async def test_a_call_of_an_operators_that_is_none(
    served: Served, others: Others, method: str
) -> None:
    code = await code_of(served.admin_address, f"quire.v1.AdminService/{method}")
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert not served.cell.draining
    await others.are_served(1)
