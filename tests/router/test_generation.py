"""What a call makes of its tokens, whatever the moment at which the scheduler leaves."""

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.errors import RequestError
from gateway.model import load_model
from gateway.options import Options
from gateway.output import FinishReason, Piece
from router.engine import MAX_VAIN_SCHEDULERS, Engine
from router.generation import Generation
from router.messages import CellStatus, ReplicaStatus, ServedModel, Submission
from router.metrics import Metrics
from router.permits import Permits
from router.response_store import ResponseStore

STOP = "zq"
MAX_MODEL_LEN = 512


class Uplink:
    """Remembers what it should send."""

    def __init__(self) -> None:
        self.submissions: list[Submission] = []
        self.aborted: list[int] = []

    def submit(self, submission: Submission) -> None:
        """`router.link.Uplink`."""
        self.submissions.append(submission)

    def abort(self, sequence_ids: Sequence[int]) -> None:
        """`router.link.Uplink`."""
        self.aborted += sequence_ids

    def finish(self, sequence_id: int, num_tokens: int) -> None:
        """`router.link.Uplink`."""
        raise AssertionError("the scheduler is away")

    def leave(self) -> None:
        """`router.link.Uplink`."""
        raise AssertionError("the router stays")


class Call:
    """Two samples that wait for a stop string, before an engine whose scheduler comes and goes."""

    def __init__(self, model_dir: Path) -> None:
        model = load_model(model_dir, None)
        metrics = Metrics(model.name, Permits(8, "x"), ResponseStore(0, 1), {})
        self.engine = Engine(model, metrics, scheduler_timeout_s=20)
        self.engine.uplink = self.uplink = Uplink()
        self.tokenizer = model.tokenizer
        self.request = model.build(
            self.tokens("x"),
            Options(max_tokens=30, n=2, stop=(STOP,), seed=1),
            MAX_MODEL_LEN,
            dice=random.Random(0),
            request_id="r",
            prompt_field="prompt",
        )

    def tokens(self, text: str) -> list[int]:
        """Of a text."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def scheduler_comes(self, incarnation: int) -> None:
        """And has a worker."""
        name, vocab_size = self.engine.model.name, self.tokenizer.vocab_size
        self.engine.welcomed(incarnation)
        self.engine.status(
            CellStatus(
                received_at=time.monotonic(),
                model=ServedModel(name, vocab_size, MAX_MODEL_LEN),
                replicas=(ReplicaStatus("r", 1, 10000, 0.1, None, 0.0, 1),),
                draining=False,
            )
        )

    def says(self, sequence_id: int, text: str) -> None:
        """The scheduler, token by token."""
        for token in self.tokens(text):
            self.engine.tokens([sequence_id], [token], {})

    @contextmanager
    def begun(self) -> Iterator[tuple[Generation, int, int]]:
        """The call, and the ids of its samples."""
        with self.engine.generate([self.request], time.monotonic()) as generation:
            first, second = (sample.sequence_id for sample in generation.samples)
            yield generation, first, second


@pytest.fixture
async def call(model_dir: Path) -> Call:
    made = Call(model_dir)
    made.scheduler_comes(1)
    return made


async def pieces_of(generation: Generation, *, whole: bool) -> list[Piece]:
    if whole:
        return [piece async for piece in generation.wholes()]
    return [piece async for batch in generation.batches() for piece in batch]


@pytest.mark.parametrize("whole", [False, True])
async def test_a_stop_that_is_read_while_the_scheduler_is_away_ends_one_sample_once(
    call: Call, whole: bool
) -> None:
    with call.begun() as (generation, first, second):
        call.says(first, "abzqcd")
        call.says(second, "a")
        call.engine.lost()
        reading = asyncio.create_task(pieces_of(generation, whole=whole))
        for _ in range(5):
            await asyncio.sleep(0)  # the reader has had its turn, and waits
        assert not reading.done()
        call.scheduler_comes(2)
        again = call.uplink.submissions[-1]
        assert (again.sequence_id, list(again.output_token_ids)) == (second, call.tokens("a"))
        call.says(second, "bzq")
        call.engine.lost()
        pieces = await asyncio.wait_for(reading, 20)
    ends = [(piece.index, piece.finish.reason) for piece in pieces if piece.finish is not None]
    assert ends == [(0, FinishReason.STOP), (1, FinishReason.STOP)]
    texts = ["".join(piece.text for piece in pieces if piece.index == index) for index in (0, 1)]
    assert texts == ["ab", "ab"]
    assert call.engine.num_samples == 0


async def test_a_call_that_cannot_be_submitted_leaves_nothing_behind(call: Call) -> None:
    def submit(submission: Submission) -> None:
        raise ValueError("too large")

    call.uplink.submit = submit  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="too large"), call.begun():
        raise AssertionError("it has begun")
    assert call.engine.num_samples == 0


async def test_a_call_with_which_every_scheduler_is_lost_ends(call: Call) -> None:
    """One that is brought forward may lose as many as there are."""
    with call.begun() as (generation, first, second):
        for incarnation in range(2, 2 + 2 * MAX_VAIN_SCHEDULERS):
            call.says(first, "a")
            call.says(second, "a")
            call.engine.lost()
            call.scheduler_comes(incarnation)
        assert call.engine.num_samples == 2
        for incarnation in range(100, 100 + MAX_VAIN_SCHEDULERS):
            assert call.engine.num_samples == 2
            call.engine.lost()
            call.scheduler_comes(incarnation)
        assert call.engine.num_samples == 0
        with pytest.raises(RequestError, match="6 schedulers in a row were lost with the request"):
            await pieces_of(generation, whole=False)
