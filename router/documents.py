"""The OpenAPI document and its page, as they are sent.

Making them takes a tenth of a second, so that is done in a thread, and once for what they tell.
"""

import asyncio
import json

from router.backend import Backend
from router.docs_page import page
from router.endpoints import Endpoint
from router.openapi import document


class Documents:
    """Made when somebody asks; made anew when the model's length has become known."""

    def __init__(self, endpoints: tuple[Endpoint, ...], backend: Backend) -> None:
        self._endpoints = endpoints
        self._backend = backend
        self._lock = asyncio.Lock()
        self._max_model_len: int | None = None
        self._written: tuple[bytes, bytes] | None = None

    async def openapi(self) -> bytes:
        """The document, as JSON."""
        return (await self._made())[0]

    async def page(self) -> bytes:
        """The page, as HTML."""
        return (await self._made())[1]

    async def _made(self) -> tuple[bytes, bytes]:
        async with self._lock:
            max_model_len = self._backend.engine.cell.max_model_len
            if self._written is None or self._max_model_len != max_model_len:
                self._written = await self._backend.in_thread(self._write, max_model_len)
                self._max_model_len = max_model_len
            return self._written

    def _write(self, max_model_len: int | None) -> tuple[bytes, bytes]:
        backend = self._backend
        told = document(
            self._endpoints,
            backend.version,
            backend.model,
            max_model_len,
            needs_key=bool(backend.keys),
        )
        return json.dumps(told, ensure_ascii=False).encode(), page(told).encode()
