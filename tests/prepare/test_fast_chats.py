"""Chats tokenised by gigatoken: the same samples as without it, or an error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lit_gpt.errors import DataError
from lit_gpt.tokenizer.shipped_templates import template_source
from lit_gpt.tokenizer.tokenizer import Tokenizer
from tests.conftest import SHARED
from tests.prepare.chat.chat_tokenizers import with_tokens
from utils.prepare import encoding
from utils.prepare.chat.conversation import ChatRecipe, Conversation
from utils.prepare.chat.encoding import ChatEncoder, EncodedChats
from utils.prepare.fast_chats import FastChats
from utils.prepare.gigatoken_proof import GIGATOKEN, Proof, load_gigatoken_of_chats

pytestmark = pytest.mark.shared
pytest.importorskip(GIGATOKEN)
NEW_LETTER = "\ua7ce"  # of Unicode 17
TEXTS = (
    "Hi",
    " two  spaces ",
    "été 🙂👩‍💻",
    "Привет, мир",
    "中文。",
    "x<|im_end|>y",
    "</s> </s>",
    NEW_LETTER,
    "1\n\n2\n",
)


@pytest.fixture(scope="module", params=["gpt2", "mistral-7b-v0.1"])
def folder(request, tmp_path_factory) -> Path:
    if request.param != "gpt2":
        return SHARED / "tokenizers" / request.param
    added = ("<|im_start|>", "<|im_end|>")
    return with_tokens("gpt2", tmp_path_factory.mktemp("gpt2"), added, "<|endoftext|>", "<|endoftext|>")


def conversations(seed: int = 0, count: int = 60) -> list[Conversation]:
    rng = np.random.default_rng(seed)
    found = []
    for at in range(count):
        messages = []
        for number in range(2 * int(rng.integers(1, 5))):
            content = " ".join(rng.choice(TEXTS, int(rng.integers(1, 9))))
            messages.append({"role": ("user", "assistant")[number % 2], "content": content})
        found.append(Conversation(messages, None, at))
    return found


def encode(folder: Path, fast: FastChats | None, blocks: list[list[Conversation]]) -> list[EncodedChats]:
    template = template_source("chatml" if "gpt2" in folder.name else "saiga", Tokenizer(folder))
    encoder = ChatEncoder(folder, ChatRecipe(template, "assistant", "turns", None), 60, fast)
    return [encoder(block) for block in blocks]


def test_the_same_samples_are_made(folder):
    blocks = [conversations(0), [], conversations(1)]
    fast = FastChats(Tokenizer(folder), Proof("", NEW_LETTER))
    for ours, slow in zip(encode(folder, fast, blocks), encode(folder, None, blocks), strict=True):
        assert len(ours.left_out) == len(slow.left_out) and ours.left_out == slow.left_out
        for name in EncodedChats._fields:
            assert np.array_equal(getattr(ours, name), getattr(slow, name)), name
    assert fast.library.name == GIGATOKEN and fast.library.avoid[0] == NEW_LETTER.encode()
    assert {name for name in fast.library.avoid if b"<" in name} <= {b"<unk>"}


class Wrong:
    """gigatoken, but for texts that hold a word."""

    def __init__(self, folder: Path) -> None:
        self._right, self.word = load_gigatoken_of_chats(folder), b"\0"

    def encode(self, text: bytes) -> np.ndarray:
        ids = self._right.encode(text)
        return ids[::-1] if self.word in text else ids


def test_a_gigatoken_that_is_wrong_for_the_first_texts_is_not_used(folder, monkeypatch):
    wrong = Wrong(folder)
    monkeypatch.setattr(encoding, "load_gigatoken_of_chats", lambda folder: wrong)
    wrong.word = b"Hi"
    fast = FastChats(Tokenizer(folder), Proof("", ""))
    ours, slow = encode(folder, fast, [conversations()]), encode(folder, None, [conversations()])
    assert np.array_equal(ours[0].tokens, slow[0].tokens)
    assert fast.library.name != GIGATOKEN and "gives other tokens" in fast.library.reason


def test_a_gigatoken_that_turns_wrong_is_an_error(folder, monkeypatch):
    wrong = Wrong(folder)
    monkeypatch.setattr(encoding, "load_gigatoken_of_chats", lambda folder: wrong)
    fast = FastChats(Tokenizer(folder), Proof("", ""))
    encode(folder, fast, [conversations()])
    wrong.word = b"Hi"
    with pytest.raises(DataError, match=r"gigatoken gives other tokens than .* --fast_tokenizer false"):
        encode(folder, fast, [conversations()])


def test_what_is_not_wanted_is_not_used(folder):
    fast = FastChats(Tokenizer(folder), None)
    encode(folder, fast, [conversations()])
    assert fast.library.name != GIGATOKEN and "32 MB" in fast.library.reason
