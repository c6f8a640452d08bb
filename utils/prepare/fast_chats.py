"""The faster library for texts of chats, chosen by the first of them."""

from collections.abc import Callable

import numpy as np

from lit_gpt.tokenizer.hf_tokenizer import read_sentencepiece
from lit_gpt.tokenizer.tokenizer import Tokenizer
from utils.prepare.encoding import FastTokenizer, Library, choose_library
from utils.prepare.gigatoken_proof import GIGATOKEN, Proof

SAMPLE_CHARACTERS = 2**17  # text of the first block on which the faster library has to prove itself
_OWN = Library("tokenizers", "gigatoken is tried for chats of 32 MB and more")


class FastChats:
    """gigatoken if it gives the right tokens for the first texts that it sees, in which special tokens are tokens."""

    def __init__(self, tokenizer: Tokenizer, proof: Proof | None) -> None:
        """With what is known of gigatoken; None if it is not to be used."""
        self._tokenizer, self._proof = tokenizer, proof
        self._fast: FastTokenizer | None = None
        self.library = _OWN

    def start_block(self, texts: list[bytes], slowly: Callable[[list[bytes]], list[np.ndarray]]) -> None:
        """A DataError if gigatoken was right for earlier blocks and gives other tokens for the first of `texts`."""
        if self.library is _OWN and texts and self._proof is not None:
            self.library = self._choose(texts)
            if self.library.name == GIGATOKEN:
                self._fast = FastTokenizer(self._tokenizer, self.library.avoid, special_tokens_in_text=True)
        if self._fast is not None:
            self._fast.start_block(texts, slowly)

    def encode(self, texts: list[bytes]) -> list[np.ndarray | None]:
        return self._fast.encode(texts) if self._fast is not None else [None] * len(texts)

    def _choose(self, texts: list[bytes]) -> Library:
        if self._tokenizer.library == "sentencepiece":
            model = read_sentencepiece(self._tokenizer.directory / "tokenizer.model")
            if model.normalizer_spec.precompiled_charsmap:
                return Library("tokenizers", "it normalises a text as gigatoken and sentencepiece do not")
        sample, size = [], 0
        for text in texts:
            if size < SAMPLE_CHARACTERS:
                sample.append(text.decode())
                size += len(text)
        return choose_library(self._tokenizer, sample, self._proof, True)
