"""--once: the prompts of a file, answered plainly, each by itself."""

from __future__ import annotations

import json

import pytest

from lit_gpt.chat.base import main
from tests.chat.known_answers import make_known_model
from tests.conftest import run_command
from utils.prepare.chat.conversation import Conversation, Converter
from utils.prepare.chat.converters import make_converter
from utils.run.chat_options import ChatOptions


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    return make_known_model(tmp_path_factory.mktemp("known"))


def once(model, prompts, *words):
    options = ("--model", model, "--once", prompts, "--temperature", 0, "--accelerator", "cpu", *words)
    return run_command(ChatOptions, main, [str(word) for word in options])


def test_each_prompt_is_answered_and_whether_it_ended_is_said(known, tmp_path, capsys):
    prompts, answers = tmp_path / "prompts.txt", tmp_path / "new" / "answers.jsonl"
    prompts.write_text("Hello?\n\nOn and on!\n")
    assert once(known, prompts, "--answers", answers, "--max_new_tokens", 4, "--system", "Be brief.") == 0
    assert capsys.readouterr().out.splitlines() == [
        *("[1/2] Hello?", "世\N{REPLACEMENT CHARACTER}", "(cut, did not end by itself)", ""),
        *("[2/2] On and on!", "abab", "(cut, did not end by itself)", ""),
        "0 of 2 answers ended by themselves",
    ]
    assert once(known, prompts, "--answers", answers, "--max_new_tokens", 12) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[1:3] == ["世界🙂", "(ended by itself)"]
    assert out[-1] == "1 of 2 answers ended by themselves"
    first, second = map(json.loads, answers.read_text().splitlines())
    assert first == {
        "messages": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "世界🙂"}],
        "model": str(known),
        "ended_by_itself": True,
    }
    assert second["messages"][-1]["content"] == "ab" * 6 and not second["ended_by_itself"]
    (conversation,) = make_converter(Converter("messages"))(first, 0)
    assert isinstance(conversation, Conversation) and conversation.messages == first["messages"]


def test_prompts_may_be_whole_conversations(known, tmp_path, capsys):
    prompts, answers = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    chat = [("system", "Be kind."), ("user", "a"), ("assistant", "b"), ("user", "c?"), ("assistant", "not this")]
    messages = [{"role": role, "content": content} for role, content in chat]
    prompts.write_text(json.dumps({"messages": messages}) + "\n" + json.dumps({"prompt": "d?"}))
    assert once(known, prompts, "--answers", answers, "--system", "Be brief.") == 0
    first, second = map(json.loads, answers.read_text().splitlines())
    assert first["messages"] == [*messages[:-1], {"role": "assistant", "content": "世界🙂"}]
    assert [message["role"] for message in second["messages"]] == ["system", "user", "assistant"]
    assert second["messages"][0]["content"] == "Be brief."
    assert "[1/2] c?" in capsys.readouterr().out


def test_sampling_is_repeatable(known, tmp_path):
    prompts, answers = tmp_path / "prompts.txt", tmp_path / "answers.jsonl"
    prompts.write_text("Hello?\nHello?\n")
    words = ("--answers", answers, "--temperature", 5, "--max_new_tokens", 20)
    found = []
    for seed in (1, 1, 2):
        assert once(known, prompts, *words, "--seed", seed) == 0
        found.append(answers.read_text())
    assert found[0] == found[1] != found[2]
    assert len({json.dumps(json.loads(line)["messages"]) for line in found[0].splitlines()}) == 2


@pytest.mark.parametrize(
    ("name", "content", "code", "message"),
    [
        ("p.txt", b"caf\xe9\n", 65, "is not UTF-8 text"),
        ("p.txt", None, 2, "p.txt, is not there"),
        ("p.txt", b"\n \n", 65, "holds no prompt"),
        ("p.txt", b"a?\n" + b"x" * 400, 2, "p.txt, line 2: 4"),
        ("p.jsonl", b'{"prompt": "a"', 65, "p.jsonl, line 1 is not valid JSON"),
        ("p.jsonl", b'{"question": "a"}', 65, 'text under "prompt"'),
        ("p.jsonl", b'{"messages": [{"role": "wizard", "content": "a"}]}', 65, "has the role 'wizard'"),
        ("p.jsonl", b'{"messages": [{"role": "assistant", "content": "a"}]}', 65, "holds no question"),
    ],
)
def test_bad_prompts_are_one_line(known, tmp_path, capsys, name, content, code, message):
    prompts = tmp_path / name
    if content is not None:
        prompts.write_bytes(content)
    assert once(known, prompts, "--answers", tmp_path / "answers.jsonl") == code
    shown = capsys.readouterr()
    errors = [line for line in shown.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]
    assert shown.out == "" and not (tmp_path / "answers.jsonl").exists()
