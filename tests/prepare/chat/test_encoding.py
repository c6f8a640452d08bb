"""Conversations to tokens and targets, on templates of our own; tests/prepare/chat/test_complaints.py has real ones."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer as HFTokenizer

from tests.prepare.chat.chat_tokenizers import with_tokens
from tests.prepare.chat.conversations import turns
from tests.prepare.chat.encoded import CHATML, encode, reasons, samples, target_texts
from utils.data.parts import PARTS

pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
def chatml(tmp_path_factory):
    return with_tokens("gpt2", tmp_path_factory.mktemp("chatml"), CHATML, "<|endoftext|>", "<|endoftext|>")


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
