"""Which characters tokens cover, by their bytes: beside what the tokenizers library says of the same tokens."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import models, normalizers, pre_tokenizers

from lit_gpt.tokenizer.hf_tokenizer import tokenizer_with_offsets
from lit_gpt.tokenizer.tokenizer import Tokenizer
from tests.conftest import SHARED, TOKENIZER
from utils.prepare.chat.alignment import GivenAlignment, TokenBytes

PIECES = ["<s>", "</s>", "<|endoftext|>", "<|im_end|>", " ", "  ", "\n", "\t", "a", " hello", "Hello", "s's", "1234"]
PIECES += ["é", "e\u0301", "ﬁ", "中", "文字", "Привет", " мир", "🙂", "👩‍💻", "\u200d", "\ufeff", "▁"]
PIECES += ["<0x41>", "Ġ"]
FOLDERS = [TOKENIZER] + [
    pytest.param(SHARED / "tokenizers" / name, marks=pytest.mark.shared)
    for name in ("gpt2", "falcon", "mistral-7b-v0.1")
]


@cache
def loaded(folder) -> tuple[HFTokenizer, TokenBytes]:
    hf = tokenizer_with_offsets(Tokenizer(folder), hidden_names=False)
    return hf, TokenBytes(hf)


@pytest.mark.parametrize("folder", FOLDERS)
@settings(max_examples=150, deadline=None)
@given(pieces=st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=4)), max_size=12))
def test_tokens_cover_what_the_tokenizers_library_says(folder, pieces):
    text = "".join(pieces)
    hf, token_bytes = loaded(folder)
    given_alignment = GivenAlignment(hf.encode(text, add_special_tokens=False))
    ids = given_alignment.ids
    aligned = token_bytes.align(ids, text.encode("utf-8", "surrogatepass"))
    if aligned is None:  # the text is changed by the tokenizer, or nothing but the space before it
        joined = hf.decode(ids.tolist(), skip_special_tokens=False)
        assert "\ufffd" in joined or joined != text or len(ids) < 2 or folder in (TOKENIZER, FOLDERS[-1].values[0])
        return
    assert [aligned.token_from(place) for place in range(len(text) + 1)] == [
        given_alignment.token_from(place) for place in range(len(text) + 1)
    ]
    covered = [(aligned.begin_of(token), aligned.end_of(token)) for token in range(len(ids))]
    assert covered == [(given_alignment.begin_of(token), given_alignment.end_of(token)) for token in range(len(ids))]


@pytest.mark.parametrize("folder", FOLDERS)
def test_usual_texts_are_aligned(folder):
    hf, token_bytes = loaded(folder)
    for text in ("Hello, world", "un\n\ndeux 🙂 x", "A Привет, мир! 中文", "a</s>b"):
        ids = np.array(hf.encode(text, add_special_tokens=False).ids, np.uint32)
        assert token_bytes.align(ids, text.encode()) is not None
        assert token_bytes.align(ids, f"{text}!".encode()) is None
        assert token_bytes.align(ids[:-1], text.encode()) is None


def test_a_text_that_is_changed_is_not_aligned():
    hf = HFTokenizer(models.BPE({"a": 0, "b": 1}, []))
    hf.normalizer, hf.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    token_bytes = TokenBytes(hf)
    for text, fits in (("ab", True), ("Ab", False), ("a b", False), ("abc", False), ("", False)):
        ids = np.array(hf.encode(text).ids, np.uint32)
        assert (token_bytes.align(ids, text.encode()) is not None) == fits, text
    assert token_bytes.align(np.array([7], np.uint32), b"a") is None
