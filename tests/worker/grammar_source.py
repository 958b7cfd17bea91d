"""A byte-level tokenizer for the tiny model, and grammars in the form in which they travel."""

from pathlib import Path

from llguidance import LLMatcher
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.worker.builders import VOCAB_SIZE

END = 0
"""<|end|>."""


def write_tokenizer(path: Path) -> Path:
    """Every byte, some pairs and the end token; two ids of the model are no token's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken("<|end|>", special=True)],
        show_progress=False,
    )
    text = 'abc abcabc {"name": "value", "list": [1, 2, 3]} 東京 🙂 true false null 12345 67890'
    tokenizer.train_from_iterator([text] * 4, trainer)
    tokenizer.save(str(path))
    return path


def regex(pattern: str) -> str:
    """The language of a regular expression."""
    return LLMatcher.grammar_from_regex(pattern)


def json_schema(schema: str) -> str:
    """The language of a JSON schema."""
    return LLMatcher.grammar_from_json_schema(schema)


def lark(text: str) -> str:
    """The language of llguidance's Lark."""
    return LLMatcher.grammar_from_lark(text)
