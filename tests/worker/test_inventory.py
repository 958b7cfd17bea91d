"""What the worker keeps for the next scheduler: names of blocks, as plans said."""

from dataclasses import replace

import numpy as np
import pytest

from tests.worker.builders import admission, column, plan
from worker.inventory import NAME_BYTES, Held, Inventory
from worker.plans import (
    BatchPlan,
    FinishReason,
    PlanError,
    StepResult,
    Timing,
    Vectors,
    Welcome,
)


def named(**names: str) -> BatchPlan:
    """A plan that names block N by its letter: b3="x"."""
    blocks = [int(block[1:]) for block in names]
    letters = b"".join(letter.encode() * NAME_BYTES for letter in names.values())
    return replace(plan(1), named=column(blocks), block_name=letters)


def held(inventory: Inventory) -> dict[int, str]:
    now = inventory.held()
    blocks = np.frombuffer(now.block, np.int32).tolist()
    return {block: chr(now.name[i * NAME_BYTES]) for i, block in enumerate(blocks)}


def opened(num_blocks: int = 8) -> Inventory:
    inventory = Inventory(num_blocks)
    inventory.open(Welcome(1, b"secret"))
    return inventory


def test_names_are_kept_until_void_or_replaced() -> None:
    inventory = opened()
    inventory.note(named(b3="x", b5="y", b8="z"))
    inventory.note(replace(named(b5="w"), unnamed=column([8])))
    assert held(inventory) == {3: "x", 5: "w"}
    assert inventory.held().hash_seed == b"secret"


def test_a_block_that_is_appended_loses_its_name_unless_it_gets_a_new_one() -> None:
    inventory = opened()
    inventory.note(named(b3="x", b5="y"))
    appended = replace(
        named(b5="z"),
        append_slot=column([0, 0]),
        append_index=column([0, 1]),
        append_block=column([3, 5]),
    )
    inventory.note(appended)
    assert held(inventory) == {5: "z"}


def not_finite(slot: int, generation: int, *, as_vector: bool = False) -> StepResult:
    """A result whose only row was not finite."""
    rows, error = (column([slot]), column([generation])), np.array([FinishReason.ERROR], np.uint8)
    none, nothing = column(), np.empty(0, np.uint8)
    vectors = Vectors(*rows, error, np.zeros((1, 2), np.float32)) if as_vector else None
    slots, generations = (none, none) if as_vector else rows
    return StepResult(
        epoch=1,
        step_id=1,
        slot=slots,
        generation=generations,
        token_id=none if as_vector else column([0]),
        finish=nothing if as_vector else error,
        logprobs=None,
        timing=Timing(),
        vectors=vectors,
    )


@pytest.mark.parametrize("as_vector", [False, True])
@pytest.mark.parametrize("heard_first", [False, True])
def test_names_of_a_sequence_that_was_not_finite_are_forgotten(
    heard_first: bool, as_vector: bool
) -> None:
    """Its own blocks and those it shares; whether or not its result comes before the plan."""
    inventory = opened()
    inventory.note(named(b1="x", b2="y", b3="z"))
    bad = admission(0, [1] * 9, [1, 4], generation=7, num_computed=4)
    good = admission(1, [1] * 9, [2, 5], generation=7, num_computed=4)
    first = replace(named(b4="v", b5="w"), admit=(bad, good))
    said = not_finite(0, 7, as_vector=as_vector)
    if heard_first:
        inventory.hear(said)
    inventory.note(first)
    inventory.hear(said)
    appended = plan(2, append=[(0, 2, 6), (1, 2, 7)])
    inventory.note(replace(appended, named=column([6, 7]), block_name=b"sr" * NAME_BYTES))
    assert sorted(held(inventory)) == [2, 3, 5, 7]
    # Once it has left, its blocks are others'.
    inventory.note(plan(3, retire=[0]))
    inventory.note(replace(named(b4="u"), admit=(admission(0, [2] * 9, [4], generation=8),)))
    assert sorted(held(inventory)) == [2, 3, 4, 5, 7]


def test_what_was_not_finite_is_forgotten_before_an_epoch_that_keeps_the_names() -> None:
    inventory = opened()
    inventory.note(replace(named(b1="x", b2="y"), admit=(admission(0, [1] * 4, [1]),)))
    inventory.hear(not_finite(0, 0))
    inventory.open(Welcome(2, b"secret", True))
    assert held(inventory) == {2: "y"}


def test_a_row_of_nobody_that_is_known_costs_every_name() -> None:
    inventory = opened()
    inventory.note(named(b1="x"))
    inventory.hear(not_finite(3, 0))
    assert held(inventory) == {}


@pytest.mark.parametrize("keeps", [True, False])
def test_names_outlive_an_epoch_if_the_scheduler_says_so(keeps: bool) -> None:
    inventory = opened()
    inventory.note(named(b3="x"))
    inventory.open(Welcome(2, b"other", keeps))
    assert held(inventory) == ({3: "x"} if keeps else {})
    inventory.note(named(b1="y"))
    assert inventory.held().hash_seed == b"other"


def test_nothing_is_told_of_names_without_a_secret() -> None:
    inventory = Inventory(8)
    inventory.open(Welcome(1))
    inventory.note(named(b3="x"))
    assert inventory.held() == Held()


@pytest.mark.parametrize("block", [0, 9, -1])
def test_a_block_that_does_not_exist_is_an_error(block: int) -> None:
    with pytest.raises(PlanError, match="not in 1 to 8"):
        opened().note(replace(plan(1), named=column([block]), block_name=bytes(NAME_BYTES)))


def test_names_that_do_not_add_up_are_an_error() -> None:
    with pytest.raises(PlanError, match="1 blocks have 3 bytes of names"):
        opened().note(replace(plan(1), named=column([1]), block_name=b"abc"))
