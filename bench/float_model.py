"""transformers' model of a directory whose matrices may be in codes, which it cannot read."""

from pathlib import Path
from typing import Any

from worker.checkpoint import Checkpoint


def float_model(directory: Path) -> Any:
    """In float32, on the CPU, ready to run."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    checkpoint = Checkpoint.open(directory)
    if not any(entry.codes for entry in checkpoint.entries.values()):
        return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    cpu = torch.device("cpu")
    weights = {name: checkpoint.read(name, (), torch.float32, cpu) for name in checkpoint.entries}
    config = AutoConfig.from_pretrained(directory)
    del config.quantization_config  # which says that it cannot read them
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    result = model.load_state_dict(weights, strict=False)
    assert set(result.missing_keys) <= tied, result.missing_keys
    assert not result.unexpected_keys, result.unexpected_keys
    model.tie_weights()
    model.generation_config = GenerationConfig.from_pretrained(directory)
    return model.eval()
