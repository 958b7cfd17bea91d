"""Plans, admissions and a small random model, in a line each."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from worker.models.registry import checkpoint_tensors, parse_config
from worker.plans import Admission, BatchPlan, Int32Column, Sampling

VOCAB_SIZE = 320
MAX_MODEL_LEN = 96


def column(values: Sequence[int] = ()) -> Int32Column:
    """An int32 column."""
    return np.array(values, np.int32)


def admission(
    slot: int,
    tokens: Sequence[int],
    blocks: Sequence[int],
    *,
    generation: int = 0,
    num_prompt: int | None = None,
    max_total: int = MAX_MODEL_LEN,
    num_computed: int = 0,
    seed: int = 0,
    sampling: Sampling | None = None,
) -> Admission:
    """A greedy sequence whose tokens are all prompt, unless told otherwise."""
    return Admission(
        slot=slot,
        generation=generation,
        token_ids=column(tokens),
        num_prompt_tokens=len(tokens) if num_prompt is None else num_prompt,
        max_total_tokens=max_total,
        blocks=column(blocks),
        num_computed=num_computed,
        seed=seed,
        sampling=sampling or Sampling(),
    )


def plan(
    step_id: int = 1,
    *,
    epoch: int = 1,
    retire: Sequence[int] = (),
    admit: Sequence[Admission] = (),
    append: Sequence[tuple[int, int, int]] = (),
    decode: Sequence[int] | None = None,
    chunks: Sequence[tuple[int, int, int]] = (),
    drafts: Sequence[tuple[int, int]] = (),
    together: int | None = None,
    at_least: int = 1,
    graph_bucket: int = 0,
) -> BatchPlan:
    """A plan; `append` has (slot, index, block), `chunks` (slot, start, length) and `drafts` (slot,
    length), `together` so many tokens, and `at_least` so many each."""
    append_slot, append_index, append_block = zip(*append, strict=True) if append else ((), (), ())
    chunk_slot, chunk_start, chunk_length = zip(*chunks, strict=True) if chunks else ((), (), ())
    return BatchPlan(
        epoch=epoch,
        step_id=step_id,
        retire=column(retire),
        admit=tuple(admit),
        append_slot=column(append_slot),
        append_index=column(append_index),
        append_block=column(append_block),
        decode=None if decode is None else column(decode),
        chunk_slot=column(chunk_slot),
        chunk_start=column(chunk_start),
        chunk_length=column(chunk_length),
        graph_bucket=graph_bucket,
        draft_slot=column([slot for slot, _ in drafts]),
        draft_length=column([length for _, length in drafts]),
        max_draft_tokens=sum(length for _, length in drafts) if together is None else together,
        min_draft_tokens=at_least,
    )


def write_tiny_llama(
    directory: Path, *, vocab_size: int = VOCAB_SIZE, head_dim: int = 16, tied: bool = True
) -> Path:
    """A Llama of two layers with random weights, large enough that its argmax moves about."""
    raw = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": head_dim,
        "max_position_embeddings": MAX_MODEL_LEN,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": tied,
        "hidden_act": "silu",
        "torch_dtype": "float32",
        "eos_token_id": 2,
    }
    generator = torch.Generator().manual_seed(11)
    tensors = {
        name: torch.ones(shape)
        if name.endswith("norm.weight")
        else torch.randn(shape, generator=generator) * 0.3
        for name, shape in checkpoint_tensors(parse_config(raw)).items()
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(raw))
    safetensors.torch.save_file(tensors, directory / "model.safetensors")
    return directory
