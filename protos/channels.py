"""Connections within a cell, as its `Trust` has them: dialled, listened on, and who may call."""

import hashlib
import hmac
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

import grpc
import grpc.aio

from protos import flags
from protos.trust import TOKEN_KEY, TOKEN_VARIABLE, Trust, is_unix

KEEPALIVE: tuple[tuple[str, int], ...] = (
    # another side whose machine is gone is noticed within ten seconds, whatever is on its way
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),  # whose default, a minute, is what counts otherwise
    ("grpc.http2.max_pings_without_data", 0),
)
"""Of whoever dials, and of whoever listens."""
LISTEN_KEEPALIVE: tuple[tuple[str, int], ...] = (
    *KEEPALIVE,
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1_000),
)
"""Of whoever listens: it bears with the pings of all of them."""

_OPEN_SERVICES = ("/grpc.health.v1.Health/",)
"""What probes ask, of any server."""

_MAX_NAMED = 64
"""Strangers' addresses, beyond which no more are named."""

_log = logging.getLogger(__name__)

_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"

_REFUSAL = (
    "the cluster token is missing or wrong; start this process with the scheduler's "
    f"{flags.CLUSTER_TOKEN_FILE.option} or {TOKEN_VARIABLE}"
)


def dial(trust: Trust, address: str, options: Sequence[tuple[str, Any]]) -> grpc.aio.Channel:
    """To HOST:PORT or unix:PATH. What a unix socket carries leaves no machine, and is plain.

    Each call over it has to bring `trust.metadata` along.
    """
    if trust.certificates is None or is_unix(address):
        return grpc.aio.insecure_channel(address, options=options)
    held = trust.certificates
    credentials = grpc.ssl_channel_credentials(held.authority, held.key, held.chain)
    return grpc.aio.secure_channel(address, credentials, options=options)


def bind(trust: Trust, server: grpc.aio.Server, address: str) -> int:
    """Listens; returns the port. Raises RuntimeError if it cannot be had."""
    if is_unix(address):
        before = os.umask(0o177)  # its user's alone, from its first moment
        try:
            return server.add_insecure_port(address)
        finally:
            os.umask(before)
    if trust.certificates is None:
        return server.add_insecure_port(address)
    held = trust.certificates
    credentials = grpc.ssl_server_credentials(
        [(held.key, held.chain)], held.authority, require_client_auth=True
    )
    return server.add_secure_port(address, credentials)


def interceptors(trust: Trust) -> tuple[grpc.aio.ServerInterceptor, ...]:
    """Of a server that lets in who says a token, where there is one."""
    return (_TokenInterceptor(trust.tokens),) if trust.tokens else ()


class _TokenInterceptor(grpc.aio.ServerInterceptor):
    """Ends calls without the token before their handlers learn of them."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._digests = [_digest(token) for token in tokens]
        self._strangers: set[str] = set()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler:
        """See grpc.aio."""
        if handler_call_details.method.startswith(_OPEN_SERVICES):
            return await continuation(handler_call_details)
        said = dict(handler_call_details.invocation_metadata or ()).get(TOKEN_KEY)
        given = _digest(said if isinstance(said, str) else "")
        # All are compared, so that the time says nothing of which one it was.
        if sum([hmac.compare_digest(given, digest) for digest in self._digests]):
            return await continuation(handler_call_details)
        return grpc.stream_stream_rpc_method_handler(self._refuse)

    async def _refuse(
        self, _requests: object, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> None:
        self._warn_of(_host(str(context.peer())))
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, _REFUSAL)

    def _warn_of(self, host: str) -> None:
        """Once of each: they dial again and again."""
        if host in self._strangers or len(self._strangers) > _MAX_NAMED:
            return
        self._strangers.add(host)
        if len(self._strangers) > _MAX_NAMED:
            _log.warning("more than %d addresses are refused; no more are named", _MAX_NAMED)
        else:
            _log.warning("refused a call from %s: its cluster token is missing or wrong", host)


def _host(peer: str) -> str:
    """Of a peer as gRPC names it, "ipv4:10.0.0.1:34567"; the port is another with each dial."""
    kind, _, address = peer.partition(":")
    return "a unix socket" if kind == "unix" else address.rpartition(":")[0]


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
