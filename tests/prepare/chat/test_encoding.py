"""Conversations to tokens and targets: the known complaints about masks, each with the right value."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as HFTokenizer

from lit_gpt.tokenizer.shipped_templates import template_source
from lit_gpt.tokenizer.tokenizer import Tokenizer
from tests.prepare.chat.chat_tokenizers import with_tokens
from utils.data.parts import PARTS, TARGET
from utils.prepare.chat.conversation import ChatRecipe, Conversation
from utils.prepare.chat.encoding import ChatEncoder, EncodedChats

pytestmark = pytest.mark.shared
CHATML = ("<|im_start|>", "<|im_end|>")


@pytest.fixture(scope="module")
def chatml(tmp_path_factory):
    return with_tokens("gpt2", tmp_path_factory.mktemp("chatml"), CHATML, "<|endoftext|>", "<|endoftext|>")


def turns(*contents, system=None):
    head = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return head + [{"role": roles[index % 2], "content": content} for index, content in enumerate(contents)]


def encode(
    folder, template, *conversations, targets="assistant", too_long="turns", system=None, window=1000, tools=None
):
    if "{" not in template:
        template = template_source(template, Tokenizer(folder))
    encoder = ChatEncoder(folder, ChatRecipe(template, targets, too_long, system), window)
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


def test_three_turns_give_three_runs(chatml):
    encoded = encode(chatml, "chatml", turns("a", "Bonjour", "b", " Ça va ? ", "c", "Oui.\nMerci"))
    end = "<|im_end|>\n"
    assert target_texts(chatml, encoded) == [[f"Bonjour{end}", f"Ça va ?{end}", f"Oui.\nMerci{end}"]]
    assert encoded.messages == 6 and encoded.left_out == [] and encoded.named == {}
    assert encoded.target_bytes == len(f"Bonjour{end}Ça va ?{end}Oui.\nMerci{end}".encode())
    assert encoded.text_bytes == len(
        HFTokenizer.from_file(str(chatml / "tokenizer.json"))
        .decode(encoded.tokens.tolist(), skip_special_tokens=False)
        .encode()
    )


def test_names_of_control_tokens_in_messages_are_text_and_counted(chatml):
    encoded = encode(chatml, "chatml", turns("What is <|im_end|>?", "It is <|im_end|>."))
    hf = HFTokenizer.from_file(str(chatml / "tokenizer.json"))
    assert encoded.tokens.tolist().count(hf.token_to_id("<|im_end|>")) == 2
    assert target_texts(chatml, encoded) == [["It is <|im_end|>.<|im_end|>\n"]]
    assert encoded.named == {"<|im_end|>": 2}


def test_a_conversation_that_is_too_long_loses_whole_turns_or_is_left_out(chatml):
    long = turns("a", "one two three", "b", "four five six", "c", "seven " * 30)
    [(ids, _)] = samples(encode(chatml, "chatml", long, window=40))
    shortened = encode(chatml, "chatml", long, window=40)
    assert target_texts(chatml, shortened) == [["one two three<|im_end|>\n", "four five six<|im_end|>\n"]]
    assert (shortened.shortened, shortened.turns_left_out, len(ids)) == (1, 1, shortened.lengths[0])
    dropped = encode(chatml, "chatml", long, too_long="drop", window=40)
    assert reasons(dropped) == {"too_long": 1} and len(dropped.tokens) == 0


def test_weights_and_policies(chatml):
    messages = turns("a", "first", "b", "second")
    messages[1]["weight"] = 0
    encoded = encode(chatml, "chatml", messages)
    assert target_texts(chatml, encoded) == [["second<|im_end|>\n"]]
    assert PARTS.index("weight_0") in encoded.parts
    everything = encode(chatml, "chatml", turns("a", "b"), targets="all")
    assert everything.parts is None and everything.target_bytes == everything.text_bytes
    last = encode(chatml, "chatml", turns("a", "first", "b", "second"), targets="last")
    assert target_texts(chatml, last) == [["second<|im_end|>\n"]]
    but_one = encode(chatml, "chatml", messages, targets="all")
    assert "first" not in "".join(target_texts(chatml, but_one)[0]) and "second" in target_texts(chatml, but_one)[0][1]
