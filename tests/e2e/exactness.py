"""Ways to cut up the same work, and the check that the tokens do not depend on it.

Real processes over real gRPC. Every combination runs on a small model with random weights, whose
next token hangs on every token before it far more than a trained model's does (a test says so), and
which costs a tenth; the default tier has those that cover every pair of settings. The same pairs
run on the real model, with its own shapes: in the slow tier; the default one has those in `REAL`.
Sequences one at a time are in files of their own, which another process can run.
"""

import itertools
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
from allpairspy import AllPairs

from quire import LLM, SamplingParams
from tests.e2e.idle import idle_state
from tests.e2e.prompts import SMALL_VOCABULARY
from tests.e2e.reference import NUM_OUTPUT_TOKENS, Prompt, Reference

MAX_MODEL_LEN = 2144
"""What the longest prompt and its answer need, in whole blocks of every size."""
SMALL_POOL_TOKENS = 2240
"""Room for the longest request and little else: several at once must preempt one another."""


@dataclass(frozen=True)
class Setting:
    """One way to cut up the same work."""

    prefix_caching: bool
    token_budget: int
    block_size: int
    concurrency: int
    replicas: int
    small_pool: bool
    cpu_backend: str = "auto"

    def __str__(self) -> str:
        cache = "cache" if self.prefix_caching else "nocache"
        pool = "small" if self.small_pool else "large"
        backend = "" if self.cpu_backend == "auto" else f"-{self.cpu_backend}"
        return (
            f"{cache}-chunk{self.token_budget}-block{self.block_size}-c{self.concurrency}"
            f"-r{self.replicas}-{pool}{backend}"
        )

    @property
    def preempts(self) -> bool:
        """Whether sequences must compete for blocks."""
        return self.small_pool and self.concurrency > 1


FACTORS: list[list[bool] | list[int]] = [
    [True, False],
    [16, 64, 8192],
    [8, 16, 32],
    [1, 8, 32],
    [1, 2],
    [True, False],
]
# Alone on its replica a sequence never competes for blocks.
EVERY = [
    setting
    for setting in itertools.starmap(Setting, itertools.product(*FACTORS))
    if setting.concurrency > 1 or not setting.small_pool
]


def _meaningful(row: list[object]) -> bool:
    return len(row) < 6 or row[3] != 1 or not row[5]


PAIRWISE = [Setting(*row) for row in AllPairs(FACTORS, filter_func=_meaningful)]

REAL = [Setting(True, 64, 16, 32, 2, False)]
"""Chunks, crowds and replicas, but for what costs the real model most: the smallest chunks and
blocks, sequences alone, and preemption, for which `test_seeded` has a crowd."""


def parameters(settings: Iterable[Setting], is_quick: Callable[[Setting], bool]) -> list[object]:
    """For `parametrize`: all but the quick ones are slow."""
    slow = pytest.mark.slow
    return [pytest.param(s, id=str(s), marks=[] if is_quick(s) else slow) for s in settings]


NEIGHBOUR_PROMPT, NEIGHBOUR_OUTPUT = 900, 400
"""Two of these fit into a small pool when the second begins, however long its prompt took in small
chunks beside the first, and outgrow it together."""


def neighbours(setting: Setting) -> list[list[int]]:
    """Prompts that fill small pools: what the others do there is too much a matter of timing."""
    dice = random.Random(0)
    count = 3 * setting.replicas if setting.preempts else 0
    return [dice.choices(SMALL_VOCABULARY, k=NEIGHBOUR_PROMPT) for _ in range(count)]


def serve(model_dir: Path, setting: Setting) -> LLM:
    num_blocks = (
        SMALL_POOL_TOKENS // setting.block_size
        if setting.small_pool
        else 16384 // setting.block_size
    )
    return LLM(
        str(model_dir),
        threads=1,
        max_model_len=MAX_MODEL_LEN,
        enable_prefix_caching=setting.prefix_caching,
        max_num_batched_tokens=setting.token_budget,
        block_size=setting.block_size,
        cpu_backend=setting.cpu_backend,
        quantization="none",
        max_num_seqs=setting.concurrency,
        replicas=setting.replicas,
        num_blocks=num_blocks,
    )


def check(reference: Reference, prompts: list[Prompt], setting: Setting) -> None:
    """Raises AssertionError unless the reference's model, served so, says what it should."""
    params = [
        SamplingParams(temperature=0, max_tokens=NUM_OUTPUT_TOKENS, ignore_eos=p.ignore_eos)
        for p in prompts
    ]
    others = neighbours(setting)
    filling = SamplingParams(temperature=0, max_tokens=NEIGHBOUR_OUTPUT, ignore_eos=True)
    params += [filling] * len(others)
    with serve(reference.model_dir, setting) as llm:
        outputs = llm.generate([*(p.token_ids for p in prompts), *others], params, use_tqdm=False)
        state = idle_state(llm.state)
    for output in outputs[len(prompts) :]:
        assert len(output.outputs[0].token_ids) == NEIGHBOUR_OUTPUT
    for prompt, output in zip(prompts, outputs, strict=False):
        reference.check(prompt, output.outputs[0].token_ids)
    if setting.preempts:
        assert state["preemptions"] > 0, "the pool was meant to be too small"
