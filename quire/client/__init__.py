"""Clients of a router over gRPC: `AsyncClient` for an event loop, `Client` for everybody else."""

from quire.client.aio import AsyncClient, AsyncStream
from quire.client.blocking import Client, Stream
from quire.client.tls import Tls

__all__ = ["AsyncClient", "AsyncStream", "Client", "Stream", "Tls"]
