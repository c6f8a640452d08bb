"""Templates that deceive: what they write of a conversation is not what a model is to learn, so it is left out."""

from __future__ import annotations

import pytest

from tests.prepare.chat.chat_tokenizers import with_tokens
from tests.prepare.chat.conversations import turns
from tests.prepare.chat.encoded import CHATML, encode, reasons, target_texts

pytestmark = pytest.mark.shared
HEADER = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
PLAIN = HEADER + "{{ m.content }}<|im_end|>\n{% endfor %}" + PROMPT
MARKED = (
    HEADER + "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}" + PROMPT
)
TWO = turns("say Hello", "Hello", "say Bye", "Bye")
WITH_SYSTEM = turns("say Hello", "Hello", system="Be brief, always")
DECEIVING = {
    "an answer twice": (PLAIN.replace("{{ m.content }}", "{{ m.content * (2 if m.role == 'assistant' else 1) }}"), TWO),
    "no system message": (PLAIN.replace("in messages", "in messages if m.role != 'system'"), WITH_SYSTEM),
    "no questions": (PLAIN.replace("in messages", "in messages if m.role != 'user'"), TWO),
    "another order": (PLAIN.replace("in messages", "in messages | reverse"), TWO),
    "marks around the user": (MARKED.replace("== 'assistant'", "== 'user'"), TWO),
    "marks without the end": (MARKED.replace("<|im_end|>{% endgen", "{% endgen"), TWO),
    "marks that are counted": (f"{{% set x %}}{MARKED}{{% endset %}}{{{{ x }}}}{{{{ x | length }}}}", TWO),
    "marks of the user's own": (MARKED, turns("say \ufdd1 Hello\ufdd2", " Hello")),
}
REASONS = {
    "an answer twice": "written_twice",
    "no system message": "message_missing",
    "no questions": "message_missing",
    "another order": "prefix",
    "marks around the user": "marks",
    "marks without the end": "no_end",
    "marks that are counted": "marks",
    "marks of the user's own": "no_character",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return with_tokens("gpt2", tmp_path_factory.mktemp("gpt2"), CHATML, "<s>", "</s>")


@pytest.mark.parametrize("name", DECEIVING)
def test_what_deceives_is_left_out_by_its_reason(folder, name):
    template, messages = DECEIVING[name]
    encoded = encode(folder, template, messages)
    assert not len(encoded.tokens)
    assert list(reasons(encoded)) == [REASONS[name]]


@pytest.mark.parametrize("answer", [">", "|>", "<|im_end|>", "?", "end", "<"])
def test_an_answer_like_its_end_is_one_sample_without_the_texts_own_end(folder, answer):
    ended = PLAIN.replace("{% if add", "{% if not add_generation_prompt %}<s>{% endif %}{% if add")
    assert target_texts(folder, encode(folder, ended, turns("a", answer, "b", answer))) == [
        [f"{answer}<|im_end|>\n"] * 2
    ]


@pytest.mark.parametrize("end", ["</chat>", "users are gone", "bye"])
def test_what_ends_a_text_is_no_target_where_the_next_message_begins_alike(folder, end):
    tag = "{{ '<user>' if m.role == 'user' and not m.content.startswith('b') else '<assistant>' if m.role != 'user' }}"
    form = f"{{% for m in messages %}}{tag}{{{{ m.content }}}}</{{{{ m.role }}}}>{{{{ '\n' }}}}{{% endfor %}}"
    template = f"{form}{{% if add_generation_prompt %}}<assistant>{{% else %}}{end}{{% endif %}}"
    for question in ("c is next", "b is next"):
        encoded = encode(folder, template, turns("a", "A", question, "B"))
        assert [runs[0] for runs in target_texts(folder, encoded)] == ["A</assistant>\n"], encoded.left_out


def test_white_space_that_ends_an_answer_is_a_target_or_the_answer_is_left_out(tmp_path):
    folder = with_tokens("llama3", tmp_path, ())
    template = "{% for m in messages %}{{ '\n' + m.role + ':' + m.content + '\n' }}{% endfor %}"
    prompt = "{% if add_generation_prompt %}{{ '\nassistant:' }}{% endif %}"
    encoded = encode(folder, template + prompt, turns("a", " A", "b", " B"))
    assert reasons(encoded) == {"token_over_border": 1}
    assert "what ends the answer is in the token" in encoded.left_out[0].detail


def test_marks_decide_where_they_hold_the_answers(folder):
    assert target_texts(folder, encode(folder, MARKED, TWO)) == [["Hello<|im_end|>", "Bye<|im_end|>"]]
    weighted = [{**message, "weight": 0} if at == 1 else message for at, message in enumerate(TWO)]
    assert target_texts(folder, encode(folder, MARKED, weighted)) == [["Bye<|im_end|>"]]
