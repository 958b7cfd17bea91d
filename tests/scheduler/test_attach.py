"""Workers' streams: epochs, plans ahead of results, and every way of losing a worker."""

import asyncio
import logging

import grpc
import numpy as np
import pytest

from protos import flags
from protos.quire.v1 import sampling_pb2, worker_pb2
from scheduler.core.events import Request
from tests.scheduler.conftest import Serve, Served
from tests.scheduler.peers import (
    GREEDY,
    MODEL,
    FakeRank,
    FakeRouter,
    column,
    eventually,
    ints,
    token_at,
)


async def until_gathered(served: Served, num_ranks: int) -> None:
    """Returns once the ranks that have dialled are here: streams are served in any order."""
    gathering = served.cell._attachments._gathering
    await eventually(lambda: len(gathering.get("replica", ())) == num_ranks)


async def test_submit_becomes_an_admission_in_full(served: Served) -> None:
    rank = await FakeRank.attached(served.address)
    router = await FakeRouter.connected(served.address)
    await router.submit(7, [11, 12, 13], max_tokens=5, seed=2**64 - 1)

    plan = await rank.plan()

    assert (plan.epoch, plan.step_id) == (rank.epoch, 1)
    (admission,) = plan.admit
    assert ints(admission.token_id) == [11, 12, 13]
    assert admission.num_prompt_tokens == 3
    assert admission.max_total_tokens == 8
    assert admission.num_computed == 0
    assert admission.seed == 2**64 - 1
    assert admission.sampling.top_p == 1.0
    assert len(ints(admission.block)) + len(ints(plan.append_block)) == 1
    assert ints(plan.chunk_slot) == [admission.slot]
    assert ints(plan.chunk_length) == [3]


async def test_two_plans_are_sent_before_the_first_result(served: Served) -> None:
    rank = await FakeRank.attached(served.address)
    router = await FakeRouter.connected(served.address)
    await router.submit(1, [1, 2, 3])

    first, second = await rank.plan(), await rank.plan()

    assert (first.step_id, second.step_id) == (1, 2)
    (attachment,) = served.cell.view().replicas
    assert attachment.num_steps == 0
    await rank.answer(first)
    assert (await rank.plan()).step_id == 3
    await router.frame()
    assert router.tokens == {1: [token_at(3)]}


def request(sequence_id: int, length: int) -> Request:
    return Request(
        router=1,
        sequence_id=sequence_id,
        token_ids=np.arange(length, dtype=np.int32),
        num_prompt_tokens=length,
        max_tokens=1,
        seed=0,
        sampling=GREEDY,
    )


async def test_requests_that_are_here_together_are_admitted_together(served: Served) -> None:
    rank = await FakeRank.attached(served.address)
    served.cell.submit(request(1, length=3))
    served.cell.submit(request(2, length=5))
    plan = await rank.plan()
    assert [len(ints(admission.token_id)) for admission in plan.admit] == [3, 5]


async def test_the_rest_of_a_burst_is_admitted_together(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduler.feeding.BURST_S", 0.3)
    rank = await FakeRank.attached(served.address)
    served.cell.submit(request(1, length=3))
    assert len((await rank.plan()).admit) == 1
    for sequence_id in (2, 3, 4):
        served.cell.submit(request(sequence_id, length=5))
        await asyncio.sleep(0)  # they arrive one by one
    assert len((await rank.plan()).admit) == 3


async def in_a_long_step(served: Served) -> tuple[FakeRank, worker_pb2.BatchPlan]:
    """A rank and the plan that it executes, while another request has come; steps of its replica
    are known to take long."""
    rank = await FakeRank.attached(served.address)
    router = await FakeRouter.connected(served.address)
    await router.submit(1, [1, 2, 3])
    first, second = await rank.plan(), await rank.plan()
    (attachment,) = served.cell._attachments
    for num_tokens in range(1, 9):
        attachment.pace.observe(1000.0, num_tokens)
    await rank.answer(first)
    await router.frame()
    served.cell.submit(request(2, length=5))
    return rank, second


async def test_who_comes_during_a_long_step_is_part_of_the_next(served: Served) -> None:
    await in_a_long_step(served)
    (attachment,) = served.cell._attachments
    assert attachment.holds_back is not None
    assert len(attachment.in_flight) == 1


async def test_a_result_that_comes_early_ends_the_wait(served: Served) -> None:
    rank, executing = await in_a_long_step(served)
    await rank.answer(executing)
    assert len((await rank.plan()).admit) == 1


async def test_a_whole_answer_and_its_one_end(served: Served) -> None:
    rank = await FakeRank.attached(served.address)
    router = await FakeRouter.connected(served.address)
    working = asyncio.create_task(rank.work())
    await router.submit(1, [1, 2, 3], max_tokens=20)
    await router.until_finished(1)

    assert router.tokens == {1: [token_at(position) for position in range(3, 23)]}
    end = router.finished[1]
    assert (end.reason, end.num_prompt_tokens, end.num_output_tokens) == (2, 3, 20)
    working.cancel()


async def test_every_rank_receives_the_same_bytes(served: Served) -> None:
    ranks = [
        await FakeRank.dialled(served.address, rank=index, world_size=2, worker_id=f"w{index}")
        for index in (1, 0)
    ]
    epochs = {await rank.welcome() for rank in ranks}
    assert len(epochs) == 1
    router = await FakeRouter.connected(served.address)
    await router.submit(1, [1, 2, 3])

    first, second = [[await rank.read(), await rank.read()] for rank in ranks]

    assert first == second
    assert len(first) == len(set(first))


async def test_a_replica_is_up_only_when_all_its_ranks_are(served: Served) -> None:
    one = await FakeRank.dialled(served.address, rank=0, world_size=2)
    await until_gathered(served, 1)
    again = await FakeRank.dialled(served.address, rank=0, world_size=2)
    assert await one.end() == (grpc.StatusCode.ABORTED, "this rank has dialled again")
    assert not served.cell.view().replicas
    await FakeRank.attached(served.address, rank=1, world_size=2)
    await again.welcome()
    assert len(served.cell.view().replicas) == 1


async def test_a_rank_that_leaves_before_the_others_come_is_forgotten(served: Served) -> None:
    gone = await FakeRank.dialled(served.address, rank=0, world_size=2)
    await until_gathered(served, 1)
    await gone.hang_up()
    await eventually(lambda: not served.cell._attachments._gathering)


async def test_only_rank_zero_answers(served: Served) -> None:
    ranks = [await FakeRank.dialled(served.address, rank=index, world_size=2) for index in range(2)]
    for rank in ranks:
        await rank.welcome()
    router = await FakeRouter.connected(served.address)
    await router.submit(1, [1, 2, 3], max_tokens=1)
    plan = await ranks[0].plan()

    result = ranks[1].execute(plan)
    await ranks[1].send_result(result)
    await eventually(lambda: served.cell.metrics.num_stale_results == 1)
    assert not router.tokens
    await ranks[0].answer(plan)
    await router.until_finished(1)
    assert router.tokens == {1: [token_at(3)]}


async def test_sequences_of_a_lost_replica_go_on_elsewhere(served: Served) -> None:
    doomed = await FakeRank.attached(served.address, replica_id="a", worker_id="a")
    router = await FakeRouter.connected(served.address)
    await router.submit(1, [1, 2, 3], max_tokens=6)
    for _ in range(2):
        await doomed.answer(await doomed.plan())
        await router.frame()
    heir = await FakeRank.attached(served.address, replica_id="b", worker_id="b")

    await doomed.hang_up()

    plan = await heir.plan()
    assert plan.epoch == heir.epoch > doomed.epoch
    (admission,) = plan.admit
    assert ints(admission.token_id) == [1, 2, 3, token_at(3), token_at(4)]
    assert (admission.num_prompt_tokens, admission.max_total_tokens) == (3, 9)
    await heir.answer(plan)
    working = asyncio.create_task(heir.work())
    await router.until_finished(1)
    assert router.tokens == {1: [token_at(position) for position in range(3, 9)]}
    assert served.cell.state().num_replays == 1
    working.cancel()


async def test_what_a_lost_replica_ran_is_told_in_one_line(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    rank = await FakeRank.attached(served.address)
    router = await FakeRouter.connected(served.address)
    await router.submit(1, [1, 2, 3], num_samples=3)
    await rank.plan()
    await rank.hang_up()
    await eventually(lambda: not served.cell.view().replicas)
    lost = [line for line in caplog.messages if "running" in line]
    assert lost == [
        "replica 'replica' had 3 running sequence(s); what has not ended goes on elsewhere"
    ]


@pytest.mark.parametrize("accord", ["leaves", "dials again"])
async def test_who_leaves_of_its_own_accord_blames_nobody(serve: Serve, accord: str) -> None:
    served = await serve(max_losses=1)
    first = await FakeRank.attached(served.address)
    router = await FakeRouter.connected(served.address)
    await router.submit(1, [1, 2, 3], max_tokens=1)
    await first.plan()
    if accord == "leaves":
        await first.leave()
        await first.end()
    second = await FakeRank.attached(served.address)
    assert served.cell.state().num_suspects == 0
    await second.answer(await second.plan())
    await router.until_finished(1)
    assert router.tokens == {1: [token_at(3)]}


@pytest.mark.parametrize("fault", ["crashes", "is cut off", "talks nonsense"])
async def test_a_broken_stream_blames_what_was_in_flight(
    serve: Serve, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    served = await serve(max_losses=1)
    router = await FakeRouter.connected(served.address)
    for attempt in ("in company", "alone"):
        rank = await FakeRank.attached(served.address)
        if attempt == "in company":
            await router.submit(1, [1, 2, 3], max_tokens=1)
        await rank.plan()
        match fault:
            case "crashes":
                await rank.break_off()
            case "is cut off":
                await rank.hang_up()
            case "talks nonsense":
                await rank.write(b"\xff\xff\xff")
        await eventually(lambda: not served.cell.view().replicas)
        if attempt == "in company":
            assert served.cell.state().num_suspects == 1
    await router.until_finished(1)
    assert router.finished[1].reason == 4
    assert "the worker was lost 2 times" in router.finished[1].message
    assert "had 1 running sequence(s); 1 suspected; what has not" in caplog.text
    assert "; 1 ended: workers were lost with them alone; what has not" in caplog.text


async def test_suspects_are_tried_apart_and_everyone_else_goes_on(serve: Serve) -> None:
    served = await serve(max_losses=1)
    router = await FakeRouter.connected(served.address)
    crashing = await FakeRank.attached(served.address, worker_id="a", replica_id="a")
    for i in range(3):
        await router.submit(i, [1, 2, i], max_tokens=40)
    await eventually(lambda: served.cell.state().num_waiting + served.cell.state().num_running == 3)
    while served.cell.state().num_running < 3:
        await crashing.answer(await crashing.plan())
    await crashing.break_off()
    await eventually(lambda: served.cell.state().num_suspects == 3)
    tried = await FakeRank.attached(served.address, worker_id="a", replica_id="a")
    spare = await FakeRank.attached(served.address, worker_id="b", replica_id="b")
    await router.submit(9, [7, 7], max_tokens=40)
    working = [asyncio.create_task(rank.work()) for rank in (tried, spare)]
    await router.until_finished(0, 1, 2, 9)
    for task in working:
        task.cancel()
    assert all(
        router.tokens[i] == [token_at(p) for p in range(len(t), len(t) + 40)]
        for i, t in ((0, [1, 2, 0]), (9, [7, 7]))
    )
    assert all(router.finished[i].reason == 2 for i in (0, 1, 2, 9))
    assert len(tried.admissions) == 3
    assert served.cell.state().num_suspects == 0


async def test_a_worker_that_dials_again_voids_its_older_epoch(served: Served) -> None:
    older = await FakeRank.attached(served.address)
    router = await FakeRouter.connected(served.address)
    await router.submit(1, [1, 2, 3], max_tokens=1)
    stale = older.execute(await older.plan())

    newer = await FakeRank.attached(served.address)

    assert newer.epoch > older.epoch
    assert (await older.end())[0] is grpc.StatusCode.ABORTED
    plan = await newer.plan()
    assert ints(plan.admit[0].token_id) == [1, 2, 3]
    await newer.send_result(stale)
    await eventually(lambda: served.cell.metrics.num_stale_results == 1)
    await newer.answer(plan)
    await router.until_finished(1)
    assert router.tokens == {1: [token_at(3)]}


async def test_a_place_that_is_taken_is_not_given_to_another_worker(served: Served) -> None:
    holder = await FakeRank.attached(served.address, replica_id="a", worker_id="holder")
    other = await FakeRank.dialled(served.address, replica_id="a", worker_id="other")
    assert await other.end() == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "rank 0 of replica 'a' is worker 'holder', which is connected; "
        "worker 'other' cannot take its place",
    )
    router = await FakeRouter.connected(served.address)
    await router.submit(1, [1, 2, 3], max_tokens=1)
    await holder.answer(await holder.plan())
    await router.until_finished(1)

    await holder.hang_up()
    await eventually(lambda: not served.cell.view().replicas)
    await FakeRank.attached(served.address, replica_id="a", worker_id="other")


async def test_a_hello_that_does_not_fit_changes_nothing(served: Served) -> None:
    ranks = [
        await FakeRank.dialled(served.address, rank=index, world_size=2, worker_id=f"w{index}")
        for index in (0, 1)
    ]
    (epoch,) = {await rank.welcome() for rank in ranks}
    again = await FakeRank.dialled(
        served.address, rank=0, world_size=2, worker_id="w0", block_size=32
    )
    code, details = await again.end()
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "block_size is 32 on rank 0 and 16 on rank 1" in details
    (replica,) = served.cell.view().replicas
    assert replica.epoch == epoch


async def test_a_rank_that_does_not_fit_leaves_the_gathering_ones_alone(served: Served) -> None:
    ranks = [
        await FakeRank.dialled(served.address, rank=index, world_size=3, worker_id=f"w{index}")
        for index in (0, 1)
    ]
    await until_gathered(served, 2)
    misfit = await FakeRank.dialled(served.address, rank=0, world_size=2, worker_id="w0")
    assert (await misfit.end())[0] is grpc.StatusCode.FAILED_PRECONDITION
    ranks.append(await FakeRank.dialled(served.address, rank=2, world_size=3, worker_id="w2"))
    assert len({await rank.welcome() for rank in ranks}) == 1


async def test_a_repeated_result_is_ignored(served: Served) -> None:
    rank = await FakeRank.attached(served.address)
    router = await FakeRouter.connected(served.address)
    await router.submit(1, [1, 2, 3], max_tokens=3)
    result = rank.execute(await rank.plan())
    await rank.send_result(result)
    await rank.send_result(result)
    await eventually(lambda: served.cell.metrics.num_stale_results == 1)
    working = asyncio.create_task(rank.work())
    await router.until_finished(1)
    assert router.tokens == {1: [token_at(3), token_at(4), token_at(5)]}
    working.cancel()


@pytest.mark.parametrize(
    "fields",
    [
        {"slot": b"abc"},
        {"slot": column(99)},
        {"slot": column(-1)},
        {"token_id": column(1000)},
        {"token_id": b""},
        {"finish": bytes([9])},
        {"step_id": 3},
    ],
    ids=lambda fields: "-".join(f"{name}={value}" for name, value in fields.items()),
)
async def test_a_malformed_result_costs_the_worker_its_stream(
    served: Served, fields: dict[str, int | bytes]
) -> None:
    rank = await FakeRank.attached(served.address)
    router = await FakeRouter.connected(served.address)
    await router.submit(1, [1, 2, 3], max_tokens=1)
    await rank.answer(await rank.plan(), **fields)
    assert (await rank.end())[0] is grpc.StatusCode.INVALID_ARGUMENT

    again = await FakeRank.attached(served.address)
    await again.answer(await again.plan())
    await router.until_finished(1)
    assert router.tokens == {1: [token_at(3)]}


async def test_a_message_that_is_not_protobuf_ends_the_stream(served: Served) -> None:
    rank = await FakeRank.attached(served.address)
    await rank.write(b"\xff\xff\xff")
    assert (await rank.end())[0] is grpc.StatusCode.INVALID_ARGUMENT
    await FakeRank.attached(served.address)


@pytest.mark.parametrize(
    ("fields", "details"),
    [
        ({"protocol_version": 2}, "protocol_version is 2"),
        ({"rank": 1}, "rank is 1; it must be at least 0 and at most 0"),
        ({"num_blocks": 0}, "num_blocks is 0"),
        ({"replica_id": ""}, "replica_id"),
    ],
)
async def test_a_hello_that_does_not_fit_is_told_why(
    served: Served, fields: dict[str, object], details: str
) -> None:
    rank = await FakeRank.dialled(served.address, **fields)
    code, said = await rank.end()
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert details in said


HELD = {
    "hash_seed": b"secret of the cell",
    "named_block": column(3, 5),
    "block_name": b"a" * 16 + b"b" * 16,
}


async def test_what_a_worker_still_holds_is_found_again_by_the_next_scheduler(serve: Serve) -> None:
    tokens = list(range(1, 40))
    before = await serve()
    rank = await FakeRank.dialled(before.address)
    welcome = (await rank.receive()).welcome
    assert (welcome.hash_seed, welcome.keeps_names) == (b"test", False)
    router = await FakeRouter.connected(before.address)
    await router.submit(1, tokens, max_tokens=1)
    plan = await rank.plan()
    assert len(plan.named_block) == 4 * 2
    await rank.answer(plan)
    await router.until_finished(1)

    after = await serve(hash_seed=b"another")
    again = await FakeRank.dialled(
        after.address,
        hash_seed=welcome.hash_seed,
        named_block=plan.named_block,
        block_name=plan.block_name,
    )
    welcome = (await again.receive()).welcome
    assert (welcome.hash_seed, welcome.keeps_names) == (b"test", True)
    assert after.cell.state().num_blocks_cached == 2
    router = await FakeRouter.connected(after.address)
    await router.submit(1, tokens, max_tokens=1)
    again.epoch = welcome.epoch
    await again.answer(await again.plan())
    await router.until_finished(1)
    assert router.finished[1].num_cached_tokens == 32


async def test_ranks_that_hold_different_blocks_are_not_believed(served: Served) -> None:
    ranks = [
        await FakeRank.dialled(
            served.address,
            rank=index,
            world_size=2,
            worker_id=f"w{index}",
            **HELD | {"named_block": column(3, 5 + index)},
        )
        for index in (0, 1)
    ]
    for rank in ranks:
        assert not (await rank.receive()).welcome.keeps_names
    assert served.cell.state().num_blocks_cached == 0


@pytest.mark.parametrize(
    ("fields", "details"),
    [
        ({"hash_seed": b""}, "hash_seed has 0 bytes"),
        ({"hash_seed": bytes(65)}, "hash_seed has 65 bytes"),
        ({"block_name": bytes(31)}, "block_name has 31 bytes; 2 named blocks have 16 each"),
        ({"named_block": column(0, 5)}, "not in 1 to 64"),
        ({"named_block": column(3, 65)}, "not in 1 to 64"),
        ({"named_block": column(3, 3)}, "comes twice"),
        ({"block_name": bytes(32)}, "comes twice"),
    ],
)
async def test_an_inventory_that_cannot_be_is_told_why(
    served: Served, fields: dict[str, object], details: str
) -> None:
    rank = await FakeRank.dialled(served.address, **HELD | fields)
    code, said = await rank.end()
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert details in said


async def test_a_result_before_the_hello_is_malformed(served: Served) -> None:
    rank = FakeRank(served.address)
    await rank.send_result(worker_pb2.StepResult())
    assert (await rank.end())[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_cell_serves_one_model(served: Served) -> None:
    first = await FakeRank.attached(served.address, replica_id="a")
    other_model = worker_pb2.ModelCard()
    other_model.CopyFrom(MODEL)
    other_model.revision = "r2"

    misfit = await FakeRank.dialled(served.address, replica_id="b", model=other_model)
    code, details = await misfit.end()
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "'r2'" in details
    assert "'r1'" in details

    await first.hang_up()
    await eventually(lambda: not served.cell.view().replicas)
    await FakeRank.attached(served.address, replica_id="b", model=other_model)
    assert served.cell.model is not None
    assert served.cell.model.revision == "r2"


async def test_ranks_that_disagree_do_not_form_a_replica(served: Served) -> None:
    await FakeRank.dialled(served.address, rank=0, world_size=2)
    await until_gathered(served, 1)
    other = await FakeRank.dialled(served.address, rank=1, world_size=2, block_size=32)
    code, details = await other.end()
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "block_size is 32 on rank 1 and 16 on rank 0" in details


async def test_a_replica_has_what_its_smallest_rank_has(served: Served) -> None:
    ranks = [
        await FakeRank.dialled(served.address, rank=index, world_size=2, num_blocks=blocks)
        for index, blocks in enumerate((64, 48))
    ]
    for rank in ranks:
        await rank.welcome()
    assert served.cell.state().num_blocks_total == 48


async def test_an_overdue_step_fences_its_replica(serve: Serve) -> None:
    served = await serve(step_timeout_s=0.05)
    hung = await FakeRank.attached(served.address, replica_id="a", worker_id="a")
    router = await FakeRouter.connected(served.address)
    await router.submit(1, [1, 2, 3], max_tokens=1)
    plan = await hung.plan()
    code, details = await hung.end()

    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "step 1 (3 tokens) missed its deadline" in details
    assert served.cell.metrics.num_fenced_replicas == 1
    healthy = await FakeRank.attached(served.address, replica_id="b", worker_id="b")
    assert ints((await healthy.plan()).admit[0].token_id) == ints(plan.admit[0].token_id)


async def test_a_worker_that_stops_in_the_middle_is_given_up_within_seconds(serve: Serve) -> None:
    """By default, where nobody supervises it: its steps were measured before."""
    served = await serve(step_timeout_s=flags.STEP_TIMEOUT.default)
    stops = await FakeRank.attached(served.address, replica_id="a", worker_id="a")
    router = await FakeRouter.connected(served.address)
    await router.submit(1, [1, 2, 3], max_tokens=30)
    for _ in range(10):
        await stops.answer(await stops.plan())
    other = await FakeRank.attached(served.address, replica_id="b", worker_id="b")
    working = asyncio.create_task(other.work())
    await router.until_finished(1)  # as long as the peers wait: a third of the timeout
    assert router.tokens[1] == [token_at(3 + n) for n in range(30)]
    assert served.cell.metrics.num_fenced_replicas == 1
    working.cancel()


async def test_a_step_that_has_to_make_a_grammar_ready_is_not_hurried(serve: Serve) -> None:
    served = await serve(step_timeout_s=flags.STEP_TIMEOUT.default)
    rank = await FakeRank.attached(served.address)
    router = await FakeRouter.connected(served.address)
    await router.submit(1, [1], max_tokens=10)
    for _ in range(10):
        await rank.answer(await rank.plan())
    await router.until_finished(1)
    for sequence_id, grammar, patience_s in ((2, "", 5), (3, "start: /a/", 60)):
        sampling = sampling_pb2.SamplingParams(
            top_p=1.0, repetition_penalty=1.0, grammar=grammar, stop_token_ids=[2]
        )
        await router.submit(sequence_id, [1], max_tokens=1, sampling=sampling)
        plan = await rank.plan()
        (replica,) = served.cell.view().replicas
        assert replica.step_patience_s == patience_s
        await rank.answer(plan)
        await router.until_finished(sequence_id)


async def test_a_step_within_its_deadline_fences_nobody(serve: Serve) -> None:
    """Slow, but never slower than allowed; and an idle worker owes nothing."""
    served = await serve(step_timeout_s=1.0)
    rank = await FakeRank.attached(served.address)
    router = await FakeRouter.connected(served.address)
    await router.submit(1, [1, 2, 3], max_tokens=5)
    for _ in range(5):
        plan = await rank.plan()
        await asyncio.sleep(0.25)  # the step's own duration
        await rank.answer(plan)
    await router.until_finished(1)
    assert served.cell.metrics.num_fenced_replicas == 0


async def test_telemetry_is_a_sign_of_life(served: Served) -> None:
    rank = await FakeRank.attached(served.address)
    (attachment,) = served.cell._attachments
    attached_at = attachment.last_seen
    await rank.write(worker_pb2.AttachRequest(telemetry=worker_pb2.Telemetry(num_steps=0)))
    await eventually(lambda: attachment.last_seen > attached_at)
    (replica,) = served.cell.view().replicas
    assert replica.pids == (1234,)


async def test_a_worker_is_not_told_to_leave_when_the_scheduler_goes(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    rank = await FakeRank.attached(served.address)
    router = await FakeRouter.connected(served.address)
    await router.submit(1, [1, 2, 3], max_tokens=1)  # and so one plan is all
    await rank.plan()
    served.cell.end_streams()
    with pytest.raises(grpc.aio.AioRpcError, match="the scheduler is shutting down"):
        await rank.receive()
    with pytest.raises(grpc.aio.AioRpcError, match="the scheduler is shutting down"):
        await router.until_finished(1)
    assert not router.finished
    (detached,) = [record for record in caplog.records if "detached: " in record.message]
    assert detached.levelno == logging.INFO
