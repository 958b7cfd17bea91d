"""What the worker keeps for the next scheduler: names of blocks, as plans said."""

from dataclasses import replace

import numpy as np
import pytest

from tests.worker.builders import column, plan
from worker.inventory import NAME_BYTES, Held, Inventory
from worker.plans import BatchPlan, PlanError, Welcome


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
