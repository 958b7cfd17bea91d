"""What is refused, with numbers, and what waits for a replica."""

from collections.abc import Sequence
from typing import Any

import pytest

from scheduler.core.config import CoreConfig
from scheduler.core.events import FinishReason, Refused, Request
from tests.scheduler.core.cell import Cell
from tests.scheduler.core.fake_worker import token_column


def refusal(cell: Cell, prompt: Sequence[int], max_tokens: int = 4, **options: Any) -> Refused:
    before = cell.scheduler.state()
    with pytest.raises(Refused) as caught:
        cell.submit(prompt, max_tokens, **options)
    assert cell.scheduler.state() == before
    cell.scheduler.check_integrity()
    return caught.value


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "field", "numbers"),
    [
        ([1] * 40, 9, "max_tokens", ["40", "9", "49", "48"]),
        ([1] * 48, 1, "token_id", ["48"]),
    ],
)
def test_what_the_model_cannot_hold_is_refused(
    prompt: Sequence[int], max_tokens: int, field: str, numbers: list[str]
) -> None:
    cell = Cell()
    cell.attach(max_model_len=48)
    refused = refusal(cell, prompt, max_tokens)
    assert (refused.field, refused.invalid) == (field, True)
    assert all(number in refused.message for number in numbers)


def test_what_needs_more_blocks_than_any_replica_has_is_refused() -> None:
    cell = Cell()
    cell.attach("a", num_blocks=4, block_size=4)
    cell.attach("b", num_blocks=5, block_size=4)
    refused = refusal(cell, [1] * 18, 4)
    assert "6 KV blocks of 4 tokens; the largest replica has 5" in refused.message
    # The last token needs no KV, so 21 tokens fit into 20 places.
    key = cell.submit([1] * 17, 4)
    cell.run()
    assert cell.end(key).reason is FinishReason.LENGTH


def test_a_full_queue_is_refused_for_now() -> None:
    cell = Cell(max_queued=2)
    cell.submit([1], 4)
    refused = refusal(cell, [2], num_samples=2)
    assert not refused.invalid
    assert "limit is 2" in refused.message
    cell.submit([3], 4)


def test_a_queue_full_of_tokens_is_refused_with_the_numbers() -> None:
    cell = Cell(max_queued_tokens=10)
    cell.submit([1] * 20, 4)
    refused = refusal(cell, [2] * 3)
    assert not refused.invalid
    assert refused.message == "20 tokens are queued and this request has 3; the limit is 10"
    cell.attach()
    cell.step()
    cell.submit([2] * 3, 4)


@pytest.mark.parametrize(("output", "resubmitted"), [([3], False), ([], True)])
def test_what_was_accepted_before_is_never_refused_for_load(
    output: list[int], resubmitted: bool
) -> None:
    cell = Cell(max_queued=1, max_queued_tokens=1)
    cell.submit([1] * 5, 4)
    refusal(cell, [2])
    again = cell.submit([2], 4, output=output, resubmitted=resubmitted)
    cell.attach()
    cell.run()
    assert cell.end(again).reason is FinishReason.LENGTH


@pytest.mark.parametrize(("output", "resubmitted"), [([3] * 4, False), ([], True)])
def test_what_was_accepted_before_waits_for_a_replica_that_can_hold_it(
    output: list[int], resubmitted: bool
) -> None:
    """A small replica comes first to the scheduler after the one that accepted it."""
    cell = Cell()
    cell.attach("small", num_blocks=4, block_size=4)
    refusal(cell, [1] * 40, 8)
    again = cell.submit([1] * 40, 8, output=output, resubmitted=resubmitted)
    cell.run()
    assert cell.unfinished() == [again]
    cell.attach("large", num_blocks=12, block_size=4)
    cell.run()
    assert cell.end(again).reason is FinishReason.LENGTH
    cell.assert_at_rest()


def test_what_was_accepted_before_and_no_replica_of_the_model_can_hold_is_refused() -> None:
    cell = Cell()
    cell.attach(max_model_len=16)
    assert refusal(cell, [1] * 40, 8, resubmitted=True).field == "token_id"


def test_a_tenant_that_fills_the_queue_does_not_keep_the_others_out() -> None:
    cell = Cell(max_queued=8)
    for _ in range(8):
        cell.submit([1], 4, tenant="a")
    assert not refusal(cell, [1], tenant="a").invalid
    first, second = cell.submit([1], 4, tenant="b"), cell.submit([1], 4, tenant="c")
    assert "10 sequences are queued; the limit is 8" in refusal(cell, [1], tenant="d").message
    cell.attach()
    cell.run()
    assert cell.end(first).reason is cell.end(second).reason is FinishReason.LENGTH


def test_beyond_a_limit_a_tenant_has_an_even_share_of_it_at_most() -> None:
    cell = Cell(max_queued=16)
    for _ in range(11):
        cell.submit([1], 4, tenant="a")
    for _ in range(6):  # 16 places, of which a third is 5 and a bit
        cell.submit([1], 4, tenant="b")
    refusal(cell, [1], tenant="b")
    cell.submit([1], 4, tenant="c")


def test_the_same_of_a_queue_full_of_tokens() -> None:
    cell = Cell(max_queued_tokens=100)
    cell.submit([1] * 100, 4, tenant="a")
    refusal(cell, [1], tenant="a")
    refusal(cell, [1] * 26, tenant="b")
    cell.submit([1] * 25, 4, tenant="b")


def test_nothing_is_refused_for_its_size_alone() -> None:
    cell = Cell(max_queued=2, max_queued_tokens=2)
    cell.submit([1] * 5, 4, num_samples=3)


def test_a_refusal_says_when_the_backlog_will_be_worked_off() -> None:
    cell = Cell(max_queued=4)
    cell.attach(max_num_seqs=1, max_num_batched_tokens=16)
    for _ in range(10):  # 3 tokens that are not cached, then 3 decodes, in half a second each
        cell.submit([1] * 7, 4)
        while cell.schedule() is not None:
            cell.now += 0.5
            cell.deliver()
    replica = cell.scheduler._replicas["a"]
    speed = replica.in_flight.throughput.tokens_per_s
    assert speed == pytest.approx((3 + 3) / (4 * 0.5), rel=0.05)
    for i in range(4):
        cell.submit([2 + i] * 20, 4)
    refused = refusal(cell, [1])
    assert refused.retry_after_s == pytest.approx((4 * 20 + 4 * 4) / speed, rel=0.05)


def test_a_refusal_before_anything_was_measured_names_a_moderate_time() -> None:
    cell = Cell(max_queued=1)
    cell.submit([1], 4)
    assert refusal(cell, [2]).retry_after_s == 5.0


@pytest.mark.parametrize("offset", [0, 1, -1])
def test_an_id_in_flight_is_refused(offset: int) -> None:
    cell = Cell()
    router, sequence_id = cell.submit([1], 4, num_samples=2)
    again = Request(router, sequence_id + offset, token_column([1]), 1, 4, 0, num_samples=2)
    with pytest.raises(Refused, match="in flight"):
        cell.scheduler.accept(again, 0.0)
    cell.scheduler.accept(
        Request(router + 1, sequence_id, token_column([1]), 1, 4, 0, num_samples=2), 0.0
    )


def test_a_request_waits_for_a_replica_that_can_hold_it() -> None:
    cell = Cell()
    fits, large = cell.submit([1] * 4, 4), cell.submit([1] * 40, 8)
    assert cell.scheduler.state().num_waiting == 2
    cell.attach("small", num_blocks=4, block_size=4)
    cell.run()
    assert cell.end(fits).reason is FinishReason.LENGTH
    assert cell.unfinished() == [large], "accepted is accepted"
    cell.attach("large", num_blocks=12, block_size=4)
    cell.run()
    assert cell.end(large).reason is FinishReason.LENGTH
    cell.assert_at_rest()


def test_a_request_submitted_anew_goes_on_where_it_was() -> None:
    cell = Cell()
    cell.attach()
    whole = cell.submit([1, 2, 3], 8, seed=5)
    cell.run()
    again = cell.submit([1, 2, 3], 8, seed=5, output=cell.output(whole)[:6])
    cell.run()
    assert cell.output(again) == cell.output(whole)
    finished = cell.end(again)
    assert (finished.num_output_tokens, finished.num_cached_tokens) == (8, 3), "of its prompt"


def test_a_request_submitted_anew_with_all_its_tokens_ends_at_once() -> None:
    cell = Cell()
    cell.attach()
    whole = cell.submit([1, 2, 3], 8, seed=5)
    cell.run()
    again = cell.submit([1, 2, 3], 8, seed=5, output=cell.output(whole))
    assert cell.end(again).reason is FinishReason.LENGTH
    cell.assert_at_rest()


def test_unknown_ids_are_no_news() -> None:
    cell = Cell()
    cell.attach()
    key = cell.submit([1], 1)
    cell.run()
    assert cell.abort(key) == cell.finish(key, 1) == cell.abort((9, 9)) == []
    assert cell.drop_router(9) == []


def test_a_dropped_router_takes_its_own_sequences_along() -> None:
    cell = Cell()
    cell.attach(max_num_seqs=2)
    mine = [cell.submit([1], 20, router=1) for _ in range(3)]
    other = cell.submit([2], 20, router=2)
    cell.step()
    finished = cell.drop_router(1)
    assert [f.reason for f in finished] == [FinishReason.ABORT] * len(mine)
    assert cell.unfinished() == [other]
    cell.run()
    cell.assert_at_rest()


def test_a_finish_never_counts_more_tokens_than_were_sent() -> None:
    cell = Cell()
    cell.attach()
    key = cell.submit([1], 20)
    for _ in range(3):
        cell.step()
    [finished] = cell.finish(key, 10)
    assert finished.num_output_tokens == 3


@pytest.mark.parametrize(
    "change",
    [
        {"max_num_seqs": 0},
        {"max_num_batched_tokens": 0},
        {"max_queued": 0},
        {"max_queued_tokens": 0},
        {"watermark": 1.0},
        {"max_losses": 0},
        {"input_token_weight": 0.0},
        {"output_token_weight": float("inf")},
        {"trial_patience_s": -1.0},
        {"aging_s": 0.0},
        {"policy": "lifo"},
        {"hash_seed": b"x" * 65},
    ],
)
def test_a_configuration_that_cannot_work_names_its_field(change: dict[str, Any]) -> None:
    [name] = change
    with pytest.raises(ValueError, match=name):
        CoreConfig(**({"hash_seed": b""} | change))
