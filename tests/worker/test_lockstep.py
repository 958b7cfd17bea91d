"""Ranks that agree: whatever breaks when, all executors see the same messages in the same order."""

from collections import deque
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from worker.lockstep import Deliver, Follower, Leader, Lockstep, Message
from worker.pipe import END


@dataclass
class Rank:
    """A transport's part, what its executor saw, and what is under way to it from siblings."""

    lockstep: Lockstep
    seen: list[bytes]
    inboxes: list[deque[bytes]]
    stream: int = -1
    """Which of the scheduler's attachments its stream is of."""
    num_read: int = 0
    taken: set[tuple[int, int]] = field(default_factory=set)

    def hear_one(self, sibling: int) -> None:
        if self.inboxes[sibling]:
            self.lockstep.hear(sibling, self.inboxes[sibling].popleft())


def replica(world_size: int) -> list[Rank]:
    """Rank 0 and its followers, joined by queues."""
    to_leader: list[deque[bytes]] = [deque() for _ in range(1, world_size)]
    to_followers: list[deque[bytes]] = [deque() for _ in range(1, world_size)]
    seen: list[list[bytes]] = [[] for _ in range(world_size)]
    leader = Leader([inbox.append for inbox in to_followers], into(seen[0]))
    ranks = [Rank(leader, seen[0], to_leader)]
    for index in range(1, world_size):
        follower = Follower(to_leader[index - 1].append, into(seen[index]))
        ranks.append(Rank(follower, seen[index], [to_followers[index - 1]]))
    return ranks


def into(seen: list[bytes]) -> Deliver:
    return lambda message: seen.append(message.data)


def message(stream: int, index: int) -> Message:
    """Plans of different attachments may well be the same bytes; their Welcomes never are."""
    return Message(b"welcome %d" % stream if index == 0 else b"plan %d" % index, stream, index == 0)


def settle(ranks: list[Rank]) -> None:
    """Everything that is under way between siblings arrives."""
    while any(inbox for rank in ranks for inbox in rank.inboxes):
        for rank in ranks:
            for sibling in range(len(rank.inboxes)):
                rank.hear_one(sibling)


def test_a_rank_alone_sees_what_comes() -> None:
    (rank,) = replica(1)
    for index in range(3):
        rank.lockstep.take(message(0, index))
    assert rank.seen == [b"welcome 0", b"plan 1", b"plan 2"]
    rank.lockstep.ask_end()
    assert rank.seen[-1] == END
    assert rank.lockstep.has_ended


def test_nobody_sees_what_a_rank_lacks() -> None:
    first, second, third = replica(3)
    for rank in (first, second):
        for index in range(3):
            rank.lockstep.take(message(0, index))
    for index in range(2):
        third.lockstep.take(message(0, index))
    settle([first, second, third])
    assert first.seen == second.seen == third.seen == [b"welcome 0", b"plan 1"]
    # The stream of the third breaks before "plan 2"; all attach again.
    for rank in (third, first, second):
        rank.lockstep.take(message(1, 0))
    settle([first, second, third])
    assert first.seen == second.seen == third.seen == [b"welcome 0", b"plan 1", b"welcome 1"]


def test_all_end_when_one_wants_to_and_after_the_same_message() -> None:
    first, second = replica(2)
    for rank in (first, second):
        rank.lockstep.take(message(0, 0))
    second.lockstep.ask_end()
    second.lockstep.ask_end()
    settle([first, second])
    for rank in (first, second):
        rank.lockstep.take(message(0, 1))
    settle([first, second])
    assert first.seen == second.seen == [b"welcome 0", END]
    assert first.lockstep.has_ended
    assert second.lockstep.has_ended


@given(st.integers(2, 4), st.data())
def test_executors_agree_whatever_breaks_when(world_size: int, data: st.DataObject) -> None:
    ranks = replica(world_size)
    written = [0] * 4  # messages that the scheduler has written in each attachment
    for _ in range(data.draw(st.integers(0, 60))):
        rank = ranks[data.draw(st.integers(0, world_size - 1))]
        match data.draw(st.sampled_from(["read", "hear", "hear", "write", "attach", "end"])):
            case "write":
                written[max(r.stream for r in ranks)] += 1
            case "attach" if rank.stream < 3:  # its stream breaks; perhaps it skips an attachment
                rank.stream = data.draw(st.integers(rank.stream + 1, 3))
                rank.num_read = 0
            case "read" if rank.stream >= 0 and rank.num_read <= written[rank.stream]:
                rank.lockstep.take(message(rank.stream, rank.num_read))
                rank.taken.add((rank.stream, rank.num_read))
                rank.num_read += 1
            case "hear":
                rank.hear_one(data.draw(st.integers(0, len(rank.inboxes) - 1)))
            case "end" if data.draw(st.booleans()):
                rank.lockstep.ask_end()
        for other in ranks[1:]:  # nobody is ever ahead of the leader
            assert other.seen == ranks[0].seen[: len(other.seen)]
    settle(ranks)
    for other in ranks[1:]:
        assert other.seen == ranks[0].seen
    held_by_all = set.intersection(*(rank.taken for rank in ranks))
    assert len([data for data in ranks[0].seen if data != END]) <= len(held_by_all)


@given(st.integers(2, 4), st.data())
def test_the_newest_attachment_gets_through(world_size: int, data: st.DataObject) -> None:
    ranks = replica(world_size)
    for rank in ranks:  # each got some of the first attachment
        for index in range(data.draw(st.integers(0, 4))):
            rank.lockstep.take(message(0, index))
    expected = [message(1, index) for index in range(4)]
    for rank in data.draw(st.permutations(ranks)):
        for item in expected:
            rank.lockstep.take(item)
    settle(ranks)
    for rank in ranks:
        assert rank.seen[-4:] == [item.data for item in expected]
