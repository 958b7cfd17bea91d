"""Our package `kernels` bears the name of a Hugging Face package that transformers looks for."""

import subprocess
import sys

PROGRAM = """
import kernels
assert not hasattr(kernels, "__version__"), "a version would make transformers take it for theirs"
from transformers import LlamaConfig, LlamaForCausalLM
import torch
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
))
assert model(torch.tensor([[1, 2]])).logits.shape == (1, 2, 8)
from kernels import reference
assert "kernels/reference.py" in reference.__file__.replace("\\\\", "/")
"""


def test_transformers_works_beside_our_kernels() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
