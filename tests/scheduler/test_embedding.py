"""Vectors over real streams: to the router that asked, and nothing that the model does not do."""

import asyncio

import grpc
import pytest

from protos.quire.v1 import sampling_pb2, scheduler_pb2, worker_pb2
from tests.scheduler.conftest import Served
from tests.scheduler.peers import MODEL, FakeRank, FakeRouter, column, vector_of


def card(pooling: worker_pb2.Pooling, *, is_encoder: bool = False) -> worker_pb2.ModelCard:
    """The model, which has vectors of two numbers."""
    model = worker_pb2.ModelCard()
    model.CopyFrom(MODEL)
    model.pooling = pooling
    model.embedding_dim = 2
    model.is_encoder = is_encoder
    return model


async def test_each_router_gets_the_vectors_of_its_prompts(served: Served) -> None:
    encoder = card(worker_pb2.POOLING_MEAN, is_encoder=True)
    rank = await FakeRank.attached(served.address, model=encoder, num_blocks=0)
    left = await FakeRouter.connected(served.address, "left")
    right = await FakeRouter.connected(served.address, "right")
    assert left.statuses[0].model == encoder
    await left.submit(1, [1, 2, 3], max_tokens=0)
    await right.submit(1, [4] * 7, max_tokens=0)
    working = asyncio.create_task(rank.work())
    await left.until_finished(1)
    await right.until_finished(1)
    assert left.finished[1].vector == vector_of(column(1, 2, 3))
    assert right.finished[1].vector == vector_of(column(*[4] * 7))
    assert left.finished[1].reason == sampling_pb2.FINISH_REASON_STOP
    assert not left.tokens
    working.cancel()


@pytest.mark.parametrize(
    ("model", "fields", "field", "says"),
    [
        (MODEL, {"max_tokens": 0}, "max_tokens", "this model embeds nothing"),
        (card(worker_pb2.POOLING_CLS, is_encoder=True), {}, "max_tokens", "only embeds"),
        (
            card(worker_pb2.POOLING_LAST),
            {"max_tokens": 0, "num_samples": 2},
            "num_samples",
            "one vector",
        ),
        (
            card(worker_pb2.POOLING_LAST),
            {"max_tokens": 0, "num_prompt_tokens": 2},
            "token_id",
            "1 output tokens were given",
        ),
    ],
)
async def test_what_the_model_does_not_do_is_refused(
    served: Served, model: worker_pb2.ModelCard, fields: dict[str, int], field: str, says: str
) -> None:
    num_blocks = 0 if model.is_encoder else 64
    await FakeRank.attached(served.address, model=model, num_blocks=num_blocks)
    router = await FakeRouter.connected(served.address)
    await router.submit(1, [1, 2, 3], **fields)
    refusal = await router.refusal()
    assert (refusal.code, refusal.field) == (scheduler_pb2.REFUSAL_CODE_INVALID, field)
    assert says in refusal.message


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (worker_pb2.VectorColumns(value=b"\0" * 8), "0 vectors have 2 values"),
        (
            worker_pb2.VectorColumns(
                slot=column(0), generation=column(1), finish=b"\2", value=b"\0" * 8
            ),
            "neither stop nor error",
        ),
        (
            worker_pb2.VectorColumns(
                slot=column(9), generation=column(1), finish=b"\1", value=b"\0" * 8
            ),
            "not below 8",
        ),
        (
            worker_pb2.VectorColumns(
                slot=column(0, 0), generation=column(1, 1), finish=b"\1\1", value=b"\0" * 16
            ),
            "twice",
        ),
        (worker_pb2.VectorColumns(slot=column(0), finish=b"\1"), "differ in length"),
    ],
)
async def test_vectors_that_make_no_sense_end_the_stream(
    served: Served, columns: worker_pb2.VectorColumns, says: str
) -> None:
    model = card(worker_pb2.POOLING_LAST)
    rank = await FakeRank.attached(served.address, model=model)
    router = await FakeRouter.connected(served.address)
    await router.submit(1, [1, 2, 3], max_tokens=0)
    await rank.answer(await rank.plan(), vectors=columns)
    code, details = await rank.end()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert says in details


@pytest.mark.parametrize(
    ("model", "num_blocks", "says"),
    [
        (card(worker_pb2.POOLING_UNSPECIFIED, is_encoder=True), 0, "model.pooling is 0"),
        (card(worker_pb2.POOLING_MEAN, is_encoder=True), 64, "num_blocks is 64"),
        (card(worker_pb2.POOLING_LAST), 0, "num_blocks is 0"),
        (card(worker_pb2.POOLING_UNSPECIFIED), 64, "model.embedding_dim is 2"),
    ],
)
async def test_a_hello_that_makes_no_sense_is_refused(
    served: Served, model: worker_pb2.ModelCard, num_blocks: int, says: str
) -> None:
    rank = await FakeRank.dialled(served.address, model=model, num_blocks=num_blocks)
    code, details = await rank.end()
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert says in details
