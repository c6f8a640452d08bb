"""What a model thinks, calls and says is told apart, however its answer is cut into pieces."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_gpt.inference.generation import TextStream
from lit_gpt.tokenizer.chat_template import ChatTemplate
from lit_gpt.tokenizer.tokenizer import Tokenizer
from tests.chats import END_OF_TEXT, END_OF_TURN, make_chat_tokenizer
from tests.export.go_templates import real_templates
from utils.chat.cells import next_row, width_of
from utils.chat.parts import CALL, SAID, THOUGHT, Part, PartReader, is_in_mark, message_of, parts_of
from utils.chat.screen import Labels

ANSWER = (
    "<think>\nHm <b> 1 < 2.\n</think>\n\nLet me see.\n"
    '<tool_call>\n{"name": "find", "arguments": {"x": 1}}\n</tool_call>'
)
CALLED = {"type": "function", "function": {"name": "find", "arguments": {"x": 1}}}


def kinds(parts: list[Part]) -> list[tuple[str, str]]:
    """The texts of neighbours of one kind put together."""
    joined: list[tuple[str, str]] = []
    for part in parts:
        if joined and joined[-1][0] == part.kind:
            joined[-1] = (part.kind, joined[-1][1] + part.text)
        else:
            joined.append((part.kind, part.text))
    return joined


def test_an_answers_parts():
    assert kinds(parts_of(ANSWER)) == [
        (THOUGHT, "\nHm <b> 1 < 2.\n"),
        (SAID, "\n\nLet me see.\n"),
        (CALL, '\n{"name": "find", "arguments": {"x": 1}}\n'),
    ]
    assert message_of(ANSWER) == {
        "role": "assistant",
        "content": "Let me see.",
        "reasoning_content": "Hm <b> 1 < 2.",
        "tool_calls": [CALLED],
    }


@given(st.lists(st.integers(0, len(ANSWER)), max_size=12))
def test_pieces_give_the_same_parts(cuts):
    edges = [0, *sorted(cuts), len(ANSWER)]
    reader = PartReader()
    parts = [part for start, end in pairwise(edges) for part in reader.push(ANSWER[start:end])]
    assert kinds(parts + reader.finish()) == kinds(parts_of(ANSWER))


@pytest.mark.parametrize(
    ("answer", "prompt", "message"),
    [
        ("Yes.", "", {"content": "Yes."}),
        ("Hm.</think>Yes.", "<|assistant|><think>\n", {"content": "Yes.", "reasoning_content": "Hm."}),
        ("1 < 2 <thin", "", {"content": "1 < 2 <thin"}),
        ("<think>Hm", "", {"content": "", "reasoning_content": "Hm"}),
        ("<tool_call>find(x)</tool_call> now", "", {"content": "<tool_call>find(x)</tool_call> now"}),
        ('[TOOL_CALLS][{"name": "find", "arguments": {"x": 1}}]', "", {"content": "", "tool_calls": [CALLED]}),
        (
            '<tool_call>{"name": "find", "arguments": {"x": 1}}</tool_call>\n'
            '<tool_call>{"name": "find", "arguments": {"x": 1}}</tool_call>',
            "",
            {"content": "", "tool_calls": [CALLED, CALLED]},
        ),
    ],
)
def test_an_answer_becomes_a_message(answer, prompt, message):
    assert message_of(answer, prompt) == {"role": "assistant", **message}


def test_a_template_writes_the_message_as_the_model_wrote_it(tmp_path):
    """By a template that trl ships: the calls of the answer come out where they were read."""
    template = ChatTemplate(Tokenizer(make_chat_tokenizer(tmp_path)), real_templates()["qwen3"].read_text())
    answer = ANSWER.split("</think>\n\n")[1]
    text = template.render([{"role": "user", "content": "?"}, message_of(answer)], None, False)
    assert text.rstrip().endswith(answer + "<|im_end|>")


def test_labels_stand_where_the_kind_changes():
    labels = Labels()
    shown = "".join(labels.push(part) for part in parts_of(ANSWER))
    assert shown == '[reasoning] Hm <b> 1 < 2.\nLet me see.\n[tool call] {"name": "find", "arguments": {"x": 1}}\n'
    assert Labels().push(Part(" \n as it is", None)) == " \n as it is"


@pytest.mark.parametrize(
    ("text", "width"),
    [
        ("abc", 3),
        ("世界", 4),
        ("🙂", 2),
        ("e\u0301", 1),
        ("👩\u200d🚀", 4),
        ("한글", 4),
        ("\u1112\u1161\u11ab", 2),
        ("ｶ", 1),
        ("Ａ", 2),
    ],
)
def test_the_width_of_a_text(text, width):
    assert width_of(text) == width


def rows_of(text: str, width: int) -> list[str]:
    rows = []
    while found := next_row(text, width, True):
        row, text = found
        rows.append(row)
    return rows


def test_rows_end_at_spaces():
    assert rows_of("one two three", 7) == ["one two", "three"]
    assert rows_of("a 世界世界 b", 5) == ["a", "世界", "世界", "b"]
    assert rows_of("abcdefgh\n\nij", 3) == ["abc", "def", "gh", "", "ij"]
    assert next_row("one tw", 7, False) is None and next_row("one\ntw", 7, False) == ("one", "tw")


@given(st.text("ab 世🙂\u0301\n", max_size=40), st.integers(2, 9))
def test_rows_fit_and_lose_only_spaces(text, width):
    rows = rows_of(text, width)
    assert all(width_of(row) <= width for row in rows)
    assert "".join(rows).replace(" ", "") == text.replace("\n", "").replace(" ", "")


def test_marks_that_are_special_tokens_are_seen(tmp_path):
    """Mistral's, say: decoding leaves special tokens out."""
    names = (END_OF_TEXT, "[TOOL_CALLS]", END_OF_TURN)
    tokenizer = Tokenizer(make_chat_tokenizer(tmp_path, names=names))
    assert [name for name in tokenizer.control_tokens if is_in_mark(name)] == ["[TOOL_CALLS]"]
    mark, other = tokenizer.token_id("[TOOL_CALLS]"), tokenizer.token_id(END_OF_TURN)
    ids = [*tokenizer.encode("世 "), mark, *tokenizer.encode(" 🙂 x"), other, *tokenizer.encode("y")]
    stream = TextStream(tokenizer, [other], {mark: "[TOOL_CALLS]"})
    assert "".join(map(stream.push, ids)) == "世 [TOOL_CALLS] 🙂 xy"
    plain = TextStream(tokenizer, [other])
    assert "".join(map(plain.push, ids)) == "世  🙂 xy"
