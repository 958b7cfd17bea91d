"""A router that serves the tiny model, before a fake scheduler; all in the test's process."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from router.server import Router, listening
from router.settings import Settings
from tests.gateway import tiny_model
from tests.router.fake_scheduler import FakeScheduler, fake_scheduler

StartRouter = Callable[..., AbstractAsyncContextManager[Router]]


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as a model comes in."""
    return tiny_model.build(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def settings(model_dir: Path) -> Callable[..., Settings]:
    """Settings on free ports; any may be given."""

    def build(**given: Any) -> Settings:
        defaults: dict[str, Any] = {
            "model": model_dir,
            "served_model_name": None,
            "chat_template": None,
            "tool_call_parser": "auto",
            "reasoning_parser": "auto",
            "host": "127.0.0.1",
            "port": 0,
            "uds": None,
            "grpc_listen": "127.0.0.1:0",
            "max_body_bytes": 1 << 20,
            "max_in_flight": 256,
            "drain_timeout_s": 5.0,
            "scheduler_timeout_s": 20.0,
            "seed": None,
        }
        if key := given.pop("api_key", None):
            given["keys"] = {"default": key}
        if keys := given.pop("keys", None):
            given["read_keys"] = lambda: {name: (key,) for name, key in keys.items()}
        return Settings(**(defaults | given))

    return build


@pytest.fixture
async def served() -> AsyncIterator[tuple[FakeScheduler, str]]:
    """A scheduler and its address."""
    async with fake_scheduler() as pair:
        yield pair


@pytest.fixture
async def scheduler(served: tuple[FakeScheduler, str]) -> FakeScheduler:
    """The scheduler that the router is connected to."""
    return served[0]


@pytest.fixture
def start_router(
    served: tuple[FakeScheduler, str], settings: Callable[..., Settings]
) -> StartRouter:
    """Starts a router with some settings, and waits until it is ready."""

    @asynccontextmanager
    async def start(*, until_ready: bool = True, **given: Any) -> AsyncIterator[Router]:
        async with listening(settings(**({"scheduler": served[1]} | given))) as router:
            if until_ready:
                await until(router.backend.readiness.is_ready)
            yield router

    return start


@pytest.fixture
async def router(start_router: StartRouter) -> AsyncIterator[Router]:
    """A router, ready."""
    async with start_router() as router:
        yield router


@pytest.fixture
async def http(router: Router) -> AsyncIterator[httpx.AsyncClient]:
    """A client of it."""
    async with httpx.AsyncClient(base_url=router.address, timeout=20) as client:
        yield client


@pytest.fixture
async def client(router: Router) -> AsyncIterator[openai.AsyncOpenAI]:
    """The official client of it."""
    async with openai.AsyncOpenAI(
        base_url=f"{router.address}/v1", api_key="none", max_retries=0, timeout=20
    ) as client:
        yield client


async def until(condition: Callable[[], bool], *, timeout_s: float = 20.0) -> None:
    """Returns when the condition holds; what it looks at is in this process."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - what it looks at has no event
            await asyncio.sleep(0.002)


Until = Callable[..., Awaitable[None]]


@pytest.fixture(name="until")
def until_fixture() -> Until:
    """`until`, for tests."""
    return until
