"""A conversation's commands, and what is forgotten, through the program's own loop."""

from __future__ import annotations

import json
import shutil

import pytest

from lit_gpt.chat.base import main
from lit_gpt.inference.generation import TextModel
from lit_gpt.inference.sampling_options import Sampling
from tests.chat.known_answers import make_known_model
from tests.conftest import run_command
from utils.chat.models import load_speakers
from utils.chat.speaker import LitgptSpeaker
from utils.prepare.chat.conversation import Conversation, Converter
from utils.prepare.chat.converters import make_converter
from utils.run.chat_options import ChatOptions

HELLO, OTHER = "Hello?", "Who?"
ANSWER = "世界🙂"


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    return make_known_model(tmp_path_factory.mktemp("known"))


@pytest.fixture
def talk(known, monkeypatch, capsys):
    """Says these lines; returns the exit code, what the model read as text, and what was shown on both streams."""

    def say(*lines, model=known, words=()):
        waiting, read, real = iter([*lines, ""]), [], TextModel.stream

        def stream(self, prompts, *rest, **options):
            read.append(self.tokenizer._hf.decode(prompts[0], skip_special_tokens=False))
            return real(self, prompts, *rest, **options)

        with monkeypatch.context() as patch:
            patch.setattr("utils.chat.reading.read_line", lambda _: next(waiting))
            patch.setattr(TextModel, "stream", stream)
            options = ["--temperature", 0, "--max_new_tokens", 16, "--accelerator", "cpu", *words]
            options += ["--model", model] if model else []
            code = run_command(ChatOptions, main, [str(word) for word in options])
        shown = capsys.readouterr()
        return code, read, shown.out, shown.err

    return say


def prompt(*contents, system=None):
    said = [("system", system)] if system else []
    said += [(("user", "assistant")[number % 2], content) for number, content in enumerate(contents)]
    text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in said)
    return f"{text}<|im_start|>assistant\n{contents[-1][-1]}"


def test_undo_retry_and_reset(talk):
    code, read, out, err = talk(HELLO, OTHER, "/undo", "Then?", "/retry", "/reset", HELLO, "/undo", "/undo", "/retry")
    assert code == 0
    assert read == [
        prompt(HELLO),
        prompt(HELLO, ANSWER, OTHER),
        prompt(HELLO, ANSWER, "Then?"),
        prompt(HELLO, ANSWER, "Then?"),
        prompt(HELLO),
    ]
    assert out == f"{ANSWER}\n" * 5
    for said in ("taken back: Who?", "a new conversation", "nothing to take back", "no question to answer anew"):
        assert said in err


def test_the_system_message_is_set_for_what_follows(talk):
    lines = ("/system", HELLO, "/system Be kind.", OTHER, "/reset", "Then?")
    _, read, _, err = talk(*lines, words=("--system", "Be brief."))
    assert read == [
        prompt(HELLO, system="Be brief."),
        prompt(HELLO, ANSWER, OTHER, system="Be kind."),
        prompt("Then?", system="Be kind."),
    ]
    assert err.count("system message: Be brief.") == 1 and "system message: Be kind." in err


def test_a_retry_has_another_seed(talk):
    _, read, out, _ = talk(HELLO, "/retry", words=("--temperature", 5))
    assert len(set(read)) == 1 and len(set(out.splitlines())) > 1


def test_what_is_no_command_is_told_and_not_sent(talk):
    _, read, _, err = talk("/resett", " /resett?", "/home/x is what?", "/a\\", "b?", "/help")
    assert read[0] == prompt("/resett?")
    assert read[1].endswith("is what?<|im_end|>\n<|im_start|>assistant\n?") and "\n/a\nb?<|im_end|>" in read[2]
    assert len(read) == 3
    assert err.count("there is no /resett, and it was not sent") == 1 and "/undo    takes the last" in err


def test_what_was_saved_is_data_to_train_on(talk, tmp_path):
    file = tmp_path / "chats.jsonl"
    file.write_text('{"messages": []}')  # without a line's end
    lines = ("/save", f"/save {tmp_path}/chats.txt", f"/save {file}", HELLO, f"/save {file}", OTHER, f"/save {file}")
    _, _, _, err = talk(*lines, f"/save {tmp_path}/none/chats.jsonl", words=("--system", "Be brief."))
    assert err.count("/save FILE.jsonl adds") == 2 and "there is nothing to save" in err and "not saved: No such" in err
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 3 and rows[1]["messages"] == rows[2]["messages"][:3]
    (conversation,) = make_converter(Converter("messages"))(rows[2], 0)
    assert isinstance(conversation, Conversation)
    assert [message["content"] for message in conversation.messages] == ["Be brief.", HELLO, ANSWER, OTHER, ANSWER]


def test_the_oldest_turns_are_forgotten_and_the_system_message_is_not(talk):
    questions = [f"{letter * 50}?" for letter in "abcd"]
    _, read, _, err = talk(*questions, words=("--system", "Be brief."))
    assert read[1] == prompt(questions[0], ANSWER, questions[1], system="Be brief.")
    assert read[2] == prompt(questions[1], ANSWER, questions[2], system="Be brief.")
    assert read[3] == prompt(questions[2], ANSWER, questions[3], system="Be brief.")
    assert err.count("the context is full: the oldest") == 2 and "the oldest 2 turns are forgotten" in err
    _, read, _, err = talk("x" * 300 + "?", HELLO)
    assert read == [prompt(HELLO)] and "too long for a context of 256 tokens" in err


def test_two_models_keep_conversations_of_their_own(talk, known, tmp_path):
    other = make_known_model(tmp_path / "other", answers={"?": "ok", "!": "z"})
    file = tmp_path / "both.jsonl"
    lines = (HELLO, OTHER, "/undo", "/retry", f"/save {file}")
    code, read, out, _ = talk(*lines, model=None, words=("--compare", known, other))
    assert code == 0
    assert read == [
        *(prompt(HELLO), prompt(HELLO)),
        *(prompt(HELLO, ANSWER, OTHER), prompt(HELLO, "ok", OTHER)),
        *(prompt(HELLO), prompt(HELLO)),
    ]
    assert out == f"── {known.name}\n{ANSWER}\n── other\nok\n" * 3
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(row["model"], row["messages"][-1]["content"]) for row in rows] == [(known.name, ANSWER), ("other", "ok")]


def test_reasoning_and_calls_are_shown_as_such_and_told_apart(talk, monkeypatch, tmp_path):
    template = """
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}
{%- if m.tool_calls %}{{ m.reasoning_content + ' CALLS ' + m.tool_calls[0].function.name }}{% endif %}
{{- m.content + '<|im_end|>\\n' }}{% endfor %}{{ '<|im_start|>assistant\\n' }}"""
    model = make_known_model(tmp_path / "calls", template=template)
    answers = iter(['<think>Hm.</think>Wait.<tool_call>{"name": "find", "arguments": {}}</tool_call>', "So."])
    prompts = []

    def stream(self, prompt, sampling):
        prompts.append(prompt.text)
        yield from next(answers)

    monkeypatch.setattr(LitgptSpeaker, "stream", stream)
    _, _, out, _ = talk(HELLO, "/tool found", model=model)
    assert out == '[reasoning] Hm.\nWait.\n[tool call] {"name": "find", "arguments": {}}\nSo.\n'
    turns = ("user\nHello?", "assistant\nHm. CALLS findWait.", "tool\nfound")
    assert prompts[1] == "".join(f"<|im_start|>{turn}<|im_end|>\n" for turn in turns) + "<|im_start|>assistant\n"


def test_tools_are_told_to_the_model(talk, tmp_path):
    template = """
{%- for tool in tools %}{{ tool.function.name }} {% endfor %}
{%- for m in messages %}{{ m.content }}{% endfor %}{{ '<|im_end|>?' }}"""
    model = make_known_model(tmp_path / "tools", template=template)
    file = tmp_path / "tools.json"
    file.write_text(json.dumps([{"name": "find", "description": "Finds.", "parameters": {"type": "object"}}]))
    code, read, _, _ = talk(HELLO, "/tool found?", model=model, words=("--tools", file))
    assert code == 0 and read == ["find Hello?<|im_end|>?", f"find Hello?{ANSWER}found?<|im_end|>?"]
    code, _, _, err = talk(HELLO, model=model)
    assert code == 2 and "the chat template needs tools, and there are none: give --tools" in err
    code, _, _, err = talk(HELLO, words=("--tools", file))
    assert code == 2 and "does not tell the model of tools" in err
    for content, message in (("[]", "holds no tools"), ("{", "is not JSON"), ('[{"a": 1}]', "no function with a name")):
        file.write_text(content)
        code, _, _, err = talk(HELLO, model=model, words=("--tools", file))
        assert code == 65 and message in err


def test_the_models_own_sampling_is_the_default(known, talk, tmp_path):
    folder = shutil.copytree(known, tmp_path / "own")
    values = json.loads((folder / "generation_config.json").read_text())
    own = {"do_sample": True, "temperature": 0.2, "top_k": 0, "top_p": 0.9, "max_new_tokens": 7}
    (folder / "generation_config.json").write_text(json.dumps({**values, **own}))
    (speaker,) = load_speakers(ChatOptions(model=folder, accelerator="cpu", top_p=0.5))
    sampling = ChatOptions(top_p=0.5, seed=3, stop=("x",)).sampling(speaker.own)
    assert sampling == Sampling(max_new_tokens=7, temperature=0.2, top_p=0.5, seed=3, stop=("x",))
    assert ChatOptions().sampling({}) == Sampling(max_new_tokens=256)
    _, _, _, err = talk(HELLO, model=folder)
    assert f"{folder}: by its own files top_p 0.9\n" in err  # temperature and max_new_tokens are given there
    for found, code, message in (
        ({"do_sample": False, "top_p": 0.9}, 0, ""),
        ({"do_sample": True, "top_p": 7}, 65, "generation_config.json cannot be followed: --top_p must be above 0"),
        ({"do_sample": True, "temperature": "hot"}, 65, "generation_config.json cannot be followed"),
    ):
        (folder / "generation_config.json").write_text(json.dumps({**values, **found}))
        found_code, _, _, err = talk(HELLO, model=folder)
        assert found_code == code and message in err


@pytest.mark.parametrize("words", [("--temperature", "-1"), ("--top_p", "2"), ("--max_new_tokens", "0")])
def test_sampling_that_cannot_be_is_refused(known, capsys, words):
    assert run_command(ChatOptions, main, ["--model", str(known), *words]) == 2
    assert words[0] in capsys.readouterr().err
