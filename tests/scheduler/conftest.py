"""A cell that serves on a free port of this machine, in the test's own event loop."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
import pytest

from protos.quire.v1 import admin_pb2_grpc, scheduler_pb2_grpc
from scheduler.cell import Cell
from scheduler.core.config import CoreConfig
from scheduler.core.scheduler import Scheduler
from scheduler.service import GrpcServer
from tests.scheduler.peers import Peer, eventually


@dataclass
class Served:
    """A cell and where to dial it."""

    cell: Cell
    address: str
    admin_address: str
    stub: scheduler_pb2_grpc.SchedulerServiceStub
    admin: admin_pb2_grpc.AdminServiceStub


Serve = Callable[..., Awaitable[Served]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts a cell; all but the step's timeout is for CoreConfig."""
    servers: list[GrpcServer] = []
    channels: list[grpc.aio.Channel] = []
    cells: list[Cell] = []

    async def start(*, step_timeout_s: float = 60.0, **config: Any) -> Served:
        core = Scheduler(CoreConfig(**{"hash_seed": b"test"} | config))
        cell = Cell(core, step_timeout_s=step_timeout_s)
        server = GrpcServer.of_cell(cell)
        address = server.listen("127.0.0.1:0")
        await server.start()
        operators = GrpcServer.of_admin(cell)
        admin_address = operators.listen("127.0.0.1:0")
        await operators.start()
        channel = grpc.aio.insecure_channel(address)
        admin_channel = grpc.aio.insecure_channel(admin_address)
        servers.extend((server, operators))
        channels.extend((channel, admin_channel))
        cells.append(cell)
        return Served(
            cell,
            address,
            admin_address,
            scheduler_pb2_grpc.SchedulerServiceStub(channel),
            admin_pb2_grpc.AdminServiceStub(admin_channel),
        )

    yield start
    await Peer.hang_up_all()
    for channel in channels:
        await channel.close()
    for cell in cells:
        await eventually(partial(_is_left, cell))
    for server in servers:
        await server.stop(0)
    for cell in cells:
        cell.check_integrity()
        assert cell.metrics.num_integrity_failures == 0


@pytest.fixture
async def served(serve: Serve) -> Served:
    """A cell with nothing configured."""
    return await serve()


def _is_left(cell: Cell) -> bool:
    """Nobody is connected to it."""
    view = cell.view()
    return not view.num_routers + len(view.replicas)
