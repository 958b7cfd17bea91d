"""What each token id stands for, as bytes.

A tokenizer's decoder is, for the families served here, a function of one token at a time: a
byte-level token spells bytes in GPT-2's printable alphabet, a SentencePiece-like one spells text
with "▁" for a space, or one byte as "<0xE4>", a WordPiece (of encoders) spells a word, or with "##"
the rest of one. So the text of a sequence is the UTF-8 reading of its
tokens' bytes put together, and detokenizing needs nothing but this table.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from gateway.errors import ModelError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_PIECE_DECODERS = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}


def token_bytes(tokenizer: Tokenizer, decoder: Mapping[str, Any] | None, size: int) -> list[bytes]:
    """The bytes of tokens 0 to size - 1; an id that no token has stands for nothing.

    `decoder` is that part of tokenizer.json. "Strip" (of the space before the very first word) is
    left out on purpose: an output continues its prompt, and its first space belongs to it.

    Raises ModelError for a decoder of another family.
    """
    spell = _speller(_flatten(decoder))
    table = [b""] * size
    for text, token in tokenizer.get_vocab(with_added_tokens=True).items():
        table[token] = spell(text)
    return table


def _flatten(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        return [leaf for part in decoder["decoders"] for leaf in _flatten(part)]
    return [decoder]


def _speller(decoders: Sequence[Mapping[str, Any]]) -> Callable[[str], bytes]:
    kinds = {decoder["type"] for decoder in decoders}
    if "ByteLevel" in kinds:
        return _spell_byte_level
    if kinds == {"WordPiece"}:
        return _word_piece_speller(decoders[0]["prefix"])
    if kinds and kinds <= _PIECE_DECODERS:
        return _piece_speller(decoders, byte_fallback="ByteFallback" in kinds)
    raise ModelError(
        f"tokenizer.json: decoder {', '.join(sorted(kinds)) or 'null'} is not supported; "
        "it must be byte-level, SentencePiece-like or WordPiece"
    )


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte: itself if visible Latin-1, else from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    alphabet = {chr(byte): byte for byte in visible}
    alphabet.update({chr(0x100 + index): byte for index, byte in enumerate(hidden)})
    return alphabet


_ALPHABET = _byte_alphabet()


def _spell_byte_level(text: str) -> bytes:
    try:
        return bytes([_ALPHABET[character] for character in text])
    except KeyError:  # an added token, which is written as it is
        return text.encode()


def _word_piece_speller(prefix: str) -> Callable[[str], bytes]:
    """A token begins a word, unless it has the prefix. How words were spaced is not known."""

    def spell(text: str) -> bytes:
        return (
            text.removeprefix(prefix).encode() if text.startswith(prefix) else f" {text}".encode()
        )

    return spell


def _piece_speller(
    decoders: Sequence[Mapping[str, Any]], *, byte_fallback: bool
) -> Callable[[str], bytes]:
    replacements = [
        (decoder["pattern"]["String"], decoder["content"])
        if decoder["type"] == "Replace"
        else (decoder["replacement"], " ")
        for decoder in decoders
        if decoder["type"] in ("Replace", "Metaspace")
    ]

    def spell(text: str) -> bytes:
        if byte_fallback and (byte := _BYTE_TOKEN.fullmatch(text)):
            return bytes([int(byte[1], 16)])
        for old, new in replacements:
            text = text.replace(old, new)
        return text.encode()

    return spell
