"""Even shares for tenants, on what their requests really cost; and that nobody starves."""

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scheduler.core.events import FinishReason
from scheduler.core.fairness import CHARGE_EVERY, Account, Accounts
from scheduler.core.sequence import Sequence as Record
from scheduler.core.waiting import WaitingQueue
from tests.scheduler.core.cell import Cell, Key
from tests.scheduler.core.fake_worker import token_column


def served(cell: Cell, tenant: str) -> float:
    return cell.scheduler._accounts._active[tenant].served


def order_of_admission(cell: Cell, keys: Sequence[Key], name: str = "a") -> list[int]:
    """Indices of the requests in the order in which they are admitted, until all have ended."""
    order = []
    while cell.unfinished():
        plan = cell.plan(name)
        order += [list(keys).index(cell._key_of(a.sampling, a.seed)) for a in plan.admit]
        cell.deliver(name)
    return order


def test_tenants_take_turns_whoever_came_first() -> None:
    cell = Cell(max_num_seqs=1)
    keys = [cell.submit([1, 2], 4, tenant="flood") for _ in range(4)]
    keys += [cell.submit([3, 4], 4, tenant="other") for _ in range(2)]
    cell.attach()
    assert order_of_admission(cell, keys) == [0, 4, 1, 5, 2, 3]


def test_within_a_tenant_the_policy_decides() -> None:
    cell = Cell(max_num_seqs=1, policy="priority")
    keys = [cell.submit([1, 2], 4, tenant="a", priority=priority) for priority in (1, 0)]
    keys += [cell.submit([1, 2], 4, tenant="b", priority=priority) for priority in (9, 8)]
    cell.attach()
    assert order_of_admission(cell, keys) == [1, 3, 0, 2]


def test_what_is_charged_is_what_was_computed_and_twice_the_output() -> None:
    cell = Cell()
    cell.attach(block_size=4)
    cell.submit([1] * 9, 5, tenant="a")
    cell.submit([7], 30, tenant="a")
    for _ in range(5):
        cell.step()
    cell.scheduler._replicas["a"].charge_outputs()
    assert served(cell, "a") == 9 + 2 * 5 + 1 + 2 * 5
    cell.submit([1] * 10, 2, tenant="a")
    for _ in range(2):
        cell.step()
    assert served(cell, "a") >= 20 + 2 + 2 * 2, "two blocks of four were cached"
    cell.run()
    [(idle, _)] = cell.scheduler._accounts._idle_in_order or [(0.0, "")]
    assert idle in (0.0, 9 + 10 + 1 + 60 + 2 + 4)


def test_nothing_is_charged_twice_for_being_computed_again() -> None:
    cell = Cell()
    cell.attach()
    cell.submit([1] * 9, 30, tenant="a")
    for _ in range(6):
        cell.step()
    cell.schedule()
    cell.detach(blame=False)
    cell.attach()
    for _ in range(4):
        cell.step()
    cell.scheduler._replicas["a"].charge_outputs()
    assert served(cell, "a") == 9 + 2 * 10


def test_a_counter_lags_by_a_bounded_number_of_steps() -> None:
    cell = Cell()
    cell.attach()
    cell.submit([1], 40, tenant="a")
    for i in range(40):
        cell.step()
        if cell.unfinished():
            assert served(cell, "a") >= 1 + 2 * (i + 1 - CHARGE_EVERY)


def test_a_tenant_that_comes_back_is_lifted_to_an_even_share() -> None:
    accounts = Accounts(1.0, 2.0)
    busy, idle = accounts.open("busy"), accounts.open("idle")
    accounts.close(idle)
    accounts.charge_input(busy, 100)
    assert accounts.open("idle").served == 100
    assert accounts.open("new").served == 100


def test_a_tenant_cannot_shed_what_it_was_served_by_leaving() -> None:
    accounts = Accounts(1.0, 2.0)
    greedy, other = accounts.open("greedy"), accounts.open("other")
    accounts.charge_output(greedy, 50)
    accounts.close(greedy)
    assert accounts.open("greedy").served == 100
    assert other.served == 0


def test_who_comes_when_nobody_is_there_starts_where_the_last_one_left() -> None:
    accounts = Accounts(1.0, 2.0)
    last = accounts.open("last")
    accounts.charge_input(last, 70)
    accounts.close(last)
    assert accounts.open("new").served == 70
    assert accounts.open("last").served == 70


def test_memory_does_not_grow_with_the_tenants_seen() -> None:
    accounts = Accounts(1.0, 2.0)
    accounts.open("stays")
    for i in range(5000):
        account = accounts.open(f"tenant {i}")
        accounts.charge_input(account, i)
        accounts.close(account)
        accounts.check_integrity()
    kept = (accounts._idle, accounts._idle_in_order, accounts._by_index)
    assert max(map(len, kept)) <= 1024 + 1


def test_one_that_comes_and_goes_makes_nobody_be_forgotten() -> None:
    accounts = Accounts(1.0, 2.0)
    for _ in range(200):
        accounts.open("stays")
    for i in range(99):
        accounts.open(f"active {i}")
    greedy = accounts.open("greedy")
    accounts.charge_output(greedy, 500_000)
    accounts.close(greedy)
    for _ in range(4000):
        visitor = accounts.open("visitor")
        accounts.charge_output(visitor, 200)
        accounts.close(visitor)
        accounts.check_integrity()
    assert accounts.open("greedy").served == 1_000_000


def test_a_queue_does_not_grow_with_the_tenants_seen() -> None:
    queue = WaitingQueue()
    for i in range(2000):
        sequence = _record(i, Account(f"tenant {i}", i, float(i)))
        queue.push(sequence, 1)
        if i:
            queue.remove(sequence)
    queue.check_integrity()
    assert len(queue._heap) < 100


def _record(serial: int, account: Account) -> Record:
    from scheduler.core.events import Request

    request = Request(1, serial, token_column([1]), 1, 4, 0)
    return Record(request, serial, 0, (float(serial), serial), 0.0, None, account)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    events=st.lists(
        st.one_of(
            st.tuples(st.just("push"), st.integers(0, 4)),
            st.tuples(st.just("serve"), st.integers(1, 9)),
            st.tuples(st.just("remove"), st.integers(0, 30)),
        ),
        max_size=60,
    )
)
def test_a_queue_always_has_the_first_of_the_least_served(
    events: list[tuple[str, int]],
) -> None:
    queue, accounts, waiting = WaitingQueue(), Accounts(1.0, 1.0), list[Record]()
    named = [accounts.open(f"tenant {i}") for i in range(5)]
    for serial, (event, number) in enumerate(events):
        if event == "push":
            waiting.append(_record(serial, named[number]))
            queue.push(waiting[-1], 1)
        elif event == "serve" and waiting:
            first = queue.first()
            accounts.charge_input(first.account, number)
            queue.remove(first)
            waiting.remove(first)
        elif event == "remove" and waiting:
            queue.remove(waiting.pop(number % len(waiting)))
        queue.check_integrity()
        if waiting:
            least = min(s.account.served for s in waiting)
            assert queue.first().account.served == least
            own = [s for s in waiting if s.account is queue.first().account]
            assert queue.first() is min(own, key=lambda s: s.order)


def test_a_request_goes_where_its_turn_comes_soonest() -> None:
    cell = Cell()
    for name in ("a", "b"):
        cell.attach(name, max_num_seqs=1)
        cell.submit([9], 30, tenant="x")
        cell.step(name)
    first, second = sorted(cell.links)
    long = [cell.submit([i] * 20, 4, tenant="flood") for i in range(1, 5)]
    few = [cell.submit([5] * 10, 4, tenant=f"t{i}") for i in range(2)]
    homes = {cell.scheduler._sequences.find(*key).replica for key in [*long, *few]}  # type: ignore[union-attr]
    assert homes == {first, second}
    cell.run(depth=2)
    cell.assert_at_rest()


def test_one_that_waits_takes_a_slot_of_a_tenant_with_more_than_its_share() -> None:
    cell = Cell()
    cell.attach(max_num_seqs=4)
    flood = [cell.submit([i + 1] * 3, 20, tenant="flood") for i in range(6)]
    for _ in range(3):
        cell.step()
    few = [cell.submit([9, i], 20, tenant="few") for i in range(3)]
    admitted = []
    for _ in range(8):
        admitted += [cell._key_of(a.sampling, a.seed) for a in cell.step().admit]
    assert admitted == few[:2], "half of the slots, and no more"
    state = cell.scheduler.state()
    assert (state.num_running, state.num_preemptions) == (4, 2)
    cell.run()
    assert cell.end(flood[0]).num_preemptions == 0
    assert all(cell.end(key).reason is FinishReason.LENGTH for key in [*flood, *few])
    cell.assert_at_rest()


def test_one_that_waits_takes_blocks_of_a_tenant_with_more_than_its_share() -> None:
    cell = Cell(watermark=0.0)
    cell.attach(num_blocks=12, block_size=4)
    flood = [cell.submit([i + 1] * 12, 12, tenant="flood") for i in range(4)]
    while cell.scheduler.state().num_blocks_free:
        cell.step()
    other = cell.submit([9] * 12, 4, tenant="other")
    for _ in range(4):
        cell.step()
    assert cell.output(other)
    cell.run()
    assert cell.end(flood[0]).num_preemptions == 0
    assert all(cell.end(key).reason is FinishReason.LENGTH for key in [*flood, other])


def test_a_long_prompt_leaves_room_in_each_step_for_a_tenant_served_less() -> None:
    cell = Cell()
    cell.attach(max_num_batched_tokens=8)
    cell.submit([1] * 40, 4, tenant="long")
    cell.step()
    other = cell.submit([2] * 4, 4, tenant="other")
    plan = cell.step()
    assert plan.chunk_length.tolist() == [4, 4]
    assert len(cell.output(other)) == 1
    assert cell.step().chunk_length.tolist() == [7], "the rest is not kept for nobody"
    cell.run()
    cell.assert_at_rest()


def test_room_in_a_step_is_not_kept_for_who_has_no_blocks() -> None:
    """Else the prompt that it waits for would never be computed to its end."""
    cell = Cell(watermark=0.0, enable_prefix_caching=False)
    cell.attach(num_blocks=24, block_size=1, max_num_batched_tokens=3)
    keys = [cell.submit([7] * 13, 1, tenant="first"), cell.submit([8] * 14, 1, tenant="second")]
    cell.run(depth=2)
    assert all(cell.end(key).reason is FinishReason.LENGTH for key in keys)
    cell.assert_at_rest()


def test_room_in_a_step_is_not_kept_for_who_waits_for_the_blocks_of_others() -> None:
    """Else neither of two prompts in the making would ever be computed to its end."""
    cell = Cell(watermark=0.0, enable_prefix_caching=False)
    cell.attach(num_blocks=24, block_size=1, max_num_batched_tokens=3)
    cell.submit([6], 1, tenant="second")
    keys = [cell.submit([7] * 15, 1, tenant="first"), cell.submit([8] * 14, 1, tenant="second")]
    cell.run(depth=1)
    assert all(cell.end(key).reason is FinishReason.LENGTH for key in keys)
    cell.assert_at_rest()


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    shape=st.tuples(st.integers(8, 14), st.integers(1, 4), st.integers(4, 16)),
    num_tenants=st.sampled_from([1, 3, 50]),
    quiet=st.lists(
        st.tuples(st.integers(1, 16), st.integers(1, 12), st.sampled_from("qr"), st.integers(0, 3)),
        min_size=1,
        max_size=4,
    ),
)
def test_nobody_starves(
    policy: str,
    shape: tuple[int, int, int],
    num_tenants: int,
    quiet: list[tuple[int, int, str, int]],
) -> None:
    """Whatever floods in, everyone ends before many of the flood were served."""
    cell = Cell(policy=policy, aging_s=0.01, watermark=0.0)
    num_blocks, max_num_seqs, budget = shape
    cell.attach(num_blocks=num_blocks, max_num_seqs=max_num_seqs, max_num_batched_tokens=budget)
    keys = [
        cell.submit([i + 1] * length, max_tokens, tenant=tenant, priority=priority)
        for i, (length, max_tokens, tenant, priority) in enumerate(quiet)
    ]
    num_flood = 0
    while not all(cell.watched[key].finished for key in keys):
        while cell.scheduler.state().num_waiting < 4:
            num_flood += 1
            tenant = f"flood {num_flood % num_tenants}"
            cell.submit([20 + num_flood % 30] * 5, 8, tenant=tenant, priority=-1)
        assert num_flood < 200
        for _ in range(2):
            cell.schedule()
        cell.deliver()
    assert all(cell.end(key).reason is FinishReason.LENGTH for key in keys)
