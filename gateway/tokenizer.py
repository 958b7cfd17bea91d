"""Text to tokens and back, for one model directory (tokenizer.json).

Encoding and decoding are safe to call from threads, and release the interpreter lock.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers

from gateway.errors import ModelError
from gateway.vocabulary import token_bytes


class Tokenizer:
    """One model's tokens; `vocab_size` is the model's, which may exceed the tokenizer's."""

    def __init__(self, path: Path, vocab_size: int) -> None:
        """Reads tokenizer.json; raises ModelError if it is missing, broken or another model's."""
        try:
            content = path.read_text(encoding="utf-8")
            layout = json.loads(content)
            self._tokenizer = tokenizers.Tokenizer.from_str(content)
        except FileNotFoundError as error:
            raise ModelError(
                f"{path.parent} has no {path.name}; the router needs one, with random weights too"
            ) from error
        except Exception as error:  # the tokenizers library raises nothing more precise
            raise ModelError(f"{path} cannot be read: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.vocab_size = vocab_size
        largest = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
        if largest >= vocab_size:
            raise ModelError(
                f"{path.name} has token id {largest}, but vocab_size in config.json is "
                f"{vocab_size}: they do not belong together"
            )
        self.bytes_of = token_bytes(self._tokenizer, layout.get("decoder"), vocab_size)
        """The bytes each token stands for, special ones too."""
        self.special_tokens = {
            token: added.content
            for token, added in self._tokenizer.get_added_tokens_decoder().items()
            if added.special
        }
        self.visible_bytes_of = list(self.bytes_of)
        """The same, where special tokens stand for nothing."""
        for token in self.special_tokens:
            self.visible_bytes_of[token] = b""
        self._shown: dict[frozenset[int], list[bytes]] = {frozenset(): self.visible_bytes_of}
        # A WordPiece tokenizer drops what is no word, and makes one token of a word too long.
        drops = (layout.get("decoder") or {}).get("type") == "WordPiece"
        self._longest = sys.maxsize if drops else max(map(len, self.bytes_of))

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Tokens of `text`; special tokens written out in it become special tokens."""
        encoding = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return encoding[0].ids

    def encode_start(self, text: str, num_tokens: int) -> list[int]:
        """At most so many tokens: the model's special ones, and what fits of the text between."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        num_special = self._tokenizer.num_special_tokens_to_add(False)
        encoding.truncate(max(0, num_tokens - num_special))
        return self._tokenizer.post_process(encoding).ids[:num_tokens]

    def encode_pieces(self, pieces: Iterable[str]) -> list[int]:
        """Tokens of the pieces one after another; no token spans two pieces."""
        tokens: list[int] = []
        for piece in pieces:
            tokens += self.encode(piece, add_special_tokens=False)
        return tokens

    def shown_bytes_of(self, shown: frozenset[int]) -> list[bytes]:
        """Where special tokens stand for nothing, but for those `shown`: few such sets exist, one
        for each way to read answers."""
        table = self._shown.get(shown)
        if table is None:
            table = list(self.visible_bytes_of)
            for token in shown:
                table[token] = self.bytes_of[token]
            self._shown[shown] = table
        return table

    def least_tokens(self, num_characters: int) -> int:
        """A text of so many characters has at least so many tokens: known without tokenizing it."""
        return -(-num_characters // self._longest)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Text of a whole sequence; each malformed piece of UTF-8 reads as U+FFFD."""
        table = self.visible_bytes_of if skip_special_tokens else self.bytes_of
        return b"".join([table[token] for token in token_ids]).decode("utf-8", "replace")

    def token_id(self, content: str) -> int | None:
        """The token written exactly so, if there is one."""
        return self._tokenizer.token_to_id(content)

    def special_token(self, content: str) -> int | None:
        """The special token written exactly so, if there is one."""
        token = self.token_id(content)
        return token if token in self.special_tokens else None
