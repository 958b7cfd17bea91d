"""Requests that must have ended by a given time."""

from scheduler.core.events import FinishReason
from tests.scheduler.core.cell import Cell

TIMEOUT = FinishReason.TIMEOUT


def test_a_queued_sequence_ends_at_its_deadline_and_says_so() -> None:
    cell = Cell()
    cell.attach(max_num_seqs=1)
    running, queued = cell.submit([1], 30), cell.submit([2], 30, deadline_s=2.0)
    cell.step()
    assert cell.expire() == []
    cell.now += 2.0
    [end] = cell.expire()
    assert cell.end(queued) is end
    assert (end.reason, end.num_output_tokens) == (TIMEOUT, 0)
    assert end.message == "timeout is 2 s; it passed before the request's turn came"
    assert cell.scheduler.state().num_expired == 1
    assert cell.unfinished() == [running]
    cell.run()
    cell.assert_at_rest()


def test_a_running_sequence_ends_with_the_tokens_it_has() -> None:
    cell = Cell()
    cell.attach()
    late, other = cell.submit([1] * 5, 30, deadline_s=1.0), cell.submit([2], 30)
    for _ in range(4):
        cell.step()
    cell.schedule()
    cell.now += 1.0
    [end] = cell.expire()
    assert cell.end(late) is end
    assert (end.reason, end.num_output_tokens) == (TIMEOUT, 4)
    assert "before the request was complete" in end.message
    cell.run()
    assert len(cell.output(other)) == 30
    cell.assert_at_rest()


def test_a_deadline_counts_from_acceptance_and_survives_a_lost_replica() -> None:
    cell = Cell()
    key = cell.submit([1], 30, deadline_s=3.0, num_samples=2)
    cell.now += 1.0
    cell.attach()
    cell.step()
    cell.schedule()
    cell.detach()
    cell.now += 1.9
    assert cell.expire() == []
    cell.now += 0.1
    assert len(cell.expire()) == 2
    assert [cell.end(key, i).reason for i in range(2)] == [TIMEOUT] * 2


def test_a_suspect_has_its_deadline_too() -> None:
    cell = Cell(max_losses=1)
    cell.attach()
    keys = [cell.submit([i + 1], 30, deadline_s=i + 1.0) for i in range(2)]
    cell.schedule()
    cell.detach()
    cell.attach()
    cell.step()
    cell.now += 2.0
    ended = cell.expire()
    assert ended == [cell.end(key) for key in keys]
    assert cell.scheduler.state().num_suspects == 0
    cell.run()
    cell.assert_at_rest()


def test_ends_come_in_the_order_of_deadlines() -> None:
    cell = Cell()
    keys = [cell.submit([1], 4, deadline_s=seconds) for seconds in (3.0, 1.0, 2.0)]
    cell.now += 5.0
    assert cell.expire() == [cell.end(keys[i]) for i in (1, 2, 0)]
    assert cell.scheduler.next_deadline() is None


def test_what_has_ended_is_not_kept_until_its_deadline() -> None:
    cell = Cell()
    cell.attach()
    for i in range(400):
        cell.abort(cell.submit([1 + i % 5], 4, deadline_s=3600.0))
    assert len(cell.scheduler._deadlines) < 100
