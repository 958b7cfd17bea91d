"""A worker without a model: it executes plans exactly as worker.proto says, and watches them.

In place of KV it remembers, for each position of each block, which prefix was written there. Every
row then checks that all positions it attends to hold precisely its own sequence's prefix. The next
token is a hash of seed and prefix, so it shows at once whether any history was mixed up.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from zlib import crc32

import numpy as np

from scheduler.core.decisions import Admission, Plan
from scheduler.core.events import (
    Capacity,
    FinishReason,
    Int32Column,
    Inventory,
    Request,
    StepResult,
)

EOS = 0


@dataclass(frozen=True)
class FakeSampling:
    """What the fake model knows of a request."""

    key: int
    """Names the request."""
    adapter: str = ""
    """Changes every KV entry, as a real one would."""
    eos_period: int = 0
    """One token in this many ends the sequence; 0: none does."""
    broken_at: int | None = None
    """Number of tokens at which the logits are not finite."""
    scores: bool = False
    """The prompt's tokens are to be scored."""
    crashes_at: int | None = None
    """The position that kills any worker which computes it."""


class WorkerCrash(Exception):
    """The worker is gone."""


def root(sampling: FakeSampling) -> int:
    """Name of the empty prefix."""
    return crc32(sampling.adapter.encode())


def extend(prefix: int, token: int) -> int:
    """Name of the prefix with one more token."""
    return hash((prefix, token))


def next_token(sampling: FakeSampling, seed: int, prefix: int) -> int:
    """What the fake model samples after a prefix."""
    draw = hash((seed, prefix, 17)) & 0xFFFFFFFF
    if sampling.eos_period and draw % sampling.eos_period == 0:
        return EOS
    return 1 + (draw >> 8) % 5


def suppose(sampling: FakeSampling, seed: int, prefix: int, most: int) -> list[int]:
    """What may follow a prefix: up to `most` tokens, each of which is wrong one time in four."""
    supposed: list[int] = []
    for _ in range(hash((seed, prefix)) % (most + 1)):
        token = next_token(sampling, seed, prefix)
        if hash((prefix, seed, 5)) % 4 == 0:
            token += 1
        supposed.append(token)
        prefix = extend(prefix, token)
    return supposed


def embed_alone(request: Request) -> int:
    """What stands for the vector of a prompt: the name of its prefix."""
    assert isinstance(request.sampling, FakeSampling)
    prefix = root(request.sampling)
    for token in request.token_ids.tolist():
        prefix = extend(prefix, token)
    return prefix


def generate_alone(request: Request, sample: int) -> list[int]:
    """All output tokens of a sample, with nobody else in the world."""
    sampling = request.sampling
    assert isinstance(sampling, FakeSampling)
    prefix = root(sampling)
    for token in request.token_ids.tolist():
        prefix = extend(prefix, token)
    output: list[int] = request.token_ids[request.num_prompt_tokens :].tolist()
    while len(output) < request.max_tokens:
        output.append(next_token(sampling, request.seed + sample, prefix))
        if output[-1] == EOS:
            break
        prefix = extend(prefix, output[-1])
    return output


@dataclass
class Tenant:
    """The mirror of one slot."""

    admission: Admission
    sampling: FakeSampling
    tokens: list[int]
    prefixes: list[int]
    """Name of the prefix that ends at each position."""
    table: list[int]
    num_computed: int
    done: bool = False
    supposed: list[int] = field(default_factory=list)
    """Tokens that this step drafts."""
    has_drafted: bool = False

    @property
    def wants_vector(self) -> bool:
        return self.admission.max_total_tokens == self.admission.num_prompt_tokens


@dataclass
class FakeWorker:
    """One replica's executor. Raises AssertionError for a plan that breaks the contract."""

    capacity: Capacity
    tenants: dict[int, Tenant] = field(default_factory=dict)
    decode_set: list[int] = field(default_factory=list)
    num_steps: int = 0
    is_faulty: bool = True
    """Its logits are not finite where a request says so."""
    kv: dict[tuple[int, int], int] = field(default_factory=dict)
    """Prefix held by (block, offset)."""
    names: dict[int, bytes] = field(default_factory=dict)
    """Of blocks, as plans said."""
    vectors: list[int] = field(default_factory=list)
    """Those of the newest result, by row."""

    def execute(self, plan: Plan) -> StepResult:
        """One step."""
        self.num_steps += 1
        assert plan.step_id == self.num_steps, "a plan is missing"
        self._mirror(plan)
        rows = self._rows(plan)
        assert sum(len(span) for _, span in rows) == plan.num_tokens - plan.max_draft_tokens
        rows = self._suppose(plan, rows)
        drafted = [len(self.tenants[slot].supposed) for slot in plan.draft_slot.tolist()]
        assert 0 < plan.num_tokens <= self.capacity.max_num_batched_tokens
        assert len({slot for slot, _ in rows}) == len(rows), "a slot has two rows"
        for slot, span in rows:
            if self.tenants[slot].sampling.crashes_at in span and not self.tenants[slot].done:
                raise WorkerCrash
        for slot, span in rows:
            self._write(self.tenants[slot], span)
        for slot, span in rows:
            self._attend(self.tenants[slot], span)
        scored = [(slot, run) for slot, span in rows if (run := self._score(slot, span))]
        sampled = [(slot, *news) for slot, span in rows for news in self._sample_all(slot, span)]
        embedded = [(slot, *news) for slot, span in rows if (news := self._embed(slot, span))]
        self.vectors = [vector for _, vector, _ in embedded]
        whole = [slot for slot, _, _ in embedded]
        slots = [slot for slot, _, _ in sampled]
        self._name(plan)
        return StepResult(
            step_id=plan.step_id,
            slot=np.array(slots, np.int32),
            generation=np.array([self.tenants[s].admission.generation for s in slots], np.int32),
            token_id=np.array([token for _, token, _ in sampled], np.int32),
            finish=np.array([finish for _, _, finish in sampled], np.uint8),
            vector_slot=np.array(whole, np.int32),
            vector_generation=np.array(
                [self.tenants[s].admission.generation for s in whole], np.int32
            ),
            vector_finish=np.array([finish for _, _, finish in embedded], np.uint8),
            score_slot=np.array([slot for slot, _ in scored], np.int32),
            score_generation=np.array(
                [self.tenants[slot].admission.generation for slot, _ in scored], np.int32
            ),
            score_start=np.array([run.start for _, run in scored], np.int32),
            score_length=np.array([len(run) for _, run in scored], np.int32),
            drafted=np.array(drafted, np.int32),
        )

    def _name(self, plan: Plan) -> None:
        """Names of blocks are one-to-one, and only full blocks have any."""
        for block in [*plan.append_block.tolist(), *plan.unnamed_block.tolist()]:
            self.names.pop(block, None)
        assert len(plan.block_name) == 16 * len(plan.named_block)
        for i, block in enumerate(plan.named_block.tolist()):
            self.names[block] = plan.block_name[16 * i : 16 * i + 16]
        assert len(set(self.names.values())) == len(self.names), "two blocks have one name"
        for block in self.names:
            size = self.capacity.block_size
            assert all((block, offset) in self.kv for offset in range(size)), "not full"

    def start_over(self) -> None:
        """A new epoch: slots are forgotten, blocks stay as they are."""
        self.tenants.clear()
        self.decode_set.clear()
        self.num_steps = 0

    def inventory(self, hash_seed: bytes) -> Inventory | None:
        """What a hello says of the blocks."""
        if not self.names:
            return None
        return Inventory(hash_seed, token_column(list(self.names)), tuple(self.names.values()))

    def _mirror(self, plan: Plan) -> None:
        for slot in plan.retire.tolist():
            del self.tenants[slot]
        for admission in plan.admit:
            self._admit(admission)
        appends = (plan.append_slot, plan.append_index, plan.append_block)
        for slot, index, block in zip(*(c.tolist() for c in appends), strict=True):
            assert index == len(self.tenants[slot].table), "block tables are append-only"
            assert 1 <= block <= self.capacity.num_blocks
            self.tenants[slot].table.append(block)
        if plan.decode is not None:
            self.decode_set = plan.decode.tolist()

    def _admit(self, admission: Admission) -> None:
        assert admission.slot not in self.tenants, "the slot was not retired"
        assert 0 <= admission.slot < self.capacity.max_num_seqs
        assert admission.num_computed == len(admission.blocks) * self.capacity.block_size
        assert admission.num_computed < len(admission.token_ids) <= admission.max_total_tokens
        sampling = admission.sampling
        assert isinstance(sampling, FakeSampling)
        prefixes, prefix = [], root(sampling)
        for token in admission.token_ids.tolist():
            prefix = extend(prefix, token)
            prefixes.append(prefix)
        self.tenants[admission.slot] = Tenant(
            admission,
            sampling,
            admission.token_ids.tolist(),
            prefixes,
            admission.blocks.tolist(),
            admission.num_computed,
        )

    def _rows(self, plan: Plan) -> list[tuple[int, range]]:
        """(slot, positions) of each row; live rows advance their slot."""
        rows = []
        for slot in self.decode_set:
            tenant = self.tenants[slot]
            position = tenant.num_computed
            # A plan that was made before may not know that drafts have brought it to its end.
            if not (tenant.done and tenant.has_drafted):
                assert position < tenant.admission.max_total_tokens - 1, "planned beyond the limit"
            assert tenant.done or position == len(tenant.tokens) - 1, "decodes an unknown token"
            rows.append((slot, range(position, position + 1)))
        chunks = (plan.chunk_slot, plan.chunk_start, plan.chunk_length)
        for slot, start, length in zip(*(c.tolist() for c in chunks), strict=True):
            tenant = self.tenants[slot]
            assert length >= 1
            assert start == tenant.num_computed, "a chunk does not start where the last ended"
            assert start + length <= len(tenant.tokens), "a chunk of unknown tokens"
            rows.append((slot, range(start, start + length)))
        for slot, span in rows:
            self.tenants[slot].num_computed = span.stop
        return rows

    def _suppose(self, plan: Plan, rows: list[tuple[int, range]]) -> list[tuple[int, range]]:
        """The rows, longer by what is supposed to follow in those that may draft."""
        assert len(set(plan.draft_slot.tolist())) == len(plan.draft_slot)
        spans, left = dict(rows), plan.max_draft_tokens
        for tenant in self.tenants.values():
            tenant.supposed = []
        for slot, most in zip(plan.draft_slot.tolist(), plan.draft_length.tolist(), strict=True):
            tenant, start = self.tenants[slot], spans[slot].start
            assert 1 <= most <= self.capacity.max_draft_tokens
            assert slot in self.decode_set
            if tenant.done:
                continue
            assert start + most < tenant.admission.max_total_tokens - 1, "drafts beyond the limit"
            assert start + most < len(tenant.table) * self.capacity.block_size, "no block"
            assert plan.min_draft_tokens <= most
            most = min(most, left)
            seed = tenant.admission.seed
            tenant.supposed = suppose(tenant.sampling, seed, tenant.prefixes[-1], most)
            if len(tenant.supposed) < plan.min_draft_tokens:
                tenant.supposed = []
                continue
            left -= len(tenant.supposed)
            tenant.has_drafted = True
            spans[slot] = range(start, start + 1 + len(tenant.supposed))
        return list(spans.items())

    def _place(self, tenant: Tenant, position: int) -> tuple[int, int]:
        index, offset = divmod(position, self.capacity.block_size)
        return tenant.table[index], offset

    def _write(self, tenant: Tenant, span: range) -> None:
        if self.capacity.num_blocks == 0:
            assert span == range(len(tenant.tokens)), "a prompt is not computed whole"
        elif not tenant.done:
            for position in span:
                self.kv[self._place(tenant, position)] = self._prefixes(tenant)[position]

    def _attend(self, tenant: Tenant, span: range) -> None:
        if not tenant.done and self.capacity.num_blocks:
            held = [self.kv.get(self._place(tenant, position)) for position in range(span.stop)]
            prefixes = self._prefixes(tenant)[: span.stop]
            assert held == prefixes, "attends to somebody else's KV"

    @staticmethod
    def _prefixes(tenant: Tenant) -> list[int]:
        """With those that end at what is supposed."""
        prefixes = list(tenant.prefixes)
        for token in tenant.supposed:
            prefixes.append(extend(prefixes[-1], token))
        return prefixes

    def _score(self, slot: int, span: range) -> range:
        """The prompt's tokens that these positions score, of those that are wanted."""
        tenant = self.tenants[slot]
        admission = tenant.admission
        if not tenant.sampling.scores or admission.score_from == admission.num_prompt_tokens:
            return range(0)
        assert admission.score_from > admission.num_computed, "what is cached is not scored"
        end = min(span.stop + 1, admission.num_prompt_tokens)
        return range(max(span.start + 1, admission.score_from), end)

    def _sample_all(self, slot: int, span: range) -> list[tuple[int, int]]:
        """(token, finish) of each position that follows from the ones before."""
        tenant, news = self.tenants[slot], []
        end = span.stop - len(tenant.supposed)
        for token in [*tenant.supposed, None]:
            sampled = self._sample(slot, range(span.start, end))
            if sampled is not None:
                news.append(sampled)
            if sampled is None or sampled[1] or sampled[0] != token:
                break
            end += 1
            tenant.num_computed = end
        return news

    def _sample(self, slot: int, span: range) -> tuple[int, int] | None:
        """(token, finish) if the row computes the newest known token."""
        tenant = self.tenants[slot]
        if tenant.done or tenant.wants_vector or span.stop < len(tenant.tokens):
            return None
        if self.is_faulty and tenant.sampling.broken_at == len(tenant.tokens):
            tenant.done = True
            return EOS, FinishReason.ERROR
        token = next_token(tenant.sampling, tenant.admission.seed, tenant.prefixes[-1])
        tenant.tokens.append(token)
        tenant.prefixes.append(extend(tenant.prefixes[-1], token))
        finish = 0
        if token == EOS:
            finish = FinishReason.STOP
        elif len(tenant.tokens) == tenant.admission.max_total_tokens:
            finish = FinishReason.LENGTH
        tenant.done = finish != 0
        return token, finish

    def _embed(self, slot: int, span: range) -> tuple[int, int] | None:
        """(vector, finish) if the row completes a prompt that wants its vector."""
        tenant = self.tenants[slot]
        if not tenant.wants_vector or span.stop < len(tenant.tokens):
            return None
        if self.is_faulty and tenant.sampling.broken_at is not None:
            return 0, FinishReason.ERROR
        return tenant.prefixes[-1], FinishReason.STOP


def token_column(tokens: Sequence[int]) -> Int32Column:
    """An int32 column."""
    return np.array(tokens, np.int32)
