"""Each family on the worker's own loop, plans in and tokens out, against transformers.

On a GPU that is what serves there: Triton's kernels, the tables on the device, captured steps. On
a CPU the same loop runs without them. In float32 every token is transformers'. Half precision
rounds so much that it may choose another token where two are as good; by how much, transformers
itself shows in that precision.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from kernels.ops import DEVICE_STEP_REFERENCE, select_step
from tests.worker.builders import MAX_MODEL_LEN, VOCAB_SIZE, admission, plan
from tests.worker.models.steps import Steps
from tests.worker.models.variants import CPU, NUM_TOKENS, VARIANTS, Case, build
from tests.worker.runners import (
    BLOCK_SIZE,
    NUM_OUTPUT,
    NUM_SLOTS,
    PROMPTS,
    generate,
    make_device_runner,
    run,
    tenants,
)
from worker.device_runner import DeviceRunner
from worker.plans import Sampling

HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if HAS_GPU else CPU
DTYPES = (torch.bfloat16, torch.float16) if HAS_GPU else (torch.float32, torch.bfloat16)
FAMILIES = ("llama3-rope", "mistral-window", "qwen2", "qwen3", "gemma2", "gemma3")
# Errors are summed in another order: so many times transformers' own may be ours.
AS_FAR_OFF = 2.0
# Of logits of two tokens in one row, in roots of the mean square of transformers' errors.
TIE = 8.0


def sized(config: Any) -> Any:
    """With heads that the kernels take, and the vocabulary and length of the runners' prompts."""
    changed = copy.deepcopy(config)
    changed.hidden_size = 16 * config.num_attention_heads
    if config.model_type != "qwen2":  # which has no head_dim of its own
        changed.head_dim = 16
    changed.vocab_size = VOCAB_SIZE
    changed.max_position_embeddings = MAX_MODEL_LEN
    return changed


@dataclass(frozen=True)
class Judge:
    """Knows how far off half precision may be.

    Attributes:
        exact: transformers' model in float32.
        error: root of the mean square of its logits' errors in the case's number format.
    """

    exact: PreTrainedModel
    error: float

    @classmethod
    def of(cls, case: Case) -> "Judge":
        """With transformers' model on the case's device, in its number format."""
        rounded = AutoModelForCausalLM.from_pretrained(
            case.directory, dtype=case.loaded.dtype, attn_implementation="eager"
        ).to(case.device)
        with torch.inference_mode():
            logits = rounded(case.token_ids[None].to(case.device)).logits[0].float().cpu()
        return cls(case.theirs, rms(logits - case.expected))

    def accepts_logits(self, got: torch.Tensor, expected: torch.Tensor) -> None:
        """Ours are as near as theirs; in float32 both are off by the order of their sums."""
        assert got.isfinite().all()
        assert rms(got - expected) <= AS_FAR_OFF * self.error + 1e-6

    def accepts_tokens(self, prompt: Sequence[int], output: Sequence[int]) -> None:
        """Each token of the output is the likeliest after those before it, or ties with it."""
        assert len(output) == NUM_OUTPUT
        tokens = torch.tensor([*prompt, *output])
        with torch.inference_mode():
            logits = self.exact(tokens[None]).logits[0, len(prompt) - 1 : -1]
        chosen = logits.gather(1, tokens[len(prompt) :, None])[:, 0]
        behind = logits.amax(dim=1) - chosen
        assert behind.max() <= TIE * self.error
        assert (behind == 0).float().mean() >= 0.5, "ties are not the rule"


def rms(values: torch.Tensor) -> float:
    """Root of the mean square."""
    return float(values.square().mean().sqrt())


@pytest.fixture(
    scope="module",
    params=[(variant, dtype) for variant in FAMILIES for dtype in DTYPES],
    ids=lambda param: f"{param[0]}-{str(param[1]).removeprefix('torch.')}",
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """One family in one number format after the other."""
    variant, dtype = request.param
    return build(
        sized(VARIANTS[variant]),
        tmp_path_factory.mktemp(variant),
        scale=0.15,
        dtype=dtype,
        device=DEVICE,
    )


@pytest.fixture(scope="module")
def judge(case: Case) -> Judge:
    """Of the case."""
    return Judge.of(case)


@pytest.fixture(scope="module", params=[(), (4,)], ids=["eager", "captured"])
def runner(request: pytest.FixtureRequest, case: Case) -> Iterator[DeviceRunner]:
    """Its steps are launched kernel by kernel, or those of up to four rows are captured."""
    step_ops = select_step(DEVICE, NUM_SLOTS, VOCAB_SIZE) or DEVICE_STEP_REFERENCE
    made = make_device_runner(case.loaded, buckets=request.param, step_ops=step_ops, device=DEVICE)
    yield made
    made.close()


def test_logits_of_prompts_chunks_and_decodes(case: Case, judge: Judge) -> None:
    steps, expected = Steps(case), case.expected
    judge.accepts_logits(steps((0, 0, NUM_TOKENS)), expected)
    bounds = [0, 1, 6, 7, 23, NUM_TOKENS - 1]
    parts = [steps((1, a, b)) for a, b in pairwise(bounds)]
    mixed = steps((1, NUM_TOKENS - 1, NUM_TOKENS), (2, 0, 17), num_decodes=1)
    judge.accepts_logits(torch.cat((*parts, mixed[:1])), expected)
    judge.accepts_logits(mixed[1:], expected[:17])
    alone = [steps((2, at, at + 1), num_decodes=1) for at in range(17, NUM_TOKENS)]
    judge.accepts_logits(torch.cat(alone), expected[17:])


def test_prompts_alone(runner: DeviceRunner, judge: Judge) -> None:
    for number, sequence in tenants(Sampling()).items():
        outputs = generate(runner, [sequence], chunk=1000)
        judge.accepts_tokens(PROMPTS[number], outputs[sequence.slot])


@pytest.mark.parametrize("chunk", [1000, 7])
def test_prompts_together(runner: DeviceRunner, judge: Judge, chunk: int) -> None:
    sequences = tenants(Sampling(), slots=(2, 0, 1))
    outputs = generate(runner, list(sequences.values()), chunk)
    for number, sequence in sequences.items():
        judge.accepts_tokens(PROMPTS[number], outputs[sequence.slot])


def test_a_prompt_on_blocks_of_another(runner: DeviceRunner, judge: Judge) -> None:
    """The second has the first one's prompt and, where that is cached, its blocks."""
    runner.reset()
    first, shared = tenants(Sampling())[2], 4
    second = admission(
        5,
        PROMPTS[2],
        [*first.blocks[:shared].tolist(), *range(100, 112 - shared)],
        num_computed=shared * BLOCK_SIZE,
        max_total=first.max_total_tokens,
    )
    start, length = shared * BLOCK_SIZE, len(PROMPTS[2])
    run(runner, plan(1, admit=[first], chunks=[(first.slot, 0, length)]))
    chunk = (second.slot, start, length - start)
    results = [run(runner, plan(2, retire=[first.slot], admit=[second], chunks=[chunk]))]
    bucket = next(iter(runner.graph_buckets), 0)
    for step in range(3, 2 + NUM_OUTPUT):
        decode = [second.slot] if step == 3 else None
        results.append(run(runner, plan(step, decode=decode, graph_bucket=bucket)))
    judge.accepts_tokens(PROMPTS[2], [int(result.token_id[0]) for result in results])


def test_the_judge_sees_what_is_slightly_wrong(case: Case, judge: Judge) -> None:
    other = case.token_ids.clone()
    other[3] += 1
    with torch.inference_mode():
        logits = case.theirs(other[None]).logits[0]
    with pytest.raises(AssertionError):
        judge.accepts_logits(logits[4:], case.expected[4:])
    with pytest.raises(AssertionError):
        judge.accepts_tokens(PROMPTS[0], [5] * NUM_OUTPUT)
