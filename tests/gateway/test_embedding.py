"""What a model's files say of vectors, how they are cut short, and an encoder's tokens."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from gateway.embedding import EmbeddingCall, EmbeddingOptions, embedding_call, shortened
from gateway.errors import RequestError
from gateway.model import Model, load_model
from tests.gateway import tiny_model
from tests.gateway.tiny_model import write_json

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "token", "##izer", "##s", "are", "made", "!"]


def build_encoder(directory: Path) -> Path:
    """WordPiece, as BERT's family has it."""
    vocabulary = {word: token for token, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(WORDS[:4])
    tokenizer.enable_truncation(4)  # as published tokenizers do
    tokenizer.enable_padding(length=8)
    directory.mkdir()
    tokenizer.save(str(directory / "tokenizer.json"))
    write_json(directory / "config.json", {"vocab_size": len(WORDS)})
    return directory


@pytest.fixture
def encoder(tmp_path: Path) -> Model:
    return load_model(build_encoder(tmp_path / "encoder"))


def call_of(
    model: Model,
    text: str,
    *,
    dimensions: int | None = None,
    truncate_prompt_tokens: int | None = None,
) -> EmbeddingCall:
    return embedding_call(
        [text],
        EmbeddingOptions(dimensions=dimensions, truncate_prompt_tokens=truncate_prompt_tokens),
        model,
        max_model_len=12,
        embedding_dim=8,
        request_id="r",
        input_field="input",
    )


def tokens_of(model: Model, text: str, truncate_prompt_tokens: int | None = None) -> list[int]:
    call = call_of(model, text, truncate_prompt_tokens=truncate_prompt_tokens)
    tokens: list[int] = call.requests[0].prompt_token_ids.tolist()
    return tokens


def test_special_tokens_are_added_and_nothing_is_cut_or_padded(encoder: Model) -> None:
    assert tokens_of(encoder, "Tokenizers are made!") == [2, 4, 5, 6, 7, 8, 9, 3]


@pytest.mark.parametrize(
    ("kept", "tokens"),
    [(8, [2, 4, 5, 6, 7, 8, 9, 3]), (5, [2, 4, 5, 6, 3]), (3, [2, 4, 3]), (2, [2, 3]), (1, [2])],
)
def test_truncation_keeps_the_special_tokens(encoder: Model, kept: int, tokens: list[int]) -> None:
    assert tokens_of(encoder, "Tokenizers are made!", truncate_prompt_tokens=kept) == tokens


def test_a_text_of_many_characters_may_have_few_tokens(encoder: Model) -> None:
    assert tokens_of(encoder, " " * 5000 + "x" * 5000) == [2, 1, 3]
    with pytest.raises(RequestError, match=r"input has an entry of 15 tokens; .* at most 12"):
        tokens_of(encoder, "are " * 13)


def test_word_pieces_are_spelt(encoder: Model) -> None:
    text = encoder.tokenizer.decode([4, 5, 6, 7, 8, 9], skip_special_tokens=True)
    assert text == " tokenizers are made !"


def test_vectors_are_cut_only_where_the_model_was_trained_for_it(tmp_path: Path) -> None:
    directory = tiny_model.build(tmp_path / "tiny")
    cases: list[tuple[dict[str, object], set[int]]] = [
        ({}, {8}),
        ({"is_matryoshka": True}, set(range(1, 9))),
        ({"matryoshka_dimensions": [2, 4]}, {2, 4, 8}),
    ]
    for said, allowed in cases:
        write_json(directory / "config.json", {"vocab_size": 400, **said})
        model = load_model(directory)
        for dimensions in range(1, 9):
            if dimensions in allowed:
                kept = call_of(model, "x", dimensions=dimensions).dimensions
                assert kept == (None if dimensions == 8 else dimensions)
            else:
                with pytest.raises(RequestError, match=f"dimensions is {dimensions}"):
                    call_of(model, "x", dimensions=dimensions)


def test_what_is_kept_of_a_vector_has_length_one_again() -> None:
    vector = np.array([3, 4, 12, 84], "<f4")
    assert shortened(vector.tobytes(), None).tolist() == vector.tolist()
    assert np.allclose(shortened(vector.tobytes(), 2), [0.6, 0.8])
    assert np.isclose(np.linalg.norm(shortened(vector.tobytes(), 3)), 1)
    assert shortened(np.zeros(4, "<f4").tobytes(), 2).tolist() == [0, 0]
