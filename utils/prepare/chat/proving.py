"""Runs of characters to runs of tokens, each proven to be what it must be.

1. No token lies over where a run begins: a model never writes that token after the prompt's.
2. The tokens before a run are those of the prompt alone, which is what serving gives.
3. A run's tokens decode to its text.
"""

import numpy as np
from tokenizers import Encoding

from lit_gpt.tokenizer.hf_tokenizer import tokenizer_with_offsets
from lit_gpt.tokenizer.tokenizer import Tokenizer
from utils.prepare.chat.targets import Span, Unproven, short

KNOWN_PROMPTS, KNOWN_CHARACTERS = 10_000, 200  # ends of prompts whose tokens are remembered, and how long
_HEADER_TOKENS = 16  # most prompts end with a special token and fewer tokens after it


class ProvingTokenizer:
    """The tokenizer of texts whose tokens are proven; with `hidden_names`, as `tokenizer_with_offsets` has it."""

    def __init__(self, tokenizer: Tokenizer, hidden_names: bool) -> None:
        self._hf = tokenizer_with_offsets(tokenizer, hidden_names)
        added = list(self._hf.get_added_tokens_decoder())
        self._is_added = np.zeros(max([*self._hf.get_vocab().values(), *added]) + 1, bool)
        self._is_added[added] = True
        self._prompts: dict[str, list[int]] = {}

    def encode_batch(self, texts: list[str]) -> list[Encoding]:
        return self._hf.encode_batch(texts, add_special_tokens=False)

    def tokens_of(self, found: Encoding, begin: int, end: int) -> tuple[int, int]:
        """The first token and the last + 1 that have a character of `begin` to `end`."""
        first = _token_from(found, begin)
        return first, max(first, _token_from(found, end - 1) + 1)

    def prove(self, found: Encoding, ids: np.ndarray, text: str, run: Span) -> tuple[int, int]:
        """The first token and the last + 1 of a run; raises Unproven."""
        first, end = _token_from(found, run.begin), _token_from(found, run.end)
        if first < len(ids) and (begins := found.token_to_chars(first)[0]) < run.begin:
            over = text[begins : found.token_to_chars(first)[1]]
            detail = f"the token {short(over)} begins before the answer and ends in it: serving has another one there"
            raise Unproven("token_over_border", detail)
        if first == 0:
            raise Unproven("no_prompt", "the answer begins the text: nothing is there to predict its first token from")
        # a token that goes on behind the run is not the answer's, if only white space of the answer is in it
        reach = min(run.end, found.token_to_chars(end)[0]) if end < len(ids) else run.end
        if text[reach : run.end].strip():
            over = text[reach : found.token_to_chars(end)[1]]
            raise Unproven("token_over_border", f"the token {short(over)} begins in the answer and ends behind it")
        self._prove_prompt(found, ids, text, run.begin, first)
        self._prove_text(ids[first:end].tolist(), text[run.begin : reach])
        return first, end

    def _prove_prompt(self, found: Encoding, ids: np.ndarray, text: str, begin: int, first: int) -> None:
        # what stands before a special token is tokenised apart, and is the same text in both
        since = max(0, first - _HEADER_TOKENS)
        added = np.flatnonzero(self._is_added[ids[since:first]])
        if not len(added) and since:
            since, added = 0, np.flatnonzero(self._is_added[ids[:first]])
        last = since + int(added[-1]) if len(added) else 0
        prompt = text[found.token_to_chars(last)[0] if len(added) else 0 : begin]
        expected = self._prompts.get(prompt)
        if expected is None:
            expected = self._hf.encode(prompt, add_special_tokens=False).ids
            if len(prompt) <= KNOWN_CHARACTERS and len(self._prompts) < KNOWN_PROMPTS:
                self._prompts[prompt] = expected
        if ids[last:first].tolist() != expected:
            detail = f"the tokens of the prompt {short(prompt[-30:])} alone are other ones than before the answer"
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


def _token_from(found: Encoding, character: int) -> int:
    """The first token that has this character, or a later one where none has it."""
    size = found.token_to_chars(len(found) - 1)[1] if len(found) else 0
    while character < size:
        token = found.char_to_token(character)
        if token is not None:
            return token
        character += 1
    return len(found)
