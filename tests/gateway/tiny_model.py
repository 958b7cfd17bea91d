"""A model directory without weights: a byte-level tokenizer of 400 tokens, ChatML."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

MAX_MODEL_LEN = 256
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
EOS = 2
"""<|im_end|>."""

TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

_CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "a request has a prompt and an output, and each of them is made of tokens",
    "naïve café, Straße, 東京, 你好世界, emoji 🙂🙃 and 👩‍👩‍👧 families, 12345 67890",
    "system user assistant stop END end of text",
]


def build(directory: Path, **generation_config: object) -> Path:
    """Writes the directory and returns it."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(text, special=True) for text in SPECIAL],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS * 4, trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    write_json(directory / "config.json", {"vocab_size": 400, "eos_token_id": EOS})
    write_json(directory / "generation_config.json", {"eos_token_id": EOS, **generation_config})
    write_json(
        directory / "tokenizer_config.json",
        {"eos_token": "<|im_end|>", "bos_token": "<|im_start|>", "chat_template": TEMPLATE},
    )
    return directory


def write_json(path: Path, content: object) -> None:
    """Writes one of the directory's files."""
    path.write_text(json.dumps(content))
