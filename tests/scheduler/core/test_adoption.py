"""A new scheduler finds the prefixes that its predecessor left in the workers' blocks."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scheduler.core.events import FinishReason
from tests.scheduler.core.cell import Cell

PROMPT = list(range(1, 10))


def test_prefixes_outlive_the_scheduler() -> None:
    cell = Cell()
    cell.attach(block_size=4)
    cell.submit(PROMPT, 8)
    cell.run()
    cell.restart_scheduler()
    assert cell.scheduler.state().num_blocks_cached == 3, "all full blocks but the last, unsent"
    again = cell.submit(PROMPT, 8)
    cell.run()
    assert cell.end(again).num_cached_tokens == 8
    cell.assert_at_rest()


def test_what_was_in_flight_goes_on_from_the_blocks_it_left() -> None:
    cell = Cell()
    cell.attach(block_size=4)
    key = cell.submit(PROMPT, 30)
    for _ in range(12):
        cell.step()
    cell.schedule()
    cell.restart_scheduler()
    plan = cell.plan()
    assert plan.admit[0].num_computed >= 16
    cell.run()
    assert cell.end(key).reason is FinishReason.LENGTH
    cell.assert_at_rest()


@pytest.mark.parametrize("late", ["a", "b"])
def test_whoever_waits_goes_where_its_blocks_are_found_late(late: str) -> None:
    """The replica that dials first has what it computed itself, and no more."""
    cell = Cell()
    for name in ("a", "b"):
        cell.attach(name, num_blocks=64)
    keys = [cell.submit([number, *PROMPT], 30) for number in range(8)]
    for _ in range(12):
        for name in cell.links:
            cell.step(name)
    homes = [cell.home(key) for key in keys]
    assert set(homes) == {"a", "b"}
    cell.restart_scheduler(late=[late])
    assert [cell.home(key) for key in keys] == homes
    for name in cell.links:
        for admission in cell.plan(name).admit:
            assert admission.num_computed >= 16
    cell.run()
    cell.assert_at_rest()


def test_samples_whose_siblings_run_stay_with_them() -> None:
    cell = Cell()
    for name in ("a", "b"):
        cell.attach(name, max_num_seqs=1)
        cell.submit(PROMPT, 1)
    cell.run()
    worker = cell.links["b"].worker
    cell.detach("b", blame=False)
    router, first = cell.submit([*PROMPT, 7], 8, num_samples=2)
    other = cell.submit([*PROMPT, 8], 8)
    cell.step("a")
    cell._dial("b", worker, b"test")
    assert [cell.home((router, first + sample)) for sample in range(2)] == ["a", "a"]
    assert cell.home(other) == "b"
    cell.run()
    cell.assert_at_rest()


def test_replicas_of_one_cell_share_names_again() -> None:
    cell = Cell()
    for name in ("a", "b"):
        cell.attach(name, block_size=4)
    cell.submit(PROMPT, 1)
    cell.run()
    cell.restart_scheduler()
    assert cell.scheduler.hash_seed("a") == cell.scheduler.hash_seed("b") == b"test"
    cell.attach("c", block_size=4)
    assert cell.scheduler.hash_seed("c") == b"test"


def test_an_inventory_under_another_secret_is_kept_under_that_secret() -> None:
    cell = Cell()
    for name in ("a", "b"):
        cell.attach(name, block_size=4)
        cell.submit([*PROMPT, ord(name)], 1)
    cell.run()
    cell.links["a"].worker.names.clear()  # it was started anew, and dials first
    cell.restart_scheduler()
    assert cell.scheduler.hash_seed("a") != cell.scheduler.hash_seed("b") == b"test"
    again = cell.submit([*PROMPT, ord("b")], 1)
    cell.run()
    assert cell.end(again).num_cached_tokens == 8


def test_distrusted_and_forgotten_blocks_are_not_handed_on() -> None:
    cell = Cell()
    cell.attach(block_size=4)
    cell.submit(PROMPT, 12, broken_at=14)
    stopped = cell.submit([5] * 7, 20)
    for _ in range(12):
        cell.step()
    cell.finish(stopped, 1)
    cell.submit([3], 2)
    cell.run()
    known = cell.scheduler._replicas["a"].pool._index._block_of
    assert {name: block for block, name in cell.links["a"].worker.names.items()} == known
    assert len(known) == 2, "the prompt that was stopped, and its first token"


def test_without_prefix_caching_nothing_is_named_or_adopted() -> None:
    cell = Cell(enable_prefix_caching=False)
    cell.attach(block_size=4)
    cell.submit(PROMPT, 8, num_samples=2)
    cell.run()
    assert cell.links["a"].worker.names == {}
    assert cell.scheduler.hash_seed("a") == b""


def test_a_steady_step_names_only_blocks_that_fill() -> None:
    cell = Cell()
    cell.attach(block_size=4)
    cell.submit([1], 40)
    named = [cell.step().named_block.size for _ in range(17)]
    assert sum(named) == 4
    assert max(named) == 1


@pytest.mark.parametrize("caching", [True, False])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_history_leaves_the_worker_with_the_schedulers_names(
    caching: bool, data: st.DataObject
) -> None:
    """Whoever reads an adopted block finds its own prefix there: the fake worker sees to it."""
    cell = Cell(watermark=0.0, enable_prefix_caching=caching)
    names = ["a", "b"][: data.draw(st.integers(1, 2), "replicas")]
    for name in names:
        num_blocks = data.draw(st.integers(6, 14))
        cell.attach(name, num_blocks=num_blocks, block_size=4, max_num_batched_tokens=12)
    for _ in range(data.draw(st.integers(2, 20), "events")):
        event = data.draw(st.sampled_from(["submit", "run", "run", "abort", "finish", "restart"]))
        keys = sorted(cell.unfinished())
        if event == "submit":
            prompt = data.draw(st.sampled_from([PROMPT, PROMPT[:5], [7] * 11, [7] * 4]))
            broken_at = data.draw(st.sampled_from([None, None, None, len(prompt) + 2]))
            cell.submit(
                prompt,
                data.draw(st.integers(1, 9)),
                num_samples=data.draw(st.integers(1, 2)),
                broken_at=broken_at,
            )
        elif event == "run":
            for name in names * data.draw(st.integers(1, 6)):
                cell.schedule(name)
                cell.schedule(name)
                if cell.links[name].sent:
                    cell.deliver(name)
        elif event == "abort" and keys:
            cell.abort(data.draw(st.sampled_from(keys)))
        elif event == "finish" and keys:
            cell.finish(data.draw(st.sampled_from(keys)), data.draw(st.integers(0, 4)))
        elif event == "restart":
            cell.restart_scheduler(late=data.draw(st.sampled_from([[], names[:1], names[1:]])))
    cell.run(depth=2)
    for _ in names:
        cell.submit([9] * 3, 2)
    cell.run()
    cell.assert_at_rest()
    for name in names:
        found = cell.links[name].worker.names
        index = cell.scheduler._replicas[name].pool._index
        told = {b: n for n, b in index._block_of.items() if b not in index._named and caching}
        assert {b: n for b, n in found.items() if b not in index._unnamed} == told
        assert caching or not found
