"""Runs of characters to runs of tokens, each proven to be what it must be.

1. No token lies over where a run begins: a model never writes that token after the prompt's.
2. The tokens before a run are those of the prompt alone, which is what serving gives.
3. A run's tokens decode to its text.
"""

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Protocol

import numpy as np

from lit_gpt.tokenizer.batches import batches
from lit_gpt.tokenizer.hf_tokenizer import tokenizer_with_offsets
from lit_gpt.tokenizer.tokenizer import Tokenizer
from utils.prepare.chat.alignment import Alignment, GivenAlignment, TokenBytes
from utils.prepare.chat.answers import short
from utils.prepare.chat.targets import Span, Unproven

KNOWN_PROMPTS, KNOWN_CHARACTERS = 10_000, 200  # ends of prompts whose tokens are remembered, and how long
BATCH_CHARACTERS = 500_000  # of text that the tokenizers library gets at once: it takes some 200 bytes per token
_HEADER_TOKENS = 16  # most prompts end with a special token and fewer tokens after it


class FastTokens(Protocol):
    """A faster library that gives the tokens of UTF-8 texts in which special tokens stand by their names."""

    def start_block(self, texts: list[bytes], slowly: Callable[[list[bytes]], list[np.ndarray]]) -> None:
        """Compares it with the tokenizers library on the first of a block's texts; a DataError if it is wrong."""

    def encode(self, texts: list[bytes]) -> list[np.ndarray | None]:
        """The ids of each text, uint32 [tokens]; None where the tokenizers library is to be asked."""


class ProvingTokenizer:
    """The tokenizer of texts whose tokens are proven; with `hidden_names`, as `tokenizer_with_offsets` has it."""

    def __init__(self, tokenizer: Tokenizer, hidden_names: bool, fast: FastTokens | None = None) -> None:
        self._hf = tokenizer_with_offsets(tokenizer, hidden_names)
        self._fast = fast
        added = list(self._hf.get_added_tokens_decoder())
        self._is_added = np.zeros(max([*self._hf.get_vocab().values(), *added]) + 1, bool)
        self._is_added[added] = True
        self._prompts: dict[str, list[int]] = {}

    def encode_block(self, texts: list[str]) -> Iterator[Alignment]:
        """Those of a block's texts, in their order."""
        if self._fast is not None:
            self._fast.start_block([text.encode() for text in texts], self._ids)
        for batch in batches(texts, BATCH_CHARACTERS):
            yield from self.encode_batch(batch)

    def encode_batch(self, texts: list[str]) -> list[Alignment]:
        encoded = [text.encode() for text in texts]
        ids = self._fast.encode(encoded) if self._fast is not None else [None] * len(texts)
        slowly = iter(self._ids([text for text, found in zip(encoded, ids, strict=True) if found is None]))
        aligned: list[Alignment] = []
        for number, found in enumerate(ids):
            alignment = self._bytes.align(next(slowly) if found is None else found, encoded[number])
            aligned.append(alignment or self._given(texts[number]))
        return aligned

    def _given(self, text: str) -> GivenAlignment:
        return GivenAlignment(self._hf.encode(text, add_special_tokens=False))

    def _ids(self, texts: list[bytes]) -> list[np.ndarray]:
        found = self._hf.encode_batch_fast([text.decode() for text in texts], add_special_tokens=False)
        return [np.array(encoding.ids, np.uint32) for encoding in found]

    @cached_property
    def _bytes(self) -> TokenBytes:
        return TokenBytes(self._hf)

    def tokens_of(self, found: Alignment, begin: int, end: int) -> tuple[int, int]:
        """The first token and the last + 1 that have a character of `begin` to `end`."""
        first = found.token_from(begin)
        return first, max(first, found.token_from(end - 1) + 1)

    def prove(self, found: Alignment, text: str, run: Span) -> tuple[int, int]:
        """The first token and the last + 1 of a run; raises Unproven."""
        ids = found.ids
        first, end = found.token_from(run.begin), found.token_from(run.end)
        if first < len(ids) and (begins := found.begin_of(first)) < run.begin:
            over = text[begins : found.end_of(first)]
            detail = f"the token {short(over)} begins before the answer and ends in it: serving has another one there"
            if over.isspace():
                detail += "; an answer without blanks at its beginning has none"
            raise Unproven("token_over_border", detail)
        if first == 0:
            raise Unproven("no_prompt", "the answer begins the text: nothing is there to predict its first token from")
        # a token that goes on behind the run is not the answer's, if only white space of the answer is in it
        reach = min(run.end, found.begin_of(end)) if end < len(ids) else run.end
        if text[reach : run.end].strip():
            over = text[reach : found.end_of(end)]
            raise Unproven("token_over_border", f"the token {short(over)} begins in the answer and ends behind it")
        if reach < run.end and reach <= run.open_to:
            detail = f"what ends the answer is in the token {short(text[reach : found.end_of(end)])} with what follows"
            raise Unproven("token_over_border", detail)
        self._prove_prompt(found, text, run.begin, first)
        if not found.is_text or reach < run.end:
            self._prove_text(ids[first:end].tolist(), text[run.begin : reach])
        return first, end

    def _prove_prompt(self, found: Alignment, text: str, begin: int, first: int) -> None:
        ids = found.ids
        # what stands before a special token is tokenised apart, and is the same text in both
        since = max(0, first - _HEADER_TOKENS)
        added = np.flatnonzero(self._is_added[ids[since:first]])
        if not len(added) and since:
            since, added = 0, np.flatnonzero(self._is_added[ids[:first]])
        last = since + int(added[-1]) if len(added) else 0
        prompt = text[found.begin_of(last) if len(added) else 0 : begin]
        expected = self._prompts.get(prompt)
        if expected is None:
            expected = self._hf.encode(prompt, add_special_tokens=False).ids
            if len(prompt) <= KNOWN_CHARACTERS and len(self._prompts) < KNOWN_PROMPTS:
                self._prompts[prompt] = expected
        if ids[last:first].tolist() != expected:
            alone = f"the prompt {short(prompt[-30:])} alone has other tokens than before the answer"
            detail = f"{alone}: serving would not be as training was; another template may suit this tokenizer"
            raise Unproven("prompt_tokens", detail)

    def _prove_text(self, ids: list[int], text: str) -> None:
        decoded = self._hf.decode(ids, skip_special_tokens=False)
        if decoded == text:
            return
        # a decoder may take the space from a text's beginning, or put one between words
        normalizer = self._hf.normalizer
        normal = normalizer.normalize_str(text).replace("▁", " ") if normalizer else text
        if "".join(decoded.split()) not in ("".join(text.split()), "".join(normal.split())):
            detail = f"the answer {short(text)} has characters that the tokenizer does not have: {short(decoded)}"
            raise Unproven("unknown_characters", detail)
