"""Text comes out whole, however its tokens arrive."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from gateway.detokenizer import Detokenizer, TextOffsets
from gateway.errors import ModelError
from gateway.model import Model
from gateway.vocabulary import token_bytes


def in_chunks(bytes_of: list[bytes], tokens: list[int], cuts: list[int]) -> list[str]:
    """The texts of the tokens cut at `cuts`, and what came at the end."""
    detokenizer = Detokenizer(bytes_of)
    edges = sorted({0, len(tokens), *(cut % (len(tokens) + 1) for cut in cuts)})
    texts = [detokenizer.feed(tokens[start:end]) for start, end in itertools.pairwise(edges)]
    return [*texts, detokenizer.close()]


@given(text=st.text(), cuts=st.lists(st.integers(min_value=0)))
def test_any_text_survives_any_cut(model: Model, text: str, cuts: list[int]) -> None:
    tokenizer = model.tokenizer
    tokens = tokenizer.encode_pieces([text])
    assert "".join(in_chunks(tokenizer.bytes_of, tokens, cuts)) == text


@given(st.lists(st.integers(min_value=3, max_value=399)), st.lists(st.integers(min_value=0)))
def test_any_tokens_read_as_the_tokenizer_itself_reads_them(
    model: Model, tokens: list[int], cuts: list[int]
) -> None:
    """Also those that are not UTF-8, of which models make some."""
    whole = model.tokenizer._tokenizer.decode(tokens, skip_special_tokens=False)
    assert "".join(in_chunks(model.tokenizer.bytes_of, tokens, cuts)) == whole


@given(st.lists(st.integers(min_value=3, max_value=399)), st.integers(min_value=0, max_value=9))
def test_a_token_begins_where_the_text_before_it_ends(
    model: Model, tokens: list[int], start: int
) -> None:
    offsets = TextOffsets(model.tokenizer.bytes_of, start)
    cut = len(tokens) // 2
    told = [*offsets.feed(tokens[:cut]), *offsets.feed(tokens[cut:]), offsets.end]
    before = [
        Detokenizer(model.tokenizer.bytes_of).feed(tokens[:end]) for end in range(len(tokens) + 1)
    ]
    assert told == [start + len(text) for text in before]


def test_an_emoji_is_shown_with_its_last_byte(model: Model) -> None:
    tokenizer = model.tokenizer
    tokens = [tokenizer.bytes_of.index(bytes([byte])) for byte in "🙃".encode()]
    detokenizer = Detokenizer(tokenizer.bytes_of)
    assert [detokenizer.feed([token]) for token in tokens] == ["", "", "", "🙃"]
    assert detokenizer.close() == ""


def test_what_never_becomes_a_character_is_shown_as_replacement(model: Model) -> None:
    tokenizer = model.tokenizer
    first_byte = tokenizer.bytes_of.index("é".encode()[:1])
    letter = tokenizer.bytes_of.index(b"x")
    detokenizer = Detokenizer(tokenizer.bytes_of)
    assert detokenizer.feed([first_byte]) == ""
    assert detokenizer.feed([letter]) == "\ufffdx"
    assert detokenizer.feed([first_byte]) == ""
    assert detokenizer.close() == "\ufffd"


def test_special_tokens_are_hidden_or_written_out(model: Model) -> None:
    tokens = [*model.tokenizer.encode_pieces(["a fox"]), 2]
    assert model.tokenizer.decode(tokens, skip_special_tokens=True) == "a fox"
    assert model.tokenizer.decode(tokens, skip_special_tokens=False) == "a fox<|im_end|>"


SENTENCE_PIECE = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ],
}


def test_sentencepiece_tokens_keep_the_space_between_prompt_and_output() -> None:
    vocabulary = {"▁Paris": 0, "<0xC3>": 1, "<0xA9>": 2, "!": 3}
    from tokenizers import models

    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    table = token_bytes(tokenizer, SENTENCE_PIECE, 5)
    assert table == [b" Paris", b"\xc3", b"\xa9", b"!", b""]


@pytest.mark.parametrize("decoder", [None, {"type": "CTC", "pad_token": "<pad>", "cleanup": True}])
def test_other_decoders_are_refused_at_start(model: Model, decoder: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="is not supported"):
        token_bytes(model.tokenizer._tokenizer, decoder, 400)
