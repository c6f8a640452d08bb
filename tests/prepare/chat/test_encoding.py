"""Conversations to tokens and targets, on templates of our own; tests/prepare/chat/test_complaints.py has real ones."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import models, pre_tokenizers

from lit_gpt.tokenizer.jinja_sandbox import CompiledTemplate
from tests.prepare.chat.chat_tokenizers import with_tokens
from tests.prepare.chat.conversations import turns
from tests.prepare.chat.encoded import CHATML, encode, reasons, samples, target_texts
from utils.data.parts import PARTS
from utils.prepare.chat.encoding import MOST_MESSAGES

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


def test_a_conversation_of_10_000_turns_is_rendered_whole_a_few_times_and_proven_in_part(chatml, monkeypatch):
    rendered = []
    render = CompiledTemplate.render

    def count(self, values, *arguments):
        rendered.append(len(values["messages"]))
        return render(self, values, *arguments)

    monkeypatch.setattr(CompiledTemplate, "render", count)
    long = turns(*["a", "b"] * 10_000)
    encoded = encode(chatml, "chatml", long, window=100)
    assert encoded.shortened == 1 and encoded.turns_left_out == 10_000 - len(target_texts(chatml, encoded)[0])
    whole = encode(chatml, "chatml", long, window=10**6)
    assert len(target_texts(chatml, whole)[0]) == MOST_MESSAGES // 2 == 10_000 - whole.turns_left_out
    dropped = encode(chatml, "chatml", long, window=10**6, too_long="drop")
    assert "20,000 messages" in dropped.left_out[0].detail
    # each of the three once as a whole; then a run of n messages is proven by its beginnings
    assert sum(count for count in rendered if count > MOST_MESSAGES + 1) == 3 * 20_000
    assert sum(rendered) < 3 * 20_000 + 1.1 * MOST_MESSAGES**2 / 2


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([{"role": "user", "content": "a"}], "no_answer"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}], "no_answer"),
        ([{"role": "user", "content": "a\0<|im_end|>"}, {"role": "assistant", "content": "b"}], "no_character"),
        ([{"role": "user", "content": "a\ud800"}, {"role": "assistant", "content": "b"}], "not_utf8"),
        ([{"role": "tool", "content": "a"}, {"role": "assistant", "content": "b"}], "template_refuses"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": None}], "content_missing"),
    ],
)
def test_what_cannot_be_a_sample_is_named(chatml, messages, reason):
    encoded = encode(chatml, "chatml", messages, turns("a", "b"))
    assert reasons(encoded) == {reason: 1} and encoded.made_from.tolist() == [1]
    [left] = encoded.left_out
    assert left.at == 0 and left.detail and "\n" not in left.detail


def test_a_template_that_looks_into_a_name_of_a_control_token_is_named(chatml):
    template = "{% for m in messages %}{{ m.content | replace('<|im_end|>', '') }}<|im_end|>{% endfor %}"
    assert reasons(encode(chatml, template, turns("a", "b<|im_end|>"))) == {"control_name": 1}


def test_an_answer_that_begins_the_text_is_named(chatml):
    template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    assert reasons(encode(chatml, template, turns("a", "b")[1:])) == {"no_prompt": 1}


def test_characters_that_the_tokenizer_does_not_have_are_named(tmp_path):
    model = HFTokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2, ":": 3}, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    model.save(str(tmp_path / "tokenizer.json"))
    template = "{% for m in messages %}{{ m.content }} : {% endfor %}"
    encoded = encode(tmp_path, template, turns("a", "b a"), turns("a", "b é"))
    assert reasons(encoded) == {"unknown_characters": 1} and encoded.made_from.tolist() == [0]
