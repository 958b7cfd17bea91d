"""The prefix cache: exact, private where asked, and never holding what was not confirmed."""

from collections.abc import Sequence
from typing import Any

import pytest

from scheduler.core.events import FinishReason
from tests.scheduler.core.cell import Cell

PROMPT = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14]


def cached_tokens(cell: Cell, prompt: Sequence[int] = PROMPT, **options: Any) -> int:
    """Runs one request alone and says how much of its prompt was found."""
    key = cell.submit(prompt, 1, **options)
    cell.run()
    return cell.end(key).num_cached_tokens


def test_a_prompt_seen_before_is_found_in_full_blocks() -> None:
    cell = Cell()
    cell.attach(block_size=4)
    assert cached_tokens(cell) == 0
    assert cached_tokens(cell) == 8
    assert cached_tokens(cell, [*PROMPT[:5], 1, 1, 1, 1]) == 4
    assert cached_tokens(cell, [1, *PROMPT]) == 0
    state = cell.scheduler.state()
    assert (state.num_prefix_query_tokens, state.num_prefix_hit_tokens) == (40, 12)


def test_the_last_token_of_a_fully_cached_prompt_is_computed_again() -> None:
    cell = Cell()
    cell.attach(block_size=4)
    assert cached_tokens(cell, PROMPT[:8]) == 0
    key = cell.submit(PROMPT[:8], 1)
    plan = cell.plan()
    assert plan.admit[0].num_computed == 4
    assert plan.chunk_length.tolist() == [4]
    cell.deliver()
    assert cell.end(key).num_output_tokens == 1


@pytest.mark.parametrize("difference", [{"cache_salt": "mine"}, {"adapter": "french"}])
def test_salts_and_adapters_do_not_share(difference: dict[str, Any]) -> None:
    cell = Cell()
    cell.attach()
    cached_tokens(cell)
    assert cached_tokens(cell, **difference) == 0
    assert cached_tokens(cell, **difference) == 8


def test_salt_and_adapter_are_not_confused_with_each_other() -> None:
    cell = Cell()
    cell.attach()
    cached_tokens(cell, cache_salt="x")
    assert cached_tokens(cell, adapter="x") == 0


def test_samples_share_the_blocks_of_their_prompt_within_one_plan() -> None:
    cell = Cell()
    cell.attach(block_size=4)
    key = cell.submit(PROMPT, 3, num_samples=3)
    plan = cell.plan()
    assert [a.num_computed for a in plan.admit] == [0, 8, 8]
    first = plan.append_block[plan.append_slot == plan.admit[0].slot].tolist()
    assert plan.admit[1].blocks.tolist() == plan.admit[2].blocks.tolist() == first[:2]
    assert cell.scheduler.state().num_blocks_used == 2 + 3
    cell.run()
    outputs = [cell.output(key, sample) for sample in range(3)]
    assert len(set(map(tuple, outputs))) > 1, "samples have seeds of their own"
    cell.assert_at_rest()


def test_without_prefix_caching_only_samples_share_and_nothing_is_kept() -> None:
    cell = Cell(enable_prefix_caching=False)
    cell.attach(block_size=4)
    one = cell.submit(PROMPT, 2, num_samples=2)
    other = cell.submit(PROMPT, 2)
    plan = cell.plan()
    assert [a.num_computed for a in plan.admit] == [0, 8, 0]
    cell.run()
    assert cell.end(one, 1).num_cached_tokens == 8
    assert cell.end(other).num_cached_tokens == 0
    state = cell.scheduler.state()
    assert (state.num_blocks_free, state.num_prefix_query_tokens) == (state.num_blocks_total, 0)


@pytest.mark.parametrize("num_prompt", [3, 4, 5, 8])
def test_sampled_tokens_are_cached_for_the_next_turn(num_prompt: int) -> None:
    cell = Cell()
    cell.attach(block_size=4)
    prompt = PROMPT[:num_prompt]
    key = cell.submit(prompt, 13 - num_prompt)
    cell.run(depth=3)
    # The KV of the very last token was never computed, so 12 of 13 can be found.
    assert cached_tokens(cell, [*prompt, *cell.output(key), 9]) == 12


def test_a_block_is_offered_only_once_its_tokens_are_confirmed() -> None:
    cell = Cell()
    cell.attach(block_size=4, max_num_seqs=4)
    key = cell.submit([1, 2, 3], 10)
    cell.step()
    cell.schedule()  # writes position 3, which fills the block
    history = [1, 2, 3, *cell.output(key)]
    cell.submit([*history, 9], 1)
    assert cell.plan().admit[0].num_computed == 0, "the token at 4 is not known yet"
    cell.deliver()
    cell.submit([*history, 8], 1)
    assert cell.plan().admit[0].num_computed == 4
    cell.run()


def test_tokens_after_a_stop_string_are_not_cached() -> None:
    cell = Cell()
    cell.attach(block_size=4)
    key = cell.submit([1, 2, 3], 14)
    for _ in range(11):
        cell.step()
    output = cell.output(key)
    [finished] = cell.finish(key, 4)
    assert (finished.reason, finished.num_output_tokens) == (FinishReason.STOP, 4)
    cell.run()
    # Seven tokens count: one full block, and the block with the eighth is forgotten.
    assert cached_tokens(cell, [1, 2, 3, *output, 9]) == 4


def test_a_stop_string_forgets_the_blocks_of_a_preempted_sequence_too() -> None:
    cell = Cell(watermark=0.0)
    cell.attach(num_blocks=6, block_size=4)
    cell.submit([9, 9, 9], 20)
    key = cell.submit([1, 2, 3], 14)
    while not cell.scheduler.state().num_preemptions:
        cell.step()
    output = cell.output(key)
    cell.finish(key, 1)
    cell.run()
    assert cached_tokens(cell, [1, 2, 3, *output, 9]) <= 4


def test_eviction_takes_the_tail_of_the_least_recently_used_first() -> None:
    cell = Cell()
    cell.attach(num_blocks=6, block_size=4)
    old, new = [1] * 9, [2] * 9
    cached_tokens(cell, old)
    cached_tokens(cell, new)
    assert cell.scheduler.state().num_blocks_cached == 4
    cached_tokens(cell, [3] * 10)  # three blocks: the two free ones and one evicted
    assert cached_tokens(cell, new) == 8
    assert cached_tokens(cell, old) == 4


def test_the_cache_of_a_lost_replica_is_gone() -> None:
    cell = Cell()
    cell.attach()
    cached_tokens(cell)
    cell.detach()
    cell.attach()
    assert cached_tokens(cell) == 0


def test_a_reset_forgets_what_is_cached_and_what_is_in_use() -> None:
    cell = Cell()
    cell.attach(block_size=4)
    cached_tokens(cell)
    running = cell.submit([*PROMPT, 1, 1, 1], 4)
    cell.plan()
    before = cell.scheduler.state()
    assert cell.scheduler.reset_prefixes() == 3  # two were shared, the third is its own
    cell.scheduler.check_integrity()
    assert cell.scheduler.reset_prefixes() == 0
    cell.deliver()
    cell.run()
    assert cell.end(running).num_output_tokens == 4
    assert cell.scheduler.state().num_running == 0
    assert before.num_running == 1
    assert cached_tokens(cell) == 0
    assert cached_tokens(cell) == 8


def test_a_reset_gives_cached_blocks_back() -> None:
    cell = Cell()
    cell.attach(block_size=4, num_blocks=16)
    cached_tokens(cell)
    [replica] = cell.scheduler.state().replicas
    assert (replica.num_blocks_cached, replica.num_blocks_free) == (2, 14)
    cell.scheduler.reset_prefixes()
    [replica] = cell.scheduler.state().replicas
    assert (replica.num_blocks_cached, replica.num_blocks_free) == (0, 16)
