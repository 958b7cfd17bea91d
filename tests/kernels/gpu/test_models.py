"""Whole models on the ops that a GPU gets: what the layers hand to a kernel is what it takes."""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
)

from kernels import ops
from kernels.batch import AttentionBatch
from worker.kv_cache import KVCache
from worker.loader import LoadedModel, load_model

SMALL = {
    "vocab_size": 101,
    "hidden_size": 42,
    "intermediate_size": 75,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "eos_token_id": None,
}
GEMMA = SMALL | {"query_pre_attn_scalar": 24, "sliding_window": 9}
TWO_ROPES = {
    "full_attention": {"rope_type": "linear", "rope_theta": 500000.0, "factor": 4.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
}
CONFIGS: dict[str, Any] = {
    "biases": LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True),
    "windows": MistralConfig(**SMALL, sliding_window=13),
    "head norms": Qwen3Config(**SMALL),
    "soft caps": Gemma2Config(**GEMMA, attn_logit_softcapping=1.5, final_logit_softcapping=4.0),
    "two ropes": Gemma3TextConfig(**GEMMA, sliding_window_pattern=2, rope_parameters=TWO_ROPES),
}
BLOCK_SIZE, BLOCKS_EACH = 8, 3


@dataclass
class Running:
    """One model on the device, and what transformers says of one token sequence."""

    loaded: LoadedModel
    token_ids: torch.Tensor
    expected: torch.Tensor
    device: torch.device
    kv: KVCache = field(init=False)

    def __post_init__(self) -> None:
        config, dtype = self.loaded.config, self.loaded.dtype
        self.kv = KVCache(config, 3 * BLOCKS_EACH, BLOCK_SIZE, dtype, self.device)

    def step(self, *rows: tuple[int, int, int], num_decodes: int) -> torch.Tensor:
        """Each row is (slot, first token, end); logits of all tokens, [num_tokens, vocab]."""
        bounds = torch.tensor([0, *(end - start for _, start, end in rows)]).cumsum(0)
        batch = AttentionBatch(
            token_ids=torch.cat([self.token_ids[start:end] for _, start, end in rows]).int(),
            positions=torch.cat([torch.arange(start, end) for _, start, end in rows]).int(),
            cu_seqlens=bounds.int(),
            seq_lens=torch.tensor([end for _, _, end in rows]).int(),
            block_table=torch.arange(1, 3 * BLOCKS_EACH + 1).view(3, -1).flip(1).int(),
            num_decodes=num_decodes,
            sample_index=torch.arange(int(bounds[-1])),
            row_slot=torch.tensor([slot for slot, _, _ in rows]).int(),
        )
        there: dict[str, Any] = {
            name: value.contiguous().to(self.device)
            for name, value in vars(batch).items()
            if isinstance(value, torch.Tensor)
        }
        return self.loaded.model.forward(replace(batch, **there), self.kv).cpu()


@pytest.fixture(params=CONFIGS)
def running(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> Running:
    torch.manual_seed(5)
    config = CONFIGS[request.param]
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path)
    token_ids = torch.randint(0, config.vocab_size, (BLOCKS_EACH * BLOCK_SIZE,))
    with torch.inference_mode():
        expected = model(token_ids[None]).logits[0].clone()
    gpu_ops = ops.select(torch.device("cuda"), torch.float32)
    monkeypatch.setattr(ops, "select", lambda device, dtype: gpu_ops)
    monkeypatch.setattr("worker.backends.warm_up", lambda ops, device, dtype: None)
    loaded = load_model(tmp_path, dtype="float32", device=device)
    return Running(loaded, token_ids, expected, device)


def test_chunks_and_decodes_equal_transformers(running: Running) -> None:
    expected = running.expected
    close = partial(torch.testing.assert_close, atol=1e-4, rtol=1e-4)
    close(running.step((2, 0, 12), num_decodes=0), expected[:12])
    mixed = running.step((2, 12, 13), (0, 0, 9), num_decodes=1)
    close(mixed, torch.cat((expected[12:13], expected[:9])))
    both = running.step((0, 9, 10), (2, 13, 14), num_decodes=2)
    close(both, torch.cat((expected[9:10], expected[13:14])))
