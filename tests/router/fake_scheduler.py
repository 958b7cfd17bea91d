"""A scheduler with a worker inside: a real gRPC server whose model repeats the prompt for ever.

Output token i of a sequence is prompt token i, from the start again when the prompt is over. So
what a client must get is known, and a sequence that is submitted anew with its tokens goes on where
it was. A stop token of the request ends it, as on a device.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import numpy as np

from protos.quire.v1 import sampling_pb2, scheduler_pb2, scheduler_pb2_grpc
from tests.gateway.tiny_model import MAX_MODEL_LEN

Context = grpc.aio.ServicerContext[scheduler_pb2.ConnectRequest, scheduler_pb2.ConnectResponse]


@dataclass(slots=True)
class Running:
    """One sequence."""

    sequence_id: int
    tokens: list[int]
    num_prompt_tokens: int
    submit: scheduler_pb2.Submit
    says: list[int] | None = None
    """In place of the prompt."""
    score_from: int = 0
    """The next token of the prompt to be scored; 0: none is."""

    @property
    def wants_vector(self) -> bool:
        return self.submit.max_tokens == 0

    @property
    def num_output_tokens(self) -> int:
        return len(self.tokens) - self.num_prompt_tokens

    def step(self) -> int:
        """The next token."""
        text = self.says or self.tokens[: self.num_prompt_tokens]
        token = text[self.num_output_tokens % len(text)]
        self.tokens.append(token)
        return token

    def finish_reason(self) -> sampling_pb2.FinishReason | None:
        if self.tokens[-1] in self.submit.sampling.stop_token_ids:
            return sampling_pb2.FINISH_REASON_STOP
        if self.num_output_tokens == self.submit.max_tokens:
            return sampling_pb2.FINISH_REASON_LENGTH
        return None

    def finished(self, reason: sampling_pb2.FinishReason) -> scheduler_pb2.Finished:
        return scheduler_pb2.Finished(
            sequence_id=self.sequence_id,
            reason=reason,
            num_prompt_tokens=self.num_prompt_tokens,
            num_output_tokens=self.num_output_tokens,
            num_cached_tokens=self.num_prompt_tokens - 1,
        )


def vector_of(tokens: list[int], dim: int) -> bytes:
    """How many tokens, their sum, and zeros; as no real vector, it has another length than 1."""
    return np.array([len(tokens), sum(tokens), *[0] * dim][:dim], "<f4").tobytes()


@dataclass
class FakeScheduler(scheduler_pb2_grpc.SchedulerServiceServicer):
    """What tests set and see; everything happens on the test's event loop."""

    replica_ids: list[str] = field(default_factory=lambda: ["r0"])
    """Who is attached; the first one computes everything."""
    num_generated_tokens: dict[str, int] = field(default_factory=dict)
    """By replica, since it attached."""
    kv_blocks: int = 1 << 20
    model_name: str = "tiny"
    max_model_len: int = MAX_MODEL_LEN
    vocab_size: int = 400
    embedding_dim: int = 0
    """Above 0: prompts that want their vector get `vector_of`."""
    is_encoder: bool = False
    draining: bool = False
    drains_on_submit: bool = False
    """An operator begins to as a request arrives."""
    status_interval_s: float = 1.0
    mute: bool = False
    """Says nothing any more, and keeps the stream open."""
    last_seen_s: float = 0.1
    step_age_s: float | None = None
    step_patience_s: float = 60.0
    deaf_to_finish: bool = False
    """Notes that a stop string matched, and goes on."""
    deaf_to_deadlines: bool = False
    """Goes on with what should have ended."""
    hold_canaries: bool = False
    hold_vectors: bool = False
    hold_at: int | None = None
    """Sequences stop for as long as they have so many output tokens."""
    doubts: list[float] = field(default_factory=lambda: [1.0])
    """What the logprobs of the samples of a request are multiplied with, in turn."""
    scores_at_once: int = 3
    """Tokens of a prompt that a step scores; no output comes before all are."""
    hold_scores_at: int | None = None
    """Sequences stop while this token of their prompt is the next to be scored."""
    loses_scores: bool = False
    """Goes on as if they had been told."""
    refusal: scheduler_pb2.Refusal | None = None
    """The answer to every submission."""
    says: list[int] | None = None
    """What sequences say in place of their prompts."""
    error: str | None = None
    """Every sequence ends at its first token with this error."""
    submits: list[scheduler_pb2.Submit] = field(default_factory=list)
    """All but canaries."""
    aborted: list[int] = field(default_factory=list)
    finishes: list[tuple[int, int]] = field(default_factory=list)
    """Sequence and number of tokens."""
    incarnations_left: list[int] = field(default_factory=list)
    """In which the router said that it is about to end."""
    router_ids: list[str] = field(default_factory=list)
    """Of each stream."""
    num_canaries: int = 0
    num_vectors: int = 0
    num_steps: int = 0
    num_statuses: int = 0
    incarnation: int = 0
    running: dict[int, Running] = field(default_factory=dict)
    _call: asyncio.Task[None] | None = None
    _outbox: "asyncio.Queue[scheduler_pb2.ConnectResponse] | None" = None

    async def Connect(  # noqa: N802 - gRPC's name
        self, requests: AsyncIterator[scheduler_pb2.ConnectRequest], context: Context
    ) -> None:
        """One router."""
        self.incarnation += 1
        self.running.clear()
        self.num_generated_tokens.clear()
        outbox: asyncio.Queue[scheduler_pb2.ConnectResponse] = asyncio.Queue()
        self._outbox = outbox
        hello = await anext(aiter(requests))
        assert hello.hello.protocol_version == 1
        self.router_ids.append(hello.hello.router_id)
        welcome = scheduler_pb2.RouterWelcome(incarnation=self.incarnation)
        await context.write(scheduler_pb2.ConnectResponse(welcome=welcome))
        self.tell_status()
        self._call = asyncio.create_task(self._talk(requests, context, outbox))
        try:
            await self._call
        except asyncio.CancelledError:
            if not context.cancelled():
                await context.abort(grpc.StatusCode.UNAVAILABLE, "killed")
            raise

    def kill(self) -> None:
        """The stream breaks, and everything is forgotten."""
        assert self._call is not None
        self._call.cancel()

    def tell_status(self) -> None:
        """Says how the cell is now."""
        replicas = [
            scheduler_pb2.ReplicaStatus(
                replica_id=replica_id,
                epoch=self.incarnation,
                last_seen_s=self.last_seen_s,
                num_blocks_total=self.kv_blocks,
                block_size=16,
                step_age_s=self.step_age_s,
                step_patience_s=self.step_patience_s,
                num_generated_tokens=self.num_generated_tokens.get(replica_id, 0),
                num_vectors=self.num_vectors,
                num_steps=self.num_steps,
            )
            for replica_id in self.replica_ids
        ]
        status = scheduler_pb2.CellStatus(replicas=replicas, draining=self.draining)
        status.model.name = self.model_name
        status.model.max_model_len = self.max_model_len
        status.model.vocab_size = self.vocab_size
        status.model.embedding_dim = self.embedding_dim
        status.model.is_encoder = self.is_encoder
        assert self._outbox is not None
        self._outbox.put_nowait(scheduler_pb2.ConnectResponse(status=status))

    async def _talk(
        self,
        requests: AsyncIterator[scheduler_pb2.ConnectRequest],
        context: Context,
        outbox: "asyncio.Queue[scheduler_pb2.ConnectResponse]",
    ) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._read(requests, outbox))
            group.create_task(self._step(outbox))
            group.create_task(self._tell_statuses())
            while True:
                message = await outbox.get()
                if not self.mute:
                    await context.write(message)

    async def _tell_statuses(self) -> None:
        while True:
            await asyncio.sleep(self.status_interval_s)
            self.tell_status()
            self.num_statuses += 1

    async def _read(
        self,
        requests: AsyncIterator[scheduler_pb2.ConnectRequest],
        outbox: "asyncio.Queue[scheduler_pb2.ConnectResponse]",
    ) -> None:
        async for request in requests:
            match request.WhichOneof("message"):
                case "submit":
                    self._submit(request.submit, outbox)
                case "abort":
                    for sequence_id in request.abort.sequence_id:
                        self.aborted.append(sequence_id)
                        self._end(sequence_id, sampling_pb2.FINISH_REASON_ABORT, outbox)
                case "leaving":
                    self.incarnations_left.append(self.incarnation)
                case "finish":
                    finish = request.finish
                    self.finishes.append((finish.sequence_id, finish.num_tokens))
                    if not self.deaf_to_finish:
                        self._end(finish.sequence_id, sampling_pb2.FINISH_REASON_STOP, outbox)

    def _submit(
        self,
        submit: scheduler_pb2.Submit,
        outbox: "asyncio.Queue[scheduler_pb2.ConnectResponse]",
    ) -> None:
        if submit.probe:
            self.num_canaries += 1
        else:
            self.submits.append(submit)
            if self.drains_on_submit:
                self.draining = True
                self.tell_status()
            if self.refusal is not None:
                refusal = scheduler_pb2.Refusal()
                refusal.CopyFrom(self.refusal)
                refusal.sequence_id = submit.sequence_id
                outbox.put_nowait(scheduler_pb2.ConnectResponse(refusal=refusal))
                return
        tokens = np.frombuffer(submit.token_id, "<i4").tolist()
        for sequence_id in range(submit.sequence_id, submit.sequence_id + submit.num_samples):
            asks = submit.sampling.HasField("num_prompt_logprobs")
            asks = asks and sequence_id == submit.sequence_id and not self.loses_scores
            self.running[sequence_id] = Running(
                sequence_id,
                list(tokens),
                submit.num_prompt_tokens,
                submit,
                self.says,
                submit.score_from if asks else 0,
            )
            if submit.deadline_s and not self.deaf_to_deadlines:
                timeout = sampling_pb2.FINISH_REASON_TIMEOUT
                asyncio.get_running_loop().call_later(
                    submit.deadline_s, self._end, sequence_id, timeout, outbox
                )

    def _end(
        self,
        sequence_id: int,
        reason: sampling_pb2.FinishReason,
        outbox: "asyncio.Queue[scheduler_pb2.ConnectResponse]",
    ) -> None:
        if sequence := self.running.pop(sequence_id, None):
            frame = scheduler_pb2.Frame(finished=[sequence.finished(reason)])
            outbox.put_nowait(scheduler_pb2.ConnectResponse(frame=frame))

    async def _step(self, outbox: "asyncio.Queue[scheduler_pb2.ConnectResponse]") -> None:
        """One token of every sequence, again and again."""
        while True:
            await asyncio.sleep(0.001 if self.running else 0.005)
            ready = [sequence for sequence in self.running.values() if not self._is_held(sequence)]
            self._embed([sequence for sequence in ready if sequence.wants_vector], outbox)
            ready = [sequence for sequence in ready if not sequence.wants_vector]
            if ready and self.replica_ids:
                scoring = [s for s in ready if 0 < s.score_from < s.num_prompt_tokens]
                frame = self._frame([s for s in ready if s not in scoring])
                self._add_scores(frame, scoring)
                outbox.put_nowait(scheduler_pb2.ConnectResponse(frame=frame))
                self._count(len(ready) - len(scoring))

    def _embed(
        self,
        sequences: list[Running],
        outbox: "asyncio.Queue[scheduler_pb2.ConnectResponse]",
    ) -> None:
        frame = scheduler_pb2.Frame()
        for sequence in sequences:
            del self.running[sequence.sequence_id]
            reason = sampling_pb2.FINISH_REASON_STOP
            if self.error is not None and not self._is_canary(sequence):
                reason = sampling_pb2.FINISH_REASON_ERROR
            finished = sequence.finished(reason)
            finished.message = self.error or ""
            finished.vector = vector_of(sequence.tokens, self.embedding_dim)
            frame.finished.append(finished)
        if sequences:
            outbox.put_nowait(scheduler_pb2.ConnectResponse(frame=frame))
            self.num_vectors += len(sequences)
            self.tell_status()

    def _count(self, num_tokens: int) -> None:
        """The first tokens of a replica are told at once."""
        computing = self.replica_ids[0]
        first = computing not in self.num_generated_tokens
        self.num_generated_tokens[computing] = (
            self.num_generated_tokens.get(computing, 0) + num_tokens
        )
        if first:
            self.tell_status()

    def _frame(self, sequences: list[Running]) -> scheduler_pb2.Frame:
        frame = scheduler_pb2.Frame(
            sequence_id=np.array([s.sequence_id for s in sequences], "<u4").tobytes(),
            token_id=np.array([s.step() for s in sequences], "<i4").tobytes(),
        )
        self._add_logprobs(frame, sequences)
        for sequence in sequences:
            reason = sequence.finish_reason()
            if self.error is not None and not self._is_canary(sequence):
                reason = sampling_pb2.FINISH_REASON_ERROR
            if reason is not None:
                finished = sequence.finished(reason)
                finished.message = self.error or ""
                frame.finished.append(finished)
                del self.running[sequence.sequence_id]
        return frame

    def _add_logprobs(self, frame: scheduler_pb2.Frame, sequences: list[Running]) -> None:
        """Rows of those who asked: minus the tokens so far, and as alternatives 10, 11, ..."""
        rows = [
            (row, s.submit.sampling.num_logprobs)
            for row, s in enumerate(sequences)
            if s.submit.sampling.HasField("num_logprobs")
        ]
        if not rows:
            return
        columns = frame.logprobs
        columns.row = np.array([row for row, _ in rows], "<i4").tobytes()
        logprobs = [
            -sequences[row].num_output_tokens * self._doubt(sequences[row]) for row, _ in rows
        ]
        columns.logprob = np.array(logprobs, "<f4").tobytes()
        columns.rank = np.ones(len(rows), "<i4").tobytes()
        columns.num_top = np.array([count for _, count in rows], "<i4").tobytes()
        top = [10 + i for _, count in rows for i in range(count)]
        columns.top_token_id = np.array(top, "<i4").tobytes()
        columns.top_logprob = np.array([-float(token) for token in top], "<f4").tobytes()

    def _add_scores(self, frame: scheduler_pb2.Frame, sequences: list[Running]) -> None:
        """Minus the index of the token, and as alternatives the token itself, 10, 11, ..."""
        runs = [
            range(s.score_from, min(s.score_from + self.scores_at_once, s.num_prompt_tokens))
            for s in sequences
        ]
        if not runs:
            return
        frame.scores.sequence_id = np.array([s.sequence_id for s in sequences], "<u4").tobytes()
        frame.scores.start = np.array([run.start for run in runs], "<i4").tobytes()
        frame.scores.length = np.array([len(run) for run in runs], "<i4").tobytes()
        rows = [(s, index) for s, run in zip(sequences, runs, strict=True) for index in run]
        counts = [s.submit.sampling.num_prompt_logprobs for s, _ in rows]
        top = [
            (s.tokens[index], -float(index)) if i == 0 else (9 + i, -100.0 - i)
            for (s, index), count in zip(rows, counts, strict=True)
            for i in range(count)
        ]
        columns = frame.scores.logprobs
        columns.logprob = np.array([-float(index) for _, index in rows], "<f4").tobytes()
        columns.rank = np.ones(len(rows), "<i4").tobytes()
        columns.num_top = np.array(counts, "<i4").tobytes()
        columns.top_token_id = np.array([token for token, _ in top], "<i4").tobytes()
        columns.top_logprob = np.array([logprob for _, logprob in top], "<f4").tobytes()
        for sequence, run in zip(sequences, runs, strict=True):
            sequence.score_from = run.stop

    def _doubt(self, sequence: Running) -> float:
        return self.doubts[(sequence.sequence_id - sequence.submit.sequence_id) % len(self.doubts)]

    def _is_held(self, sequence: Running) -> bool:
        if self._is_canary(sequence):
            return self.hold_canaries
        if sequence.wants_vector:
            return self.hold_vectors
        if sequence.score_from and sequence.score_from == self.hold_scores_at:
            return True
        return sequence.num_output_tokens == self.hold_at

    @staticmethod
    def _is_canary(sequence: Running) -> bool:
        return sequence.submit.probe


@asynccontextmanager
async def fake_scheduler() -> AsyncIterator[tuple[FakeScheduler, str]]:
    """The scheduler and its address."""
    scheduler = FakeScheduler()
    server = grpc.aio.server()
    scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server(scheduler, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield scheduler, f"127.0.0.1:{port}"
    finally:
        await server.stop(grace=None)
