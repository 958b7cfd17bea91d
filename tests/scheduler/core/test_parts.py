"""The small parts, where a rule is theirs alone."""

from collections.abc import Iterable

import pytest

from scheduler.core.block_hash import BlockHasher, HashChain, HashSpace
from scheduler.core.block_pool import BlockPool
from scheduler.core.budget import StepBudget
from scheduler.core.decode_calendar import DecodeCalendar
from scheduler.core.events import Request
from scheduler.core.fairness import Account
from scheduler.core.sequence import IllegalMove, Sequence, Status
from tests.scheduler.core.fake_worker import token_column


def taken(calendar: DecodeCalendar) -> list[int] | None:
    change = calendar.take_change()
    return None if change is None else [int(slot) for slot in change]


def make_sequence() -> Sequence:
    request = Request(1, 1, token_column([1]), 1, 4, 0)
    return Sequence(request, 1, 0, (0.0, 0), 0.0, None, Account("", 0, 0.0))


@pytest.mark.parametrize(
    ("path", "illegal"),
    [
        ([], Status.WAITING),
        ([Status.RUNNING], Status.RUNNING),
        ([Status.FINISHED], Status.WAITING),
        ([Status.FINISHED], Status.RUNNING),
        ([Status.RUNNING, Status.FINISHED], Status.FINISHED),
    ],
)
def test_an_illegal_move_raises_and_changes_nothing(path: list[Status], illegal: Status) -> None:
    sequence = make_sequence()
    for status in path:
        sequence.move(status)
    before = sequence.status
    with pytest.raises(IllegalMove):
        sequence.move(illegal)
    assert sequence.status is before


def test_a_budget_cannot_be_overdrawn() -> None:
    budget = StepBudget(tokens=2, slots=1, blocks=1)
    budget.spend(tokens=2)
    assert not budget.fits(tokens=1, slots=0, blocks=0)
    with pytest.raises(AssertionError):
        budget.spend(tokens=1)


def test_block_zero_is_never_handed_out() -> None:
    pool = BlockPool(3, keeps_prefixes=True)
    assert sorted(pool.allocate(3)) == [1, 2, 3]
    with pytest.raises(AssertionError):
        pool.allocate(1)


def test_a_cached_block_comes_back_to_life_or_is_evicted() -> None:
    pool = BlockPool(2, keeps_prefixes=True)
    blocks = pool.allocate(2)
    pool.register(blocks[0], b"head")
    pool.register(blocks[1], b"tail")
    pool.release(blocks)
    assert (pool.num_free, pool.num_cached, pool.num_available) == (0, 2, 2)
    pool.acquire(pool.match([b"head"], 1))
    assert pool.allocate(1) == [blocks[1]], "the tail is evicted"
    assert pool.match([b"head", b"tail"], 2) == [blocks[0]]
    pool.check_integrity({blocks[0]: 1, blocks[1]: 1})


def test_two_blocks_with_one_content_are_one_in_the_index() -> None:
    pool = BlockPool(2, keeps_prefixes=True)
    first, second = pool.allocate(2)
    pool.register(first, b"same")
    pool.register(second, b"same")
    pool.release([second])
    assert (pool.num_free, pool.num_cached) == (1, 0)
    assert pool.match([b"same"], 1) == [first]


def test_a_prefix_somebody_relies_on_is_not_forgotten() -> None:
    pool = BlockPool(2, keeps_prefixes=True)
    [block] = pool.allocate(1)
    pool.register(block, b"x")
    pool.acquire([block])
    pool.forget(b"x")
    assert pool.match([b"x"], 1) == [block]
    pool.release([block])
    pool.forget(b"x")
    assert pool.match([b"x"], 1) == []
    pool.release([block])
    assert (pool.num_free, pool.num_cached) == (2, 0)


def test_names_depend_on_seed_root_and_every_token_before() -> None:
    request = Request(1, 1, token_column(range(8)), 8, 4, 0)
    space = HashSpace("r", 4)

    def names(
        seed: bytes, tokens: Iterable[int], space: HashSpace = space, private: int | None = None
    ) -> list[bytes]:
        hasher = BlockHasher(seed)
        chain = HashChain(space, hasher.root(space, request, private))
        hasher.cover(chain, token_column([*tokens]))
        return chain.keys

    base = names(b"s", range(8))
    assert [len(name) for name in base] == [16, 16]
    assert names(b"s", range(11)) == base, "only full blocks have names"
    assert names(b"s", [*range(4), 9, 9, 9, 9])[0] == base[0]
    for other in (
        names(b"t", range(8)),
        names(b"s", [9, *range(1, 8)]),
        names(b"s", range(8), HashSpace("q", 4)),
        names(b"s", range(8), private=0),
    ):
        assert not set(other) & set(base)


def test_the_calendar_knows_crossings_and_departures_in_advance() -> None:
    calendar = DecodeCalendar(num_slots=4, block_size=4)
    calendar.enter(2, step=10, position=6, last_position=9)
    calendar.enter(1, step=10, position=8, last_position=30)
    crossings = {step: calendar.crossing(step) for step in range(10, 15)}
    assert crossings == {10: [1], 11: [], 12: [2], 13: [], 14: [1]}
    assert [calendar.departing(step) for step in (13, 14)] == [(), (2,)]
    assert (calendar.position(2, 12), len(calendar)) == (8, 2)
    assert taken(calendar) == [1, 2]
    assert taken(calendar) is None
    calendar.leave(2)
    calendar.leave(2)
    assert calendar.departing(14) == ()
    assert taken(calendar) == [1]
    calendar.check_integrity()
