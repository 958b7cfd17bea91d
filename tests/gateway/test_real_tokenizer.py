"""SmolLM2's own tokenizer and template, against transformers' reading of the same directory."""

from pathlib import Path

import pytest

from gateway.conversation import ChatMessage, Conversation
from gateway.detokenizer import Detokenizer
from gateway.model import Model, load_model
from quire.models import resolve

TEXTS = [
    "Gravity is",
    "In 1984 there were 12,345.678 sheep; 0x1F4A9 too.",
    "naïve café Straße 東京 你好世界 Привет שלום عربى",
    "👩‍👩‍👧‍👦 🙂🙃 ﷽ \u200b\u0301e",
    "def f(x):\n\treturn x  +   1\n\n\n",
]


@pytest.fixture(scope="module")
def directory() -> Path:
    return resolve("smollm2", lambda message: None).path


@pytest.fixture(scope="module")
def smollm2(directory: Path) -> Model:
    return load_model(directory)


def _chat(model: Model, turns: list[dict[str, str]]) -> list[int]:
    messages = [ChatMessage(turn["role"], turn["content"]) for turn in turns]
    return model.chat(Conversation(messages), 8192).token_ids


def test_prompts_are_tokenized_as_by_transformers(directory: Path, smollm2: Model) -> None:
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(directory)
    for text in TEXTS:
        assert smollm2.text_prompt(text, 8192) == reference(text)["input_ids"]
        chat = [
            {"role": "user", "content": text},
            {"role": "assistant", "content": "Yes."},
            {"role": "user", "content": text * 2},
        ]
        expected = reference.apply_chat_template(
            chat, add_generation_prompt=True, return_dict=False
        )
        assert _chat(smollm2, chat) == expected


def test_outputs_read_token_by_token_as_a_whole(smollm2: Model) -> None:
    tokenizer = smollm2.tokenizer
    for text in TEXTS:
        detokenizer = Detokenizer(tokenizer.bytes_of)
        tokens = tokenizer.encode(text, add_special_tokens=False)
        shown = [detokenizer.feed([token]) for token in tokens]
        assert "".join(shown) + detokenizer.close() == text


def test_digits_are_tokens_of_their_own(smollm2: Model) -> None:
    tokens = smollm2.tokenizer.encode("12345", add_special_tokens=False)
    assert [smollm2.tokenizer.bytes_of[token] for token in tokens] == [b"1", b"2", b"3", b"4", b"5"]


def test_the_model_ends_with_its_turn(smollm2: Model) -> None:
    assert smollm2.eos_token_ids == {2}
