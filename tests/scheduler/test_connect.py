"""Routers' streams: what is refused and why, one frame per step, and how a stream ends."""

import asyncio
import math
from typing import Any

import grpc
import numpy as np
import pytest

from protos.grammar import MAX_GRAMMAR_BYTES
from protos.limits import MAX_BAD_WORD_TOKENS, MAX_REPETITION_PENALTY
from protos.quire.v1 import sampling_pb2, scheduler_pb2
from tests.scheduler.conftest import Serve, Served
from tests.scheduler.peers import FakeRank, FakeRouter, column, eventually, ints, token_at

INVALID = scheduler_pb2.REFUSAL_CODE_INVALID
OVERLOADED = scheduler_pb2.REFUSAL_CODE_OVERLOADED


async def until_past(served: Served, num_steps: int) -> None:
    """Returns once the only replica has executed more steps."""
    await eventually(lambda: served.cell.view().replicas[0].num_steps > num_steps)


async def until_known(served: Served, num_sequences: int) -> None:
    """Returns once so many are accepted: what two routers submit is taken in any order, and all but
    the first may come when two plans are on their way, so that they wait for a result."""

    def are_known() -> bool:
        state = served.cell.state()
        return state.num_running + state.num_waiting == num_sequences

    await eventually(are_known)


async def test_a_router_is_welcomed_and_told_how_the_cell_is(served: Served) -> None:
    before = await FakeRouter.connected(served.address, "before")
    assert not before.statuses[0].HasField("model")

    rank = await FakeRank.attached(served.address, device="fake device")

    status = await before.status()
    assert status.model.name == "tiny"
    (replica,) = status.replicas
    assert (replica.epoch, replica.device, [*replica.pids]) == (rank.epoch, "fake device", [1234])
    assert (replica.num_blocks_total, replica.num_blocks_free) == (64, 64)
    after = await FakeRouter.connected(served.address, "after")
    assert after.statuses[0].replicas[0].epoch == rank.epoch
    assert after.incarnation == before.incarnation == served.cell.incarnation


async def test_a_router_of_another_version_is_told_both(served: Served) -> None:
    router = FakeRouter(served.address)
    await router.hello(version=7)
    assert await router.end() == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "protocol_version is 7; this scheduler speaks 1",
    )


@pytest.mark.parametrize("first", [b"\xff\xff\xff", b"", b"\x12\x02\x08\x01"])
async def test_whoever_does_not_begin_with_a_hello_is_malformed(
    served: Served, first: bytes
) -> None:
    router = FakeRouter(served.address)
    await router.write(first)
    assert (await router.end())[0] is grpc.StatusCode.INVALID_ARGUMENT
    await FakeRouter.connected(served.address)


async def test_a_router_that_dials_again_replaces_its_older_stream(served: Served) -> None:
    rank = await FakeRank.attached(served.address)
    older = await FakeRouter.connected(served.address, "same")
    await older.submit(1, [1, 2, 3])
    await rank.plan()
    newer = await FakeRouter.connected(served.address, "same")
    assert (await older.end())[0] is grpc.StatusCode.ABORTED
    await eventually(lambda: served.cell.state().num_running == 0)
    await newer.submit(1, [1, 2, 3])  # the same id: the older sequence is gone
    await eventually(lambda: served.cell.state().num_waiting == 1)


async def test_one_frame_per_router_and_step(served: Served) -> None:
    rank = await FakeRank.attached(served.address)
    left = await FakeRouter.connected(served.address, "left")
    right = await FakeRouter.connected(served.address, "right")
    await left.submit(1, [1] * 3, num_samples=2)
    await right.submit(1, [2] * 5)
    await until_known(served, 3)
    working = asyncio.create_task(rank.work())

    while len(left.finished) < 2 or not right.finished:
        for router, wanted in ((left, 2), (right, 1)):
            if len(router.finished) < wanted:
                frame = await router.frame()
                ids = ints(frame.sequence_id)
                assert len(ids) == len(set(ids)) <= wanted

    assert left.tokens == {i: [token_at(3 + n) for n in range(4)] for i in (1, 2)}
    assert right.tokens == {1: [token_at(5 + n) for n in range(4)]}
    working.cancel()


async def test_logprobs_point_into_the_frame_they_travel_in(served: Served) -> None:
    rank = await FakeRank.attached(served.address)
    routers = [await FakeRouter.connected(served.address, name) for name in ("a", "b")]
    for length, router in enumerate(routers, start=3):
        await router.submit(9, [1] * length, max_tokens=6)
    await until_known(served, 2)
    rows_together = 0
    while served.cell.state().num_running:
        result = rank.execute(await rank.plan())
        tokens = ints(result.token_id)
        rows_together = max(rows_together, len(tokens))
        result.logprobs.row = column(*range(len(tokens)))
        result.logprobs.logprob = floats(*(-token for token in tokens))
        result.logprobs.rank = column(*tokens)
        result.logprobs.num_top = column(*(token % 2 + 1 for token in tokens))
        top = [token + n for token in tokens for n in range(token % 2 + 1)]
        result.logprobs.top_token_id = column(*top)
        result.logprobs.top_logprob = floats(*top)
        num_steps = served.cell.view().replicas[0].num_steps
        await rank.send_result(result)
        await until_past(served, num_steps)

    assert rows_together == 2
    for length, router in enumerate(routers, start=3):
        for n in range(6):
            frame, token = await router.frame(), token_at(length + n)
            top = [token + n for n in range(token % 2 + 1)]
            assert ints(frame.token_id) == ints(frame.logprobs.rank) == [token]
            assert ints(frame.logprobs.row) == [0]
            assert frame.logprobs.logprob == floats(-token)
            assert ints(frame.logprobs.top_token_id) == top
            assert frame.logprobs.top_logprob == floats(*top)


async def test_scores_reach_the_router_whose_prompt_they_are_of(served: Served) -> None:
    rank = await FakeRank.attached(served.address)
    routers = [await FakeRouter.connected(served.address, name) for name in ("a", "b")]
    for length, router in enumerate(routers, start=3):
        await router.submit(
            9, [1] * length, max_tokens=1, score_from=length - 2, **sampling(num_prompt_logprobs=1)
        )
    await eventually(lambda: served.cell.state().num_running == 2)
    while served.cell.state().num_running:
        plan = await rank.plan()
        result = rank.execute(plan)
        starts = [admission.score_from for admission in plan.admit]
        lengths = [admission.num_prompt_tokens - admission.score_from for admission in plan.admit]
        rows = [
            start + n for start, length in zip(starts, lengths, strict=True) for n in range(length)
        ]
        result.scores.slot = column(*(admission.slot for admission in plan.admit))
        result.scores.generation = column(*(admission.generation for admission in plan.admit))
        result.scores.start = column(*starts)
        result.scores.length = column(*lengths)
        result.scores.logprobs.logprob = floats(*(-row for row in rows))
        result.scores.logprobs.rank = column(*rows)
        result.scores.logprobs.num_top = column(*(1 for _ in rows))
        result.scores.logprobs.top_token_id = column(*rows)
        result.scores.logprobs.top_logprob = floats(*rows)
        num_steps = served.cell.view().replicas[0].num_steps
        await rank.send_result(result)
        await until_past(served, num_steps)

    for length, router in enumerate(routers, start=3):
        frame = await router.frame()
        positions = [length - 2, length - 1]
        assert (ints(frame.sequence_id), ints(frame.token_id)) == ([9], [token_at(length)])
        assert ints(frame.scores.sequence_id) == [9]
        assert (ints(frame.scores.start), ints(frame.scores.length)) == ([length - 2], [2])
        assert frame.scores.logprobs.row == b""
        assert frame.scores.logprobs.logprob == floats(*(-row for row in positions))
        assert ints(frame.scores.logprobs.rank) == positions
        assert ints(frame.scores.logprobs.top_token_id) == positions


def sampling(**fields: Any) -> dict[str, Any]:
    return {
        "sampling": sampling_pb2.SamplingParams(**{"top_p": 1, "repetition_penalty": 1} | fields)
    }


def floats(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"token_id": b"abc"}, "token_id", "token_id has 3 bytes"),
        ({"token_id": b""}, "token_id", "token_id is empty"),
        ({"token_id": column(1, 1000, 2)}, "token_id", "token_id contains 1000; ids of this model"),
        ({"token_id": column(1, -5, 2)}, "token_id", "token_id contains -5"),
        (
            {"num_prompt_tokens": 0},
            "num_prompt_tokens",
            "is 0; it must be at least 1 and at most 3",
        ),
        (
            {"num_prompt_tokens": 4},
            "num_prompt_tokens",
            "is 4; it must be at least 1 and at most 3",
        ),
        ({"num_samples": 0}, "num_samples", "num_samples is 0; it must be at least 1"),
        ({"num_samples": 129}, "num_samples", "is 129; it must be at least 1 and at most 128"),
        ({"deadline_s": math.inf}, "deadline_s", "deadline_s is inf"),
        ({"tenant": "x" * 257}, "tenant", "tenant has 257 characters"),
        ({"deadline_s": -1.0}, "deadline_s", "at least 0"),
        ({"sequence_id": 2**32 - 1, "num_samples": 2}, "sequence_id", "sequence_id is 4294967296"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens is 0; it must be at least 1"),
        ({"max_tokens": 2**32 - 1}, "max_tokens", "max_tokens is 4294967295; it must be"),
        ({"max_tokens": 126}, "max_tokens", "129 together; this model accepts at most 128"),
        (
            {"num_prompt_tokens": 1, "max_tokens": 1},
            "token_id",
            "2 output tokens were given; max_tokens is 1",
        ),
        ({"adapter": "poet"}, "adapter", "adapter is 'poet'"),
        ({"cache_salt": "x" * 257}, "cache_salt", "cache_salt has 257 characters"),
        ({"request_id": "x" * 257}, "request_id", "request_id has 257 characters"),
        (
            {"priority": 1},
            "priority",
            "priority is 1; this server serves first come, first served, so it must be 0",
        ),
        (sampling(temperature=-1), "temperature", "temperature is -1; it must be at least 0 and"),
        (sampling(temperature=math.nan), "temperature", "temperature is nan"),
        (sampling(temperature=2.5), "temperature", "temperature is 2.5; it must be"),
        ({"deadline_s": -1.0}, "deadline_s", "deadline_s is -1; it must be at least 0"),
        (sampling(top_k=2**31), "top_k", "top_k is 2147483648"),
        (sampling(top_p=0), "top_p", "top_p is 0; it must be above 0 and at most 1"),
        (sampling(top_p=1.5), "top_p", "top_p is 1.5"),
        (sampling(top_p=math.nan), "top_p", "top_p is nan"),
        (sampling(min_p=-0.5), "min_p", "min_p is -0.5"),
        (sampling(min_p=math.nan), "min_p", "min_p is nan"),
        (sampling(repetition_penalty=0), "repetition_penalty", "is 0; it must be above 0"),
        (sampling(repetition_penalty=101), "repetition_penalty", "above 0 and at most 100"),
        (sampling(repetition_penalty=math.inf), "repetition_penalty", "is inf"),
        (sampling(repetition_penalty=math.nan), "repetition_penalty", "is nan"),
        (sampling(presence_penalty=2.5), "presence_penalty", "presence_penalty is 2.5"),
        (sampling(frequency_penalty=-math.inf), "frequency_penalty", "frequency_penalty is -inf"),
        (
            sampling(min_tokens=5),
            "min_tokens",
            "min_tokens is 5; it must be at least 0 and at most 4",
        ),
        (sampling(num_logprobs=21), "num_logprobs", "num_logprobs is 21"),
        (sampling(num_prompt_logprobs=21), "num_prompt_logprobs", "num_prompt_logprobs is 21"),
        (sampling(num_prompt_logprobs=1), "score_from", "score_from is 0; it must be at least 1"),
        (
            {"score_from": 4} | sampling(num_prompt_logprobs=1),
            "score_from",
            "score_from is 4; it must be at least 1 and at most 3",
        ),
        (sampling(stop_token_ids=[3, 1000]), "stop_token_ids", "stop_token_ids contains 1000"),
        (sampling(stop_token_ids=[2**32 - 1]), "stop_token_ids", "stop_token_ids contains -1"),
        (
            sampling(stop_token_ids=[1] * 161),
            "stop_token_ids",
            "stop_token_ids has 161 entries; it may have at most 160",
        ),
        (
            sampling(logit_bias_token_id=column(*[1] * 1025), logit_bias=floats(*[1] * 1025)),
            "logit_bias_token_id",
            "logit_bias_token_id has 1025 entries; it may have at most 1024",
        ),
        (
            sampling(logit_bias_token_id=column(1000), logit_bias=floats(1)),
            "logit_bias_token_id",
            "logit_bias_token_id contains 1000",
        ),
        (
            sampling(logit_bias_token_id=column(1), logit_bias=floats(1, 2)),
            "logit_bias",
            "logit_bias has 8 bytes",
        ),
        (
            sampling(logit_bias_token_id=column(1, 2), logit_bias=floats(1, math.nan)),
            "logit_bias",
            "logit_bias is nan",
        ),
        (
            sampling(logit_bias_token_id=column(1), logit_bias=floats(-101)),
            "logit_bias",
            "logit_bias is -101",
        ),
        (sampling(logit_bias_token_id=b"a", logit_bias=b"a"), "logit_bias_token_id", "has 1 bytes"),
        (
            sampling(grammar="x" * (MAX_GRAMMAR_BYTES + 1), stop_token_ids=[2]),
            "grammar",
            f"grammar is {MAX_GRAMMAR_BYTES + 1}; it must be at least 0 and at most",
        ),
        (sampling(grammar="start: /a/"), "stop_token_ids", "with a grammar it must have at least"),
        (sampling(allowed_token_id=b"abc"), "allowed_token_id", "has 3 bytes"),
        (sampling(allowed_token_id=column(1000)), "allowed_token_id", "contains 1000"),
        (
            sampling(bad_word_token_id=column(-1), bad_word_length=column(1)),
            "bad_word_token_id",
            "contains -1",
        ),
        (
            sampling(bad_word_token_id=column(1, 2), bad_word_length=column(2, 0)),
            "bad_word_length",
            "bad_word_length is 0; it must be at least 1",
        ),
        (
            sampling(bad_word_token_id=column(1, 2), bad_word_length=column(3)),
            "bad_word_length",
            "has 2 entries; bad_word_length counts 3",
        ),
        (
            sampling(bad_word_token_id=column(1, 2), bad_word_length=column(2**31 - 1) * 3),
            "bad_word_length",
            "has 2 entries; bad_word_length counts 6442450941",
        ),
        (sampling(bad_word_length=column(-1)), "bad_word_length", "bad_word_length is -1; it must"),
        (
            sampling(
                bad_word_token_id=column(1) * (MAX_BAD_WORD_TOKENS + 1),
                bad_word_length=column(MAX_BAD_WORD_TOKENS + 1),
            ),
            "bad_word_token_id",
            f"has {MAX_BAD_WORD_TOKENS + 1} entries; it may have at most {MAX_BAD_WORD_TOKENS}",
        ),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, str) else "",
)
async def test_a_bad_submit_is_refused_with_field_limit_and_value(
    served: Served, fields: dict[str, Any], field: str, message: str
) -> None:
    rank = await FakeRank.attached(served.address)
    router = await FakeRouter.connected(served.address)
    submit: dict[str, Any] = {"sequence_id": 5, "tokens": [1, 2, 3]}
    await router.submit(**submit | fields)

    refusal = await router.refusal()

    assert (refusal.code, refusal.field) == (INVALID, field), refusal.message
    assert message in refusal.message
    assert refusal.sequence_id == fields.get("sequence_id", 5)
    await router.submit(5, [1, 2, 3], max_tokens=1)
    await rank.answer(await rank.plan())
    await router.until_finished(5)


async def test_every_value_at_its_limit_is_accepted(serve: Serve) -> None:
    served = await serve(policy="priority")
    await FakeRank.attached(served.address)
    router = await FakeRouter.connected(served.address)
    limits = sampling(
        temperature=2,
        top_k=2**31 - 1,
        top_p=1,
        min_p=1,
        presence_penalty=-2,
        frequency_penalty=2,
        min_tokens=125,
        num_logprobs=20,
        stop_token_ids=[0, 999],
        logit_bias_token_id=column(0, 999),
        logit_bias=floats(-100, 100),
        grammar="x" * MAX_GRAMMAR_BYTES,
        allowed_token_id=column(0, 999),
        repetition_penalty=MAX_REPETITION_PENALTY,
        bad_word_token_id=column(999) * MAX_BAD_WORD_TOKENS,
        bad_word_length=column(1, MAX_BAD_WORD_TOKENS - 1),
    )
    await router.submit(
        2**32 - 1, [0, 999, 1], max_tokens=125, seed=2**64 - 1, priority=-(2**31), **limits
    )
    await eventually(lambda: served.cell.state().num_running == 1)


async def test_a_priority_that_was_accepted_before_a_restart_ends_nothing(served: Served) -> None:
    """The policy may have changed meanwhile."""
    rank = await FakeRank.attached(served.address)
    router = await FakeRouter.connected(served.address)
    await router.submit(5, [1, 2, 3], max_tokens=1, priority=1, resubmitted=True)
    await rank.answer(await rank.plan())
    await router.until_finished(5)


async def test_a_router_may_submit_before_any_worker_is_there(served: Served) -> None:
    """As after a restart of the scheduler: what is accepted waits, and is checked in the end."""
    router = await FakeRouter.connected(served.address)
    await router.submit(1, [1000])
    await router.submit(2, [1, 2, token_at(2)], num_prompt_tokens=2, max_tokens=2)
    rank = await FakeRank.attached(served.address)
    working = asyncio.create_task(rank.work())

    refusal = await router.refusal()
    assert (refusal.sequence_id, refusal.field) == (1, "token_id")
    await router.until_finished(2)
    assert router.tokens == {2: [token_at(3)]}
    assert router.finished[2].num_output_tokens == 2
    working.cancel()


async def test_a_used_sequence_id_is_refused(served: Served) -> None:
    await FakeRank.attached(served.address)
    router = await FakeRouter.connected(served.address)
    await router.submit(1, [1, 2, 3])
    await router.submit(1, [1, 2, 3])
    refusal = await router.refusal()
    assert (refusal.code, refusal.field) == (INVALID, "sequence_id")


async def test_an_abort_ends_the_sequence_once(served: Served) -> None:
    rank = await FakeRank.attached(served.address)
    router = await FakeRouter.connected(served.address)
    await router.submit(1, [1, 2, 3], num_samples=2)
    await rank.plan()
    await router.abort(1, 2, 77)
    await router.abort(1)
    await router.until_finished(1, 2)
    assert {end.reason for end in router.finished.values()} == {3}
    assert served.cell.state().num_running == 0


async def test_a_stop_string_ends_the_sequence_where_the_router_says(served: Served) -> None:
    rank = await FakeRank.attached(served.address)
    router = await FakeRouter.connected(served.address)
    await router.submit(1, [1, 2, 3], max_tokens=100)
    for _ in range(3):
        await rank.answer(await rank.plan())
        await router.frame()
    await router.finish(1, 2)
    await router.until_finished(1)
    end = router.finished[1]
    assert (end.reason, end.num_output_tokens) == (1, 2)


async def test_a_router_that_leaves_takes_its_sequences_along(served: Served) -> None:
    rank = await FakeRank.attached(served.address)
    router = await FakeRouter.connected(served.address, "leaves")
    stays = await FakeRouter.connected(served.address, "stays")
    await router.submit(1, [1, 2, 3])
    await stays.submit(1, [4, 5, 6])
    await until_known(served, 2)

    await router.hang_up()

    await until_known(served, 1)
    working = asyncio.create_task(rank.work())
    await stays.until_finished(1)
    assert stays.tokens == {1: [token_at(3 + n) for n in range(4)]}
    await eventually(lambda: served.cell.state().num_blocks_used == 0)
    working.cancel()


async def test_a_router_that_does_not_read_is_cut_off_alone(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduler.service.ROUTER_OUTBOX_BYTES", 200_000)
    rank = await FakeRank.attached(served.address)
    slow = await FakeRouter.connected(served.address, "slow")
    quick = await FakeRouter.connected(served.address, "quick")
    await slow.submit(1, [1, 2, 3])
    await eventually(lambda: served.cell.state().num_running == 1)

    while served.cell.view().num_routers == 2:
        for _ in range(100):
            served.cell.tick()  # a status for each router, as once a second
        for _ in range(100):
            await quick.status()

    code, details = await slow.end()
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "at most 200000" in details
    assert served.cell.state().num_running == 0
    working = asyncio.create_task(rank.work())
    await quick.submit(1, [1, 2, 3], max_tokens=1)
    await quick.until_finished(1)
    working.cancel()


async def test_a_request_past_its_deadline_ends_as_a_timeout(served: Served) -> None:
    rank = await FakeRank.attached(served.address)
    router = await FakeRouter.connected(served.address)
    await router.submit(1, [1, 2], max_tokens=100, deadline_s=0.2)
    await router.submit(2, [1, 3], max_tokens=4)
    await rank.plan()
    await router.until_finished(1)
    end = router.finished[1]
    assert end.reason == sampling_pb2.FINISH_REASON_TIMEOUT
    assert end.message == "timeout is 0.2 s; it passed before the request was complete"
    assert 2 not in router.finished


async def test_deadlines_are_kept_one_after_another_while_no_worker_is_there(
    serve: Serve,
) -> None:
    served = await serve()
    rank = await FakeRank.attached(served.address)
    router = await FakeRouter.connected(served.address)
    await rank.leave()
    await rank.end()
    for sequence_id, seconds in ((1, 0.3), (2, 0.1), (3, 0.2)):
        await router.submit(sequence_id, [1, 2], deadline_s=seconds)
    await router.until_finished(1, 2, 3)
    assert list(router.finished) == [2, 3, 1]
    assert "before the request's turn came" in router.finished[1].message


async def test_a_full_queue_says_when_to_come_again_and_takes_what_was_accepted_before(
    serve: Serve,
) -> None:
    served = await serve(max_queued=1)
    rank = await FakeRank.attached(served.address)
    router = await FakeRouter.connected(served.address)
    await rank.leave()
    await rank.end()
    await router.submit(1, [1, 2])
    await router.submit(2, [1, 2])
    refusal = await router.refusal()
    assert (refusal.sequence_id, refusal.code) == (2, OVERLOADED)
    assert refusal.retry_after_s > 0
    await router.submit(3, [1, 2], resubmitted=True)
    await router.submit(4, [1, 2, 3], num_prompt_tokens=2)
    await eventually(lambda: served.cell.state().num_waiting == 3)


async def test_tenants_take_turns(serve: Serve) -> None:
    served = await serve(max_num_seqs=1)
    rank = await FakeRank.attached(served.address)
    router = await FakeRouter.connected(served.address)
    for sequence_id in (1, 2, 3):
        await router.submit(sequence_id, [1, 2], tenant="flood")
    await router.submit(4, [1, 2], tenant="other")
    await until_known(served, 4)
    working = asyncio.create_task(rank.work())
    await router.until_finished(1, 2, 3, 4)
    working.cancel()
    assert list(router.finished).index(4) < 3
