"""What tests of chats share: an encoder, and its samples read back by other code than its own."""

from collections import Counter
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as HFTokenizer

from lit_gpt.tokenizer.shipped_templates import template_source
from lit_gpt.tokenizer.tokenizer import Tokenizer
from utils.data.parts import TARGET
from utils.prepare.chat import encoding
from utils.prepare.chat.conversation import ChatRecipe, Conversation
from utils.prepare.chat.encoding import ChatEncoder, EncodedChats
from utils.prepare.chat.proving import ProvingTokenizer

CHATML = ("<|im_start|>", "<|im_end|>")
# reading a tokenizer takes up to a second, and many templates are tried with one
_encoder = lru_cache(ChatEncoder)
_tokenizer = lru_cache(Tokenizer)
_proving_tokenizer = lru_cache(ProvingTokenizer)


def encode(
    folder, template, *conversations, targets="assistant", too_long="turns", system=None, window=1000, tools=None
):
    if "{" not in template:
        template = template_source(template, _tokenizer(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "Tokenizer", _tokenizer)
        patch.setattr(encoding, "ProvingTokenizer", _proving_tokenizer)
        encoder = _encoder(folder, ChatRecipe(template, targets, too_long, system), window)
        return encoder([Conversation(messages, tools, at) for at, messages in enumerate(conversations)])


def samples(encoded: EncodedChats) -> list[tuple[np.ndarray, np.ndarray]]:
    ends = np.cumsum(encoded.lengths)
    parts = np.zeros(len(encoded.tokens), np.uint8) if encoded.parts is None else encoded.parts
    return [(encoded.tokens[end - n : end], parts[end - n : end]) for end, n in zip(ends, encoded.lengths, strict=True)]


def target_texts(folder: Path, encoded: EncodedChats) -> list[list[str]]:
    """The text of each run of targets of each sample, decoded on its own."""
    hf = HFTokenizer.from_file(str(folder / "tokenizer.json"))
    found = []
    for ids, parts in samples(encoded):
        runs: list[list[int]] = []
        for index, part in enumerate(parts):
            if part != TARGET:
                continue
            if not index or parts[index - 1] != TARGET:
                runs.append([])
            runs[-1].append(int(ids[index]))
        found.append([hf.decode(run, skip_special_tokens=False) for run in runs])
    return found


def reasons(encoded: EncodedChats) -> Counter[str]:
    return Counter(left.reason for left in encoded.left_out)
