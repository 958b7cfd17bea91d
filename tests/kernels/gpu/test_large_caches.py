"""Caches of more elements than an int32 counts, as a GPU's memory holds: addresses do not wrap."""

import numpy as np
import torch

from kernels.batch import AttentionBatch, RopeTable, Scoring, StepTensors
from kernels.gpu import attention, rope
from tests.kernels.gpu.guarded import random

NUM_HEADS, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM = 4, 2, 16, 128
BLOCK_ELEMENTS = NUM_KV_HEADS * BLOCK_SIZE * HEAD_DIM
PROMPT = 40


def attend(blocks: list[int], num_blocks: int, device: torch.device) -> list[torch.Tensor]:
    """What a prompt and a decode after it get from a cache; only `blocks` of it are touched."""
    shape = (num_blocks, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM)
    # numpy's zeros, unlike torch's, take no memory before they are written.
    keys, values = (
        torch.from_numpy(np.zeros(shape, np.int16)).view(torch.bfloat16).to(device)
        for _ in range(2)
    )
    table = RopeTable.build(torch.ones(HEAD_DIM // 2, device=device), PROMPT + 1)
    outcomes = []
    for length, count in ((PROMPT, PROMPT), (PROMPT + 1, 1)):
        batch = AttentionBatch(
            token_ids=torch.zeros(count, dtype=torch.int32, device=device),
            positions=torch.arange(length - count, length, device=device).int(),
            cu_seqlens=torch.tensor([0, count], device=device).int(),
            seq_lens=torch.tensor([length], device=device).int(),
            block_table=torch.tensor([blocks], device=device).int(),
            num_decodes=int(count == 1),
            sample_index=torch.tensor([0], device=device),
        )
        step = StepTensors(batch, BLOCK_SIZE, table)
        width = (NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM
        qkv = random(count, width, seed=length, dtype=torch.bfloat16, device=device)
        query = rope.rope_and_store(qkv, step, keys, values)
        scoring = Scoring(HEAD_DIM**-0.5)
        outcomes.append(attention.paged_attention(query, keys, values, step, scoring))
    return outcomes


def test_a_block_may_lie_beyond_what_an_int32_addresses(device: torch.device) -> None:
    many = 2**31 // BLOCK_ELEMENTS + 3
    beyond = attend([many - 1, many - 2, 1], many, device)
    for far, near in zip(beyond, attend([3, 2, 1], 4, device), strict=True):
        assert near.isfinite().all()
        assert torch.equal(far, near)
