"""A whole model so small that its worker starts at once and a token takes next to no time."""

import json
from pathlib import Path

from tests.chaos.stack import MAX_MODEL_LEN
from tests.gateway import tiny_model
from tests.worker.builders import write_tiny_llama


def small_model(directory: Path) -> Path:
    """Writes it; random weights, a byte-level tokenizer of 400 tokens."""
    tiny_model.build(directory)
    write_tiny_llama(directory, vocab_size=400)
    config = json.loads((directory / "config.json").read_text())
    config["max_position_embeddings"] = MAX_MODEL_LEN
    tiny_model.write_json(directory / "config.json", config)
    return directory
