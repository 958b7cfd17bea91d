"""A whole model so small that its worker starts at once and a token takes next to no time."""

import json
from pathlib import Path

from tests.chaos.by_hand import MODEL
from tests.chaos.stack import MAX_MODEL_LEN
from tests.chaos.traffic import Asked, plain
from tests.gateway import tiny_model
from tests.worker.builders import write_tiny_llama


def small_model(directory: Path, max_model_len: int = MAX_MODEL_LEN) -> Path:
    """Writes it; random weights, a byte-level tokenizer of 400 tokens."""
    tiny_model.build(directory)
    write_tiny_llama(directory, vocab_size=400)
    config = json.loads((directory / "config.json").read_text())
    config["max_position_embeddings"] = max_model_len
    tiny_model.write_json(directory / "config.json", config)
    return directory


def streams(count: int, max_tokens: int, salt: str) -> list[Asked]:
    """Each of exactly so many tokens, for any model that has these few in its vocabulary."""
    prompts = [[5, 6, 7 + number] for number in range(count)]
    return plain("stream", MODEL, prompts, max_tokens, salt)
