"""Runs a few steps before the first real one, so that nobody waits for compilers.

The steps go through what a served step does: a prompt, decoding, greedy and drawn tokens. What they
leave in the mirror is forgotten; the KV they write is overwritten before anyone reads it.
"""

from itertools import cycle

import numpy as np

from protos.limits import MAX_LOGPROBS
from worker.executor import Runner
from worker.plans import Admission, BatchPlan, Int32Column, Sampling
from worker.sizes import Sizes

_NUM_STEPS = 3


def num_blocks_needed(sizes: Sizes, max_model_len: int) -> int:
    """KV blocks that the steps of `warm_up` and `run_largest` take: their sequences share them."""
    longest = min(sizes.max_num_batched_tokens + _NUM_STEPS, max_model_len)
    return -(-longest // sizes.block_size)


def warm_up(
    runner: Runner,
    sizes: Sizes,
    *,
    max_model_len: int,
    vocab_size: int,
    num_prompt_tokens: int = 8,
    num_prompts: int = 3,
) -> None:
    """Computes prompts and decodes from them, from the first greedily, from others by drawing.

    Args:
        runner: what to warm up; holds no sequence, before and after.
        sizes: how large its steps may get.
        max_model_len: tokens a sequence may hold.
        vocab_size: token ids are 0 to vocab_size - 1.
        num_prompt_tokens: of each prompt; longer ones than a sequence are cut into several.
        num_prompts: fewer where there is no room.
    """
    budget = sizes.max_num_batched_tokens
    num_prompt = min(num_prompt_tokens, max_model_len - _NUM_STEPS, budget)
    if num_prompt < 1:
        return
    samplings = (Sampling(), Sampling(temperature=1.0), Sampling(temperature=1.0, top_p=0.9))
    count = num_prompts * -(-num_prompt_tokens // num_prompt)
    slots = _column(*range(min(count, sizes.max_num_seqs, budget // num_prompt)))
    num_blocks = -(-(num_prompt + _NUM_STEPS) // sizes.block_size)
    admissions = tuple(
        Admission(
            slot=slot,
            generation=0,
            token_ids=np.arange(num_prompt, dtype=np.int32) % vocab_size,
            num_prompt_tokens=num_prompt,
            max_total_tokens=max_model_len,
            blocks=np.arange(1, num_blocks + 1, dtype=np.int32),
            num_computed=0,
            seed=slot,
            sampling=sampling,
        )
        for slot, sampling in zip(slots.tolist(), cycle(samplings), strict=False)
    )
    runner.reset()
    none = _column()
    for step in range(_NUM_STEPS):
        first = step == 0
        plan = BatchPlan(
            epoch=0,
            step_id=step + 1,
            retire=none,
            admit=admissions if first else (),
            append_slot=none,
            append_index=none,
            append_block=none,
            decode=slots if step == 1 else None,
            chunk_slot=slots if first else none,
            chunk_start=np.zeros_like(slots) if first else none,
            chunk_length=np.full_like(slots, num_prompt) if first else none,
        )
        runner.launch(plan, 0, lambda _: None)
    runner.reset()


def run_largest(runner: Runner, sizes: Sizes, *, max_model_len: int, vocab_size: int) -> None:
    """Runs the step that needs the most memory: every token of the budget, every slot sampling.

    All sequences share their blocks: what they compute means nothing.
    """
    budget = sizes.max_num_batched_tokens
    count = min(sizes.max_num_seqs, budget)
    lengths = np.full(count, budget // count, np.int32)
    lengths[: budget % count] += 1
    lengths = np.minimum(lengths, max_model_len - 2)
    if lengths[-1] < 1:
        return
    sampling = Sampling(
        temperature=1.0,
        top_k=50,
        top_p=0.9,
        repetition_penalty=1.1,
        num_logprobs=MAX_LOGPROBS,
        num_prompt_logprobs=MAX_LOGPROBS,
    )
    blocks = np.arange(1, -(-(int(lengths[0]) + 1) // sizes.block_size) + 1, dtype=np.int32)
    slots = _column(*range(count))
    admissions = tuple(
        Admission(
            slot=slot,
            generation=0,
            token_ids=np.arange(length, dtype=np.int32) % vocab_size,
            num_prompt_tokens=length,
            max_total_tokens=length + 2,
            blocks=blocks,
            num_computed=0,
            seed=slot,
            sampling=sampling,
        )
        for slot, length in enumerate(lengths.tolist())
    )
    none = _column()
    runner.reset()
    for step in (1, 2):
        first = step == 1
        plan = BatchPlan(
            epoch=0,
            step_id=step,
            retire=none,
            admit=admissions if first else (),
            append_slot=none,
            append_index=none,
            append_block=none,
            decode=None if first else slots,
            chunk_slot=slots if first else none,
            chunk_start=np.zeros_like(slots) if first else none,
            chunk_length=lengths if first else none,
        )
        runner.launch(plan, 0, lambda _: None)
    runner.reset()


def _column(*values: int) -> Int32Column:
    return np.array(values, np.int32)
