"""Replicas come and go: placement, stealing, and that nothing in flight is lost."""

from typing import Any

import pytest

from scheduler.core.events import FinishReason
from tests.scheduler.core.cell import Cell, Key

PROMPT = list(range(1, 10))


def two_replicas(**config: Any) -> Cell:
    cell = Cell(**config)
    cell.attach("a")
    cell.attach("b")
    return cell


def home(cell: Cell, key: Key) -> str | None:
    sequence = cell.scheduler._sequences.find(*key)
    assert sequence is not None
    return sequence.replica


def test_a_request_goes_where_its_prefix_is() -> None:
    cell = two_replicas()
    cell.submit([9, 9, 9], 4)
    assert home(cell, cell.submit(PROMPT, 1)) == "b", "the other one is loaded"
    cell.run()
    for _ in range(3):
        again = cell.submit(PROMPT, 1)
        assert home(cell, again) == "b"
        cell.run()
        assert cell.end(again).num_cached_tokens == 8


def test_load_outweighs_a_cached_prefix() -> None:
    cell = two_replicas()
    first = cell.submit(PROMPT, 1)
    where = home(cell, first)
    cell.run()
    homes = [home(cell, cell.submit(PROMPT, 30)) for _ in range(12)]
    assert homes[0] == where
    assert set(homes) == {"a", "b"}


def test_samples_of_one_request_stay_together() -> None:
    cell = two_replicas()
    key = cell.submit(PROMPT, 4, num_samples=4)
    assert len({home(cell, (key[0], key[1] + i)) for i in range(4)}) == 1


def test_a_replica_with_an_empty_queue_steals_what_another_cannot_start() -> None:
    cell = Cell()
    cell.attach("a", max_num_seqs=1)
    keys = [cell.submit([i] * 3, 20) for i in range(3)]
    cell.step("a")
    cell.attach("b", max_num_seqs=1)
    plan = cell.plan("b")
    assert [a.token_ids.tolist() for a in plan.admit] == [[1] * 3]
    assert [home(cell, key) for key in keys] == ["a", "b", "a"]
    cell.run(depth=2)
    cell.assert_at_rest()


def test_work_for_more_than_a_step_is_stolen() -> None:
    cell = Cell()
    cell.attach("a", max_num_batched_tokens=8)
    keys = [cell.submit([i] * 8, 4) for i in range(3)]
    cell.schedule("a")
    cell.attach("b", max_num_batched_tokens=8)
    assert len(cell.plan("b").admit) == 1
    assert [home(cell, key) for key in keys] == ["a", "b", "a"]


def test_what_was_preempted_is_stolen() -> None:
    cell = Cell(watermark=0.0)
    cell.attach("a", num_blocks=5, block_size=4)
    cell.submit([1] * 5, 10)
    victim = cell.submit([2] * 8, 9)
    while cell.schedule("a") is not None:
        pass
    cell.attach("b", num_blocks=5, block_size=4)
    cell.schedule("b")
    assert home(cell, victim) == "b"
    cell.run()
    cell.assert_at_rest()


def test_a_thief_never_steals_from_itself() -> None:
    cell = Cell()
    cell.attach("a", max_num_seqs=1)
    cell.attach("b", max_num_seqs=2)
    keys = [cell.submit([i] * 3, 20) for i in range(8)]
    cell.step("a")
    cell.step("b")
    at_a = [key for key in keys if home(cell, key) == "a"]
    for key in [*set(keys).difference(at_a), *at_a[2:]]:
        cell.abort(key)
    assert len(cell.plan("b").admit) == 1
    cell.run()
    cell.assert_at_rest()


def test_nothing_is_stolen_from_a_replica_that_can_start_it_itself() -> None:
    cell = two_replicas()
    key = cell.submit(PROMPT, 4)
    assert home(cell, key) == "a"
    assert cell.schedule("b") is None
    assert cell.schedule("a") is not None


def test_siblings_are_stolen_together_or_not_at_all() -> None:
    cell = Cell()
    cell.attach("a", max_num_seqs=1)
    running = cell.submit([1], 30)
    cell.step("a")
    family = cell.submit([2] * 5, 4, num_samples=3)
    cell.schedule("a")
    cell.attach("b", max_num_seqs=2)
    assert cell.schedule("b") is None, "two slots are not enough for three"
    cell.detach("b")
    cell.attach("b", max_num_seqs=3)
    assert len(cell.plan("b").admit) == 3
    assert home(cell, running) == "a"
    cell.run()
    assert all(cell.end(family, i).reason is FinishReason.LENGTH for i in range(3))


def test_siblings_of_a_running_sample_are_not_stolen() -> None:
    cell = Cell()
    cell.attach("a", max_num_seqs=1)
    cell.submit([2] * 5, 4, num_samples=2)
    cell.step("a")
    cell.attach("b")
    assert cell.schedule("b") is None
    cell.run()
    cell.assert_at_rest()


def test_a_lost_replicas_sequences_go_on_elsewhere_with_every_token() -> None:
    cell = two_replicas()
    keys = [cell.submit([i + 1] * 5, 12) for i in range(4)]
    for _ in range(4):
        cell.step("a")
        cell.step("b")
    cell.schedule("a")
    cell.detach("a")
    assert {home(cell, key) for key in keys} == {"b"}
    cell.run(depth=2)
    assert [len(cell.output(key)) for key in keys] == [12] * 4
    state = cell.scheduler.state()
    assert state.num_replays == 2
    assert state.num_generated_tokens == 48
    cell.assert_at_rest()


def test_the_only_replica_is_lost_and_comes_back() -> None:
    cell = Cell()
    cell.attach()
    keys = [cell.submit([i + 1] * 5, 12, num_samples=2) for i in range(2)]
    cell.step()
    cell.schedule()
    assert cell.detach() == []
    assert cell.scheduler.state().num_waiting == 4
    cell.attach()
    cell.run()
    assert [len(cell.output(key, i)) for key in keys for i in range(2)] == [12] * 4


def test_replicas_with_other_weights_do_not_share_hashes() -> None:
    cell = Cell()
    cell.attach("a", model_revision="one")
    key = cell.submit(PROMPT, 20)
    cell.step("a")
    cell.detach("a")
    cell.attach("b", model_revision="two", block_size=2, num_blocks=40)
    cell.run()
    assert len(cell.output(key)) == 20
    again = cell.submit(PROMPT, 1)
    cell.run()
    assert cell.end(again).num_cached_tokens == 8


def test_a_sequence_too_large_for_those_left_waits_for_one_that_can_hold_it() -> None:
    cell = Cell()
    cell.attach("large", num_blocks=16)
    large = cell.submit([1] * 30, 8)
    cell.attach("small", num_blocks=4)
    cell.step("large")
    assert cell.detach("large") == []
    cell.run()
    assert cell.unfinished() == [large]
    cell.attach("large", num_blocks=16)
    cell.run()
    assert cell.end(large).reason is FinishReason.LENGTH


def test_names_of_replicas_are_unique() -> None:
    cell = Cell()
    cell.attach("a")
    with pytest.raises(ValueError, match="attached already"):
        cell.attach("a")
    assert cell.scheduler.detach("nobody", 0.0, blame=True).finished == ()
    with pytest.raises(KeyError):
        cell.scheduler.schedule("nobody", 0.0)


def test_totals_outlive_a_replica() -> None:
    cell = Cell()
    cell.attach()
    cell.submit([1], 5)
    cell.run()
    cell.detach()
    state = cell.scheduler.state()
    assert (state.num_generated_tokens, state.num_blocks_total) == (5, 0)
