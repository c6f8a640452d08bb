"""Which characters of a text its tokens cover.

The tokenizers library says so itself. Of a library that gives ids alone, it follows from the bytes that each token of
the vocabulary stands for, if those of all ids, one after the other, are the text: then nothing in it is covered twice,
left out or changed. Of any other text the tokenizers library is asked.
"""

from functools import cached_property
from typing import Protocol

import numpy as np
from tokenizers import Encoding
from tokenizers import Tokenizer as HFTokenizer

_SPACE = "▁"  # SentencePiece's
_PRINTED = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
"""Bytes that byte-level BPE, as GPT-2 has it, writes as the characters of these numbers; the others follow 0xFF."""


class Alignment(Protocol):
    ids: np.ndarray  # [tokens] uint32

    @property
    def is_text(self) -> bool:
        """Whether it is known that the tokens, decoded one by one, are the text."""

    def token_from(self, character: int) -> int:
        """The first token that has this character, or a later one where none has it."""

    def begin_of(self, token: int) -> int:
        """The first character that a token covers, or covers in part."""

    def end_of(self, token: int) -> int:
        """Likewise the last + 1."""


class GivenAlignment:
    """What the tokenizers library says."""

    is_text = False

    def __init__(self, encoding: Encoding) -> None:
        self.ids = np.array(encoding.ids, np.uint32)
        self._encoding = encoding

    @cached_property
    def _size(self) -> int:
        return self.end_of(len(self.ids) - 1) if len(self.ids) else 0

    def token_from(self, character: int) -> int:
        while character < self._size:
            token = self._encoding.char_to_token(character)
            if token is not None:
                return token
            character += 1
        return len(self.ids)

    def begin_of(self, token: int) -> int:
        return self._encoding.token_to_chars(token)[0]

    def end_of(self, token: int) -> int:
        return self._encoding.token_to_chars(token)[1]


class ByteAlignment:
    """What follows from the bytes of the tokens."""

    is_text = True

    def __init__(self, ids: np.ndarray, text: bytes, ends: np.ndarray) -> None:
        """With the last byte + 1 of each token, int64 [tokens]."""
        self.ids = ids
        self._ends = ends
        self._starts: np.ndarray | None = None  # the first byte of each character, where some have several
        if not text.isascii():
            letters = np.frombuffer(text, np.int8)
            self._starts = np.flatnonzero(letters >= -0x40)  # bytes within a character are 0x80 to 0xBF
        self._size = len(text) if self._starts is None else len(self._starts)

    def token_from(self, character: int) -> int:
        if character >= self._size:
            return len(self.ids)
        byte = character if self._starts is None else self._starts[character]
        return int(self._ends.searchsorted(byte, side="right"))

    def begin_of(self, token: int) -> int:
        byte = int(self._ends[token - 1]) if token else 0
        return byte if self._starts is None else int(self._starts.searchsorted(byte, side="right")) - 1

    def end_of(self, token: int) -> int:
        byte = int(self._ends[token])
        return byte if self._starts is None else int(self._starts.searchsorted(byte, side="left"))


class TokenBytes:
    """The bytes that each token of a vocabulary stands for."""

    def __init__(self, tokenizer: HFTokenizer) -> None:
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        added = {index: token.content for index, token in tokenizer.get_added_tokens_decoder().items()}
        own = {index: piece for piece, index in vocabulary.items() if index not in added}
        letters = {chr(byte): byte for byte in _PRINTED}
        others = [byte for byte in range(0x100) if byte not in _PRINTED]
        letters |= {chr(0x100 + number): byte for number, byte in enumerate(others)}
        is_byte_level = all(letters.keys() >= set(piece) for piece in own.values())
        self._bytes = [b""] * (1 + max([*own, *added], default=-1))
        for index, piece in own.items():
            if is_byte_level:
                self._bytes[index] = bytes(map(letters.__getitem__, piece))
            else:
                self._bytes[index] = _bytes_of_piece(piece)
        for index, name in added.items():
            self._bytes[index] = name.encode()
        self._sizes = np.array([len(own) for own in self._bytes], np.int64)

    def align(self, ids: np.ndarray, text: bytes) -> ByteAlignment | None:
        """None if the bytes of the tokens are not the text, but for a space that a tokenizer puts before it."""
        if not len(ids) or int(ids.max()) >= len(self._bytes):
            return None
        joined = b"".join(map(self._bytes.__getitem__, ids.tolist()))
        ends = self._sizes[ids].cumsum()
        if joined == text:
            return ByteAlignment(ids, text, ends)
        # where that space is a token of its own, the tokenizers library has it cover the first character too
        if joined[:1] == b" " and joined[1:] == text and ends[0] > 1:
            return ByteAlignment(ids, text, ends - 1)
        return None


def _bytes_of_piece(piece: str) -> bytes:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes.fromhex(piece[3:5])
    return piece.replace(_SPACE, " ").encode()
